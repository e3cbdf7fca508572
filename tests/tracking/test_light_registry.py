"""The registry of a real server over plain HTTP: the same answers as MLflow's own library gives."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from mlflow_server import free_port, serving

from nanochat.spec.errors import StorageError
from nanochat.tracking.registry import Candidate, Registry
from nanochat.tracking.rest import RestClient, light_registry

pytestmark = pytest.mark.filterwarnings(
    "ignore::Warning:mlflow", "ignore::DeprecationWarning", "ignore::ResourceWarning"
)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with serving(tmp_path_factory.mktemp("mlflow")) as url:
        yield url


def test_both_clients_say_the_same(server: str, monkeypatch: pytest.MonkeyPatch) -> None:
    whole, light = Registry(server), light_registry(server)
    assert light.champion("chat") is None and not light.holds("chat", "1")
    for number in ("1", "2"):
        candidate = Candidate(
            f"s3://b/artifacts/model/{number}/01-a", number, {"core": 0.25}, {"nanochat.run": "runs/a"}
        )
        assert whole.register("chat", candidate).version == number
    whole.promote("chat", "2")
    assert light.champion("chat") == whole.champion("chat")
    assert light.holds("chat", "1") and not light.holds("chat", "3")
    assert light.find("chat", "1") == whole.find("chat", "1")
    monkeypatch.setattr(RestClient, "search_registered_models", lambda *_, **__: 1 / 0)
    with pytest.raises(StorageError, match="did not take the request"):
        light.champion("chat")


def test_a_server_that_is_away_is_infrastructure() -> None:
    with pytest.raises(StorageError, match="cannot be reached"):
        light_registry(f"http://127.0.0.1:{free_port()}").champion("chat")
