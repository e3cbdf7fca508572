"""The stores that all pipelines share, and what they look for in them together."""

from __future__ import annotations

import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path

import pytest
from store_servers import StoreServer

from nanochat.spec.errors import UserError
from nanochat.storage.artifacts import Artifacts
from nanochat.storage.folder import FolderStore
from nanochat.storage.store import Profile
from operators import stores as module
from operators.config import StoreProfile
from operators.stores import SharedArtifacts, Stores


class Counting(FolderStore):
    """Counts what is asked of it."""

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        self.asked: list[str] = []

    def read(self, path: str, limit: int) -> bytes:
        self.asked.append(path)
        return super().read(path, limit)

    def children(self, prefix: str = "") -> Sequence[str]:
        self.asked.append(prefix)
        return super().children(prefix)


def make(artifacts: Artifacts, kind: str, key: str) -> None:
    with artifacts.writer(kind, key, "01-a") as writer:
        (writer.folder / "file").write_bytes(b"made")
        writer.commit(recipe={}, inputs={}, metadata={"stage": key})


@pytest.fixture
def shared(tmp_path: Path) -> SharedArtifacts:
    store = Counting(tmp_path / "store")
    return SharedArtifacts(store, tmp_path / "cache", Profile(root=store.root))


def asked(shared: SharedArtifacts) -> list[str]:
    assert isinstance(shared.store, Counting)
    found, shared.store.asked = shared.store.asked, []
    return found


def test_a_place_has_one_store_and_at_most_so_many_are_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stores = Stores(tmp_path / "cache")
    one = StoreProfile(root=str(tmp_path / "one"), tracking="http://mlflow")
    assert stores.open(one) is stores.open(StoreProfile(root=one.root)), "the tracking server is no part of the place"
    assert stores.open(one, root=str(tmp_path / "two")).root == str(tmp_path / "two")
    monkeypatch.setattr(module, "MOST", 2)
    kept = stores.open(one)
    stores.open(one, root=str(tmp_path / "three"))
    assert stores.open(one) is kept, "what is used is kept"


def test_what_one_has_looked_for_the_others_do_not_look_for(shared: SharedArtifacts) -> None:
    wanted = [("evaluation", "a"), ("evaluation", "b"), ("model", "c")]
    make(shared, "evaluation", "a")
    asked(shared)
    assert shared.survey(wanted) == {("evaluation", "a"): {"stage": "a"}}
    first = asked(shared)
    assert not any("/b" in path or "/c" in path for path in first), "a listing tells that they are not there"
    assert shared.survey(wanted) == {("evaluation", "a"): {"stage": "a"}} and asked(shared) == []
    make(shared, "model", "c")
    now = time.monotonic()
    assert ("model", "c") not in shared.survey(wanted), "it may be some seconds old,"
    assert shared.survey(wanted, since=now)["model", "c"] == {}, "but never older than is asked for"
    asked(shared)
    assert shared.damaged("model", "nothing") == () and asked(shared) == []


def test_what_is_old_is_looked_for_again_and_forgotten(
    shared: SharedArtifacts, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert shared.survey([("model", "a")]) == {}
    make(shared, "model", "a")
    shared.forget()
    assert shared.survey([("model", "a")]) == {}
    monkeypatch.setattr(module, "FRESH_SECONDS", 0.0)
    shared.forget()
    assert not shared._known
    assert shared.survey([("model", "a")]) == {("model", "a"): {}}


def test_one_store_serves_many_threads_and_takes_up_renewed_credentials(
    tmp_path: Path, own_server: StoreServer
) -> None:
    credentials = own_server.write_credentials(tmp_path / "credentials")
    profile = StoreProfile.model_validate(asdict(own_server.profile()) | {"credentials": str(credentials)})
    store = Stores(tmp_path / "cache").open(profile)

    def use(number: int) -> bytes:
        store.write(f"files/{number}", str(number).encode())
        return store.read(f"files/{number}", 16)

    with ThreadPoolExecutor(32) as pool:
        assert list(pool.map(use, range(100))) == [str(number).encode() for number in range(100)]
    good = {file.name: file.read_bytes() for file in credentials.iterdir()}
    for name, value in own_server.refused[0].items():
        (credentials / name).write_text(value)
    with pytest.raises(UserError, match="refuses these credentials"):
        store.read("files/1", 16)
    for name, content in good.items():
        (credentials / name).write_bytes(content)
    assert store.read("files/1", 16) == b"1"
