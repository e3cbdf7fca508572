"""The registry in a real MLflow (SQLite): versions by address, and the alias champion."""

from __future__ import annotations

import socket
from typing import Any

import pytest

from nanochat.spec.errors import StorageError, UserError
from nanochat.tracking.registry import Candidate, Registry

pytestmark = pytest.mark.filterwarnings(
    "ignore::Warning:mlflow", "ignore::DeprecationWarning", "ignore::ResourceWarning"
)


@pytest.fixture(scope="module")
def registry(uri: str) -> Registry:
    return Registry(uri)


def candidate(**changes: Any) -> Candidate:
    values: dict[str, Any] = {
        "source": "s3://bucket/artifacts/model/abc/01-a", "key": "k1", "run_uid": "uid",
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
