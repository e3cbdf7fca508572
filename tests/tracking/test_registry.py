"""The registry in a real MLflow (SQLite): versions by address, and the alias champion."""

from __future__ import annotations

import socket
from typing import Any

import pytest
from mlflow.entities.model_registry import ModelVersion

from nanochat.spec.errors import StorageError, UserError
from nanochat.tracking.registry import Candidate, Registry, Version

pytestmark = pytest.mark.filterwarnings(
    "ignore::Warning:mlflow", "ignore::DeprecationWarning", "ignore::ResourceWarning"
)


@pytest.fixture(scope="module")
def registry(uri: str) -> Registry:
    return Registry(uri)


def candidate(**changes: Any) -> Candidate:
    values: dict[str, Any] = {
        "source": "s3://bucket/artifacts/model/abc/01-a", "key": "k1",
        "metrics": {"core": 0.2219, "sft.arc-easy": 0.3876}, "tags": {"nanochat.run": "runs/x"}, "card": "# Card",
    }  # fmt: skip
    return Candidate(**(values | changes))


def test_without_a_model_there_is_no_champion(registry: Registry) -> None:
    assert registry.champion("none") is None


def test_the_champion_is_the_version_with_the_alias(registry: Registry) -> None:
    version = registry.register("first", candidate())
    assert version.version == "1"
    assert registry.champion("first") is None
    registry.promote("first", version.version)
    champion = registry.champion("first")
    assert champion is not None
    assert champion.version == "1" and champion.key == "k1"
    assert champion.source == "s3://bucket/artifacts/model/abc/01-a"
    assert champion.metrics == {"core": 0.2219, "sft.arc-easy": 0.3876}


def test_a_candidate_is_registered_once(registry: Registry) -> None:
    one = registry.register("once", candidate())
    assert registry.register("once", candidate()).version == one.version
    other = registry.register("once", candidate(key="k2"))
    assert other.version == "2"


def test_the_card_and_the_lineage_are_kept(registry: Registry) -> None:
    registry.register("card", candidate(card="# Card\n" + "x" * 9000, tags={"key.model/base": "abc"}))
    found = registry._client.get_model_version("card", "1")  # type: ignore[union-attr]
    assert (found.description or "").startswith("# Card")
    assert found.tags["key.model/base"] == "abc"


def test_an_unreachable_registry_is_infrastructure() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with pytest.raises(StorageError, match="cannot be reached"):
        Registry(f"http://127.0.0.1:{port}").champion("model")


def test_the_version_before_is_the_former_champion(registry: Registry) -> None:
    versions = [registry.register("swap", candidate(key=f"s{i}")).version for i in range(3)]

    def aliases() -> dict[str, str]:
        found = registry._client.get_registered_model("swap").aliases  # type: ignore[union-attr]
        return {name: str(version) for name, version in found.items()}

    for version in versions:
        registry.promote("swap", version)
    assert aliases() == {"champion": "3", "former": "2"}
    registry.promote("swap", "3")
    assert aliases() == {"champion": "3", "former": "2"}, "a release that is tried again changes nothing"
    before, now = registry.rollback("swap")
    assert (before, now.version, aliases()) == ("3", "2", {"champion": "2", "former": "3"})
    assert registry.rollback("swap")[1].version == "3"
    assert registry.rollback("swap", "1")[1].version == "1"
    assert aliases() == {"champion": "1", "former": "3"}


def test_each_promotion_is_told_apart(registry: Registry) -> None:
    registry.register("anew", candidate(key="a1"))
    times = set()
    for _ in range(2):
        registry.promote("anew", "1")
        champion = registry.champion("anew")
        assert champion is not None
        times.add(champion.tags["nanochat.promoted"])
    assert len(times) == 2


def test_there_must_be_something_to_go_back_to(registry: Registry) -> None:
    with pytest.raises(UserError, match="none was released yet"):
        registry.rollback("nothing")
    registry.register("single", candidate(key="x"))
    registry.promote("single", "1")
    with pytest.raises(UserError, match="no former champion: choose a version with --to: 1"):
        registry.rollback("single")
    with pytest.raises(UserError, match="no version 9: there are 1"):
        registry.rollback("single", "9")


def test_a_version_that_was_deleted_is_no_more(registry: Registry) -> None:
    for number in range(3):
        registry.promote("gone", registry.register("gone", candidate(key=f"d{number}")).version)
    client: Any = registry._client
    client.delete_model_version("gone", "2")
    assert registry.holds("gone", "1") and not registry.holds("gone", "2") and not registry.holds("nothing", "1")
    with pytest.raises(UserError, match="gone has no version 2: there are 1, 3"):
        registry.rollback("gone", "2")
    with pytest.raises(UserError, match="no former champion"):  # its alias went with it
        registry.rollback("gone")
    assert registry.register("gone", candidate(key="d1")).version == "4", "it is registered anew"
    client.delete_registered_model("gone")
    assert registry.champion("gone") is None
    assert registry.register("gone", candidate(key="d0")).version == "1"


def test_a_version_that_is_not_ready_is_not_taken(registry: Registry, monkeypatch: pytest.MonkeyPatch) -> None:
    registry.promote("slow", registry.register("slow", candidate(key="r1")).version)
    registry.register("slow", candidate(key="r2"))
    ready = ModelVersion.status
    monkeypatch.setattr(
        ModelVersion, "status", property(lambda self: "PENDING_REGISTRATION" if self.version == 2 else ready.fget(self))
    )
    with pytest.raises(UserError, match="version 2 of slow is not ready"):
        registry.rollback("slow", "2")
    champion = registry.champion("slow")
    assert champion is not None and champion.version == "1"
    assert registry.register("slow", candidate(key="r2")).version == "3", "it counts as none"


def test_what_the_check_refuses_changes_nothing(registry: Registry) -> None:
    for number in range(2):
        registry.promote("checked", registry.register("checked", candidate(key=f"c{number}")).version)

    def check(version: Version) -> None:
        raise UserError(f"the weights of {version.source} are gone")

    with pytest.raises(UserError, match="are gone"):
        registry.rollback("checked", check=check)
    champion = registry.champion("checked")
    assert champion is not None and champion.version == "2"


def test_versions_are_found_by_number_and_alias(registry: Registry) -> None:
    registry.register("found", candidate(key="f1"))
    with pytest.raises(UserError, match="found has no champion: name a version: 1"):
        registry.find("found", "champion")
    registry.promote("found", "1")
    client: Any = registry._client
    client.set_registered_model_alias("found", "canary", "1")
    assert {registry.find("found", which).version for which in ("1", "champion", "canary")} == {"1"}
    for which in ("2", "former", "1.0", "x" * 300):
        with pytest.raises(UserError, match="found has no "):
            registry.find("found", which)
