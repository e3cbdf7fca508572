"""An artifact is whole or absent: whoever writes, dies or damages what."""

from __future__ import annotations

import json
import logging
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from nanochat.spec.errors import StorageError
from nanochat.storage import Artifacts, Manifest, Profile, Store, open_store

CONTENT = {"weights.bin": b"w" * 5000, "deep/config.json": b"{}", "empty": b""}


def _make(artifacts: Artifacts, launch: str, *, key: str = "key", content: dict[str, bytes] | None = None) -> Manifest:
    with artifacts.writer("model", key, launch) as writer:
        for name, data in (content or CONTENT).items():
            path = writer.folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)
        return writer.commit(recipe={"depth": 4}, inputs={"tokenizer/bpe": "t"}, metadata={"loss": 1.5})


def _read(folder: Path) -> dict[str, bytes]:
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def test_what_was_committed_is_found_and_fetched(artifacts: Artifacts, store: Store) -> None:
    assert artifacts.find("model", "key") is None
    manifest = _make(artifacts, "one")
    assert (manifest.kind, manifest.key, manifest.launch) == ("model", "key", "one")
    assert manifest.recipe == {"depth": 4}
    assert manifest.size == 5002
    assert artifacts.find("model", "key") == manifest
    assert list(artifacts.list("model")) == [manifest]
    assert artifacts.damaged("model", "key") == ()
    assert _read(artifacts.fetch(manifest)) == CONTENT
    assert (artifacts.fetch(manifest, ["weights.bin"]) / "weights.bin").read_bytes() == CONTENT["weights.bin"]
    assert artifacts.uri(manifest) == f"{store.root}/artifacts/model/key/one"
    with pytest.raises(StorageError, match="has no file 'other'"):
        artifacts.fetch(manifest, ["other"])
    artifacts.remove("model", "key")
    assert artifacts.find("model", "key") is None
    assert not store.list()


def test_many_are_looked_up_at_once(artifacts: Artifacts) -> None:
    made = {("model", key): _make(artifacts, "one", key=key) for key in ("a", "b", "c")}
    assert artifacts.find_all([*made, ("model", "d"), ("text", "a")]) == made


def test_a_folder_without_a_manifest_does_not_exist(artifacts: Artifacts, store: Store) -> None:
    store.write("artifacts/model/key/one/weights.bin", b"w")
    assert artifacts.find("model", "key") is None
    assert artifacts.damaged("model", "key") == ()
    assert list(artifacts.list("model")) == []


def test_the_second_writer_gets_the_winners_manifest_and_leaves_nothing(artifacts: Artifacts, store: Store) -> None:
    first = _make(artifacts, "one")
    assert _make(artifacts, "two", content={"weights.bin": b"other"}) == first
    assert _make(artifacts, "one", content={"weights.bin": b"other"}) == first  # the same launch, twice
    assert _read(artifacts.fetch(first)) == CONTENT
    assert {path.split("/")[3] for path in (entry.path for entry in store.list())} == {"one", "manifest.json"}


def test_sixteen_racing_writers_leave_one_artifact(artifacts: Artifacts, store: Store) -> None:
    start = threading.Barrier(16)

    def make(number: int) -> Manifest:
        with artifacts.writer("model", "key", f"launch-{number}") as writer:
            (writer.folder / "weights.bin").write_bytes(b"%d" % number)
            start.wait()
            return writer.commit(recipe={}, inputs={})

    with ThreadPoolExecutor(16) as pool:
        manifests = list(pool.map(make, range(16)))
    winner = manifests[0]
    assert all(manifest == winner for manifest in manifests)
    assert artifacts.find("model", "key") == winner
    assert _read(artifacts.fetch(winner)) == {"weights.bin": winner.launch.removeprefix("launch-").encode()}
    assert {entry.path for entry in store.list()} == {
        "artifacts/model/key/manifest.json",
        f"artifacts/model/key/{winner.launch}/weights.bin",
    }


@pytest.mark.parametrize("commits", [False, True])
def test_an_error_leaves_nothing(artifacts: Artifacts, store: Store, cache_folder: Path, commits: bool) -> None:
    error: Exception = KeyError("x")
    with pytest.raises(KeyError), artifacts.writer("model", "key", "one") as writer:
        (writer.folder / "weights.bin").write_bytes(b"w")
        if commits:
            writer.commit(recipe={}, inputs={})
        raise error
    # What was committed before the error stays.
    assert bool(store.list()) == commits
    assert (artifacts.find("model", "key") is not None) == commits
    assert not list(cache_folder.glob("writing/*/*"))


DAMAGE: dict[str, Callable[[bytes], bytes]] = {
    "flipped": lambda data: data[:-3] + bytes([data[-3] ^ 1]) + data[-2:],
    "cut": lambda data: data[: len(data) // 2],
    "empty": lambda data: b"",
    "garbage": lambda data: b"\xff\x00garbage",
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_a_corrupt_manifest_is_passed_over_and_replaced(
    artifacts: Artifacts, store: Store, caplog: pytest.LogCaptureFixture, kind: str
) -> None:
    _make(artifacts, "one")
    path = "artifacts/model/key/manifest.json"
    bad = DAMAGE[kind](store.read(path, 1 << 20))
    store.write(path, bad)
    with caplog.at_level(logging.WARNING):
        assert artifacts.find("model", "key") is None
    assert "artifacts/model/key is passed over" in caplog.text
    assert list(artifacts.list("model")) == []
    assert len(artifacts.damaged("model", "key")) == 1
    again = _make(artifacts, "two")
    assert again.launch == "two"
    assert artifacts.find("model", "key") == again
    assert _read(artifacts.fetch(again)) == CONTENT
    aside = [entry.path for entry in store.list() if ".damaged-" in entry.path]
    assert [store.read(path, 1 << 20) for path in aside] == [bad]
    assert len(artifacts.damaged("model", "key")) == 1  # it stays known


def test_sixteen_writers_replace_a_corrupt_manifest_once(artifacts: Artifacts, store: Store) -> None:
    path = "artifacts/model/key/manifest.json"
    store.write(path, b"garbage")
    with ThreadPoolExecutor(8) as pool:
        manifests = list(pool.map(lambda n: _make(artifacts, f"launch-{n}"), range(8)))
    found = artifacts.find("model", "key")
    assert found in manifests
    assert _read(artifacts.fetch(found)) == CONTENT


def test_a_manifest_of_another_artifact_is_damage(artifacts: Artifacts, store: Store) -> None:
    _make(artifacts, "one")
    store.write("artifacts/model/other/manifest.json", store.read("artifacts/model/key/manifest.json", 1 << 20))
    assert artifacts.find("model", "other") is None
    assert len(artifacts.damaged("model", "other")) == 1


@pytest.mark.parametrize("content", [None, b"", b"w" * 4999])
def test_a_missing_or_cut_file_is_seen_before_anything_is_fetched(
    artifacts: Artifacts, store: Store, content: bytes | None
) -> None:
    _make(artifacts, "one")
    path = "artifacts/model/key/one/weights.bin"
    store.delete(path) if content is None else store.write(path, content)
    assert artifacts.find("model", "key") is None
    assert "weights.bin" in artifacts.damaged("model", "key")[0]
    assert _read(artifacts.fetch(_make(artifacts, "two"))) == CONTENT


@pytest.mark.parametrize("fetched_before", [False, True])
def test_a_corrupt_file_is_seen_when_fetched_and_then_counts_as_absent(
    profile: Profile, store: Store, artifacts: Artifacts, tmp_path: Path, fetched_before: bool
) -> None:
    manifest = _make(artifacts, "one")
    if fetched_before:
        artifacts.fetch(manifest)
    store.write("artifacts/model/key/one/weights.bin", b"x" * 5000)
    elsewhere = Artifacts(open_store(profile), tmp_path / "other machine")
    with pytest.raises(StorageError, match=r"is damaged .*weights\.bin.* set aside, so run again"):
        elsewhere.fetch(manifest)
    assert artifacts.find("model", "key") is None
    assert len(artifacts.damaged("model", "key")) == 1
    again = _make(artifacts, "one")  # even the same launch may make it anew
    assert _read(artifacts.fetch(again)) == CONTENT
    assert _read(elsewhere.fetch(again)) == CONTENT


def test_a_fetch_that_meets_a_newer_manifest_leaves_it_alone(
    profile: Profile, store: Store, artifacts: Artifacts, tmp_path: Path
) -> None:
    old = _make(artifacts, "one")
    artifacts.remove("model", "key")
    new = _make(artifacts, "two")
    with pytest.raises(StorageError, match="is damaged"):
        Artifacts(open_store(profile), tmp_path / "other machine").fetch(old)
    assert artifacts.find("model", "key") == new


CRASH = """
import json, os, signal, sys
from pathlib import Path
from nanochat.storage import Artifacts, Profile, open_store

settings, cache, moment = json.loads(sys.argv[1]), Path(sys.argv[2]), sys.argv[3]
store = open_store(Profile(**settings))
die = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
with Artifacts(store, cache).writer("model", "key", "one") as writer:
    (writer.folder / "weights.bin").write_bytes(b"half")
    if moment == "written":
        die()
    if moment == "stored":
        store.create = die
    writer.commit(recipe={}, inputs={})
    die()
"""


@pytest.mark.parametrize("moment", ["written", "stored", "committed"])
def test_a_killed_writer_leaves_a_whole_artifact_or_none(
    profile: Profile, artifacts: Artifacts, store: Store, cache_folder: Path, moment: str
) -> None:
    settings = {"root": profile.root, "endpoint": profile.endpoint, "region": profile.region}
    command = [sys.executable, "-c", CRASH, json.dumps(settings), str(cache_folder), moment]
    assert subprocess.run(command, env=os.environ, timeout=60).returncode == -signal.SIGKILL
    found = artifacts.find("model", "key")
    assert (found is not None) == (moment == "committed")
    if moment == "stored":
        assert store.exists("artifacts/model/key/one/weights.bin")
    manifest = _make(artifacts, "one")  # the same launch goes on after its process was killed
    assert manifest == found or _read(artifacts.fetch(manifest)) == CONTENT
    assert artifacts.damaged("model", "key") == ()


def test_the_closest_artifact_explains_a_miss(artifacts: Artifacts) -> None:
    for key, vocabulary in (("a", 512), ("b", 1024)):
        with artifacts.writer("tokenizer", key, "one") as writer:
            writer.commit(
                recipe={"settings": {"vocabSize": vocabulary, "pattern": "p"}, "schema": 1}, inputs={"text/0": key}
            )
    assert artifacts.closest("model", {}, {}) is None
    near = artifacts.closest(
        "tokenizer", {"settings": {"vocabSize": 2048, "pattern": "p"}, "schema": 1, "name": "bpe"}, {"text/0": "b"}
    )
    assert near is not None
    assert near.manifest.key == "b"
    assert near.settings == {"settings.vocabSize": (1024, 2048), "name": (None, "bpe")}
    assert near.inputs == ()
    near = artifacts.closest("tokenizer", near.manifest.recipe, {"text/0": "c", "text/1": "d"})
    assert near is not None
    assert (near.settings, near.inputs) == ({}, ("text/0", "text/1"))
    assert artifacts.closest("tokenizer", near.manifest.recipe, {}, name="other") is None, "another stage made those"
    with artifacts.writer("tokenizer", "c", "one") as writer:
        writer.commit(recipe={"settings": {"vocabSize": 9}, "schema": 1, "name": "other"}, inputs={})
    named = artifacts.closest("tokenizer", near.manifest.recipe, {"text/0": "c", "text/1": "d"}, name="other")
    assert named is not None and named.manifest.key == "c"


@pytest.mark.parametrize("name", ["", "a/b", "..", ".tmp-1", "a b", "x" * 300])
def test_names_that_storage_cannot_use_are_refused(artifacts: Artifacts, name: str) -> None:
    for operation in (
        lambda: artifacts.find(name, "key"),
        lambda: artifacts.find("model", name),
        lambda: artifacts.writer("model", "key", name),
    ):
        with pytest.raises(ValueError, match="not a name that storage can use"):
            operation()
