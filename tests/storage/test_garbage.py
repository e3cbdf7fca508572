"""Collection removes what nothing refers to, and nothing else."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from nanochat.spec.errors import StorageError
from nanochat.storage import Artifacts, Checkpoints, Profile, Store, open_store
from nanochat.storage.garbage import collect

LATER = time.time() + 1_000_000.0  # the store's time
KEEP = {("model", "kept"), ("base", "key")}


@pytest.fixture
def filled(store: Store, artifacts: Artifacts, checkpoints: Checkpoints) -> Store:
    """A store with what is kept and what is not of each sort."""
    for key in ("kept", "dropped"):
        with artifacts.writer("model", key, "one") as writer:
            (writer.folder / "weights").write_bytes(b"w" * 100)
            writer.commit(recipe={}, inputs={})
    store.write("artifacts/model/kept/two/weights", b"half")
    store.write("artifacts/model/kept/manifest.json.damaged-0123", b"bad")
    store.write("artifacts/model/unfinished/one/weights", b"half")
    folder = checkpoints.folder(10, "one")
    (folder / "model").write_bytes(b"m")
    checkpoints.commit(10, "one", checkpoints.store_files(10, "one", folder, ["model"]), {})
    store.write("checkpoints/base/key/step-0000020-one/model", b"half")
    store.write("checkpoints/base/other/step-0000020-one/model", b"half")
    store.write("runs/default.demo/uid/status.json", b"{}")
    return store


REMOVED = {
    "artifacts/model/dropped": "nothing refers to it",
    "artifacts/model/kept/manifest.json.damaged-0123": "it was damaged and set aside",
    "artifacts/model/kept/two": "its launch did not finish it",
    "artifacts/model/unfinished": "nothing refers to it",
    "checkpoints/base/key/step-0000020-one": "its launch did not finish it",
    "checkpoints/base/other": "nothing refers to it",
}


def test_what_nothing_refers_to_goes(filled: Store, artifacts: Artifacts, checkpoints: Checkpoints) -> None:
    before = {entry.path: entry.size for entry in filled.list()}
    planned = collect(filled, keep=KEEP, older_than_s=60, now=LATER, dry_run=True)
    assert {item.path: item.reason for item in planned.removed} == REMOVED
    assert {entry.path: entry.size for entry in filled.list()} == before
    done = collect(filled, keep=KEEP, older_than_s=60, now=LATER)
    assert done == planned
    after = {entry.path: entry.size for entry in filled.list()}
    assert sum(before.values()) - sum(after.values()) == done.size
    assert set(after) == {
        "artifacts/model/kept/manifest.json",
        "artifacts/model/kept/one/weights",
        "checkpoints/base/key/step-0000010-one/manifest.json",
        "checkpoints/base/key/step-0000010-one/model",
        "runs/default.demo/uid/status.json",
    }
    assert artifacts.find("model", "kept") is not None
    assert checkpoints.newest() is not None
    assert str(done).endswith(f"6 items, {done.size:,} bytes")
    assert collect(filled, keep=KEEP, older_than_s=60, now=LATER).removed == ()


def test_what_is_young_stays(filled: Store) -> None:
    assert collect(filled, keep=set(), older_than_s=2_000_000, now=LATER).removed == ()


def test_what_dead_writers_left_goes_when_it_is_old(tmp_path: Path) -> None:
    store = open_store(Profile(root=str(tmp_path)))
    names = ("artifacts/model/.tmp-1-1", "checkpoints/base/key/.tmp-2-2", "runs/a/.tmp-3-3", "runs/a/.tmp-4-4")
    for name in (*names, "artifacts/model/k/.tmp-5-5", "runs/b/uid/.tmp-6-6"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"half")
        if not name.endswith("4"):
            os.utime(tmp_path / name, (1, 1))
    spare = {("model", "k"), ("runs", "runs/b/uid")}  # somebody writes there, however slowly
    assert len(collect(store, keep=set(), spare=spare, older_than_s=60, now=time.time()).removed) == 3
    left = ["artifacts/model/k/.tmp-5-5", "runs/a/.tmp-4-4", "runs/b/uid/.tmp-6-6"]
    assert [entry.path for entry in store.leftovers()] == left


def test_nothing_is_touched_where_somebody_works(filled: Store) -> None:
    spare = {("model", "kept"), ("model", "unfinished"), ("base", "key")}
    removed = collect(filled, keep=KEEP, spare=spare, older_than_s=60, now=LATER).removed
    assert {item.path for item in removed} == {"artifacts/model/dropped", "checkpoints/base/other"}


def test_folders_go_with_all_that_they_hold(tmp_path: Path) -> None:
    store = open_store(Profile(root=str(tmp_path)))
    for name in ("status.json", "logs/a", ".tmp-1-1"):
        (tmp_path / "runs/a/b" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "runs/a/b" / name).write_bytes(b"12345")
    planned = collect(store, keep=set(), folders={"runs/a/b": "old"}, older_than_s=60, now=LATER, dry_run=True)
    done = collect(store, keep=set(), folders={"runs/a/b": "old"}, older_than_s=60, now=LATER)
    assert planned == done and done.size == 15 and not (tmp_path / "runs/a/b").exists()


def test_what_could_not_be_removed_is_not_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = open_store(Profile(root=str(tmp_path)))
    store.write("artifacts/model/k/one/weights", b"12345")
    monkeypatch.setattr(store, "delete", lambda path: None)
    (item,) = collect(store, keep=set(), older_than_s=60, now=LATER).removed
    assert item.size == 0 and item.reason == "nothing refers to it; 5 bytes could not be removed"


def test_each_removal_is_asked_for(filled: Store) -> None:
    def check() -> None:
        raise StorageError("another gc began")

    before = [entry.path for entry in filled.list()]
    with pytest.raises(StorageError, match="another gc began"):
        collect(filled, keep=set(), older_than_s=60, now=LATER, check=check)
    assert [entry.path for entry in filled.list()] == before
