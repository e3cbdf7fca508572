"""The newest whole checkpoint is found whatever was killed or damaged before."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import time
from pathlib import Path

import pytest

from nanochat.spec.errors import StorageError
from nanochat.storage import Checkpoints, Damaged, Profile, Store, open_store
from nanochat.storage.store import FileRecord


def _save(checkpoints: Checkpoints, step: int, launch: str = "one", content: bytes | None = None) -> None:
    folder = checkpoints.folder(step, launch)
    (folder / "model.bin").write_bytes(content or b"%d" % step * 1000)
    (folder / "loop.json").write_text(json.dumps({"step": step}))
    records = checkpoints.store_files(step, launch, folder, ["model.bin", "loop.json"])
    checkpoints.commit(step, launch, records, {"step": step, "loss": 1.5})


def _steps(checkpoints: Checkpoints) -> list[int]:
    return [checkpoint.step for checkpoint in checkpoints.all()]


def test_the_newest_is_found_and_fetched(checkpoints: Checkpoints, store: Store, cache_folder: Path) -> None:
    assert checkpoints.newest() is None
    for step in (5, 900, 1200, 10_000_000):
        _save(checkpoints, step)
    newest = checkpoints.newest()
    assert newest is not None
    assert (newest.step, newest.launch, newest.metadata) == (10_000_000, "one", {"step": 10_000_000, "loss": 1.5})
    folder = checkpoints.fetch(newest)
    assert (folder / "model.bin").read_bytes() == b"10000000" * 1000
    assert _steps(checkpoints) == [10_000_000, 1200, 900, 5]
    assert "step-0001200-one" in store.children("checkpoints/base/key")
    before = checkpoints.newest(before=1200)
    assert before is not None and before.step == 900
    assert not [path for path in cache_folder.glob("writing/*/*")]


def test_files_from_any_folder_are_taken(checkpoints: Checkpoints, tmp_path: Path) -> None:
    (tmp_path / "mine" / "deep").mkdir(parents=True)
    (tmp_path / "mine" / "deep" / "file").write_bytes(b"content")
    checkpoints.commit(1, "one", checkpoints.store_files(1, "one", tmp_path / "mine", ["deep/file"]), {})
    newest = checkpoints.newest()
    assert newest is not None
    assert (checkpoints.fetch(newest) / "deep" / "file").read_bytes() == b"content"
    assert not (tmp_path / "mine").exists()


def test_a_folder_that_cannot_be_made_is_an_error_of_storage(tmp_path: Path) -> None:
    place = tmp_path / "store" / "checkpoints" / "base" / "key" / "step-0000001-one"
    place.parent.mkdir(parents=True)
    place.symlink_to(tmp_path / "nowhere")
    checkpoints = Checkpoints(open_store(Profile(str(tmp_path / "store"))), "base", "key", tmp_path / "cache")
    with pytest.raises(StorageError, match=r"writing failed in .*/step-0000001-one \(FileExistsError EEXIST\)"):
        checkpoints.folder(1, "one")


def test_what_a_launch_saved_at_a_step_stays(checkpoints: Checkpoints) -> None:
    _save(checkpoints, 1, content=b"first")
    _save(checkpoints, 1, content=b"second")
    newest = checkpoints.newest()
    assert newest is not None
    assert (checkpoints.fetch(newest) / "model.bin").read_bytes() == b"first"


@pytest.mark.parametrize("damage", ["manifest", "cut", "flipped", "missing"])
def test_a_damaged_checkpoint_is_passed_over_and_recorded(checkpoints: Checkpoints, store: Store, damage: str) -> None:
    for step in (10, 20, 30):
        _save(checkpoints, step)
    base = "checkpoints/base/key/step-0000030-one"
    match damage:
        case "manifest":
            store.write(f"{base}/manifest.json", store.read(f"{base}/manifest.json", 1 << 20)[:-50])
        case "cut":
            store.write(f"{base}/model.bin", b"30" * 999)
        case "flipped":
            store.write(f"{base}/model.bin", b"31" + b"30" * 999)
        case "missing":
            store.delete(f"{base}/model.bin")
    newest = checkpoints.newest()
    assert newest is not None and newest.step == 20
    assert (checkpoints.fetch(newest) / "model.bin").read_bytes() == b"20" * 1000
    assert len(checkpoints.warnings) == 1
    assert "step-0000030-one is damaged and passed over" in checkpoints.warnings[0]
    checkpoints.newest()
    assert len(checkpoints.warnings) == 1


def test_all_damaged_is_none(checkpoints: Checkpoints, store: Store) -> None:
    for step in (10, 20):
        _save(checkpoints, step)
        store.write(f"checkpoints/base/key/step-{step:07d}-one/model.bin", b"")
    assert checkpoints.newest() is None
    assert len(checkpoints.warnings) == 2


def test_damage_between_finding_and_fetching_is_raised(
    checkpoints: Checkpoints, store: Store, profile: Profile, tmp_path: Path
) -> None:
    _save(checkpoints, 10)
    newest = checkpoints.newest()
    assert newest is not None
    store.write("checkpoints/base/key/step-0000010-one/model.bin", b"10" * 999 + b"11")
    with pytest.raises(Damaged):
        Checkpoints(open_store(profile), "base", "key", tmp_path / "other machine").fetch(newest)


def test_pruning_keeps_the_newest_whole_ones(checkpoints: Checkpoints, store: Store, profile: Profile) -> None:
    for step in (10, 20, 30, 40):
        _save(checkpoints, step)
    store.write("checkpoints/base/key/step-0000040-one/model.bin", b"")
    store.write("checkpoints/base/key/step-0000050-former/model.bin", b"half")
    store.write("checkpoints/base/key/step-0000060-one/model.bin", b"half")  # this launch still writes it
    store.write("checkpoints/base/key/notes.txt", b"no checkpoint")
    store.write("checkpoints/base/other/step-0000010-one/model.bin", b"another key")
    checkpoints.prune(keep=2)
    assert _steps(checkpoints) == [30, 20]
    assert list(store.children("checkpoints/base/key")) == [
        "notes.txt",
        "step-0000020-one",
        "step-0000030-one",
        "step-0000060-one",
    ]
    assert list(store.children("checkpoints/base")) == ["key", "other"]


def test_going_back_discards_what_came_after(checkpoints: Checkpoints) -> None:
    for step in (10, 20, 30):
        _save(checkpoints, step)
    checkpoints.discard(after=10)
    assert _steps(checkpoints) == [10]
    _save(checkpoints, 20, content=b"on another way")
    newest = checkpoints.newest()
    assert newest is not None
    assert (checkpoints.fetch(newest) / "model.bin").read_bytes() == b"on another way"


def test_several_processes_write_one_checkpoint(
    checkpoints: Checkpoints, store: Store, profile: Profile, cache_folder: Path
) -> None:
    """Each stores its own files, side by side, and one commits all; before that there is no checkpoint."""
    other = Checkpoints(open_store(profile), "base", "key", cache_folder)
    folders = [each.folder(7, "one") for each in (checkpoints, other)]
    for name, folder in zip(("first.bin", "second.bin"), folders, strict=True):
        (folder / name).write_bytes(name.encode())
    first, second = (
        each.store_files(7, "one", folder, [name])
        for each, folder, name in zip((checkpoints, other), folders, ("first.bin", "second.bin"), strict=True)
    )
    assert checkpoints.newest() is None
    checkpoints.prune(keep=1)
    checkpoints.commit(7, "one", [*first, *second], {})
    newest = other.newest()
    assert newest is not None
    folder = other.fetch(newest)
    assert {path.name: path.read_bytes() for path in folder.glob("*.bin")} == {
        "first.bin": b"first.bin",
        "second.bin": b"second.bin",
    }


def test_what_is_not_in_the_store_is_not_committed(checkpoints: Checkpoints, store: Store) -> None:
    folder = checkpoints.folder(7, "one")
    (folder / "first.bin").write_bytes(b"1")
    records = checkpoints.store_files(7, "one", folder, ["first.bin"])
    elsewhere = FileRecord("second.bin", 1, "0" * 64)
    with pytest.raises(Damaged, match=r"second\.bin is missing"):
        checkpoints.commit(7, "one", [*records, elsewhere], {})
    assert checkpoints.newest() is None


SAVES = """
import json, sys
from pathlib import Path
from nanochat.storage import Checkpoints, Profile, open_store

settings, cache, launch = json.loads(sys.argv[1]), Path(sys.argv[2]), sys.argv[3]
checkpoints = Checkpoints(open_store(Profile(**settings)), "base", "key", cache)
newest = checkpoints.newest()
assert not checkpoints.warnings, checkpoints.warnings
step = newest.step if newest else 0
print(step, flush=True)
while True:
    step += 1
    folder = checkpoints.folder(step, launch)
    for name in ("model.bin", "optimizer.bin"):
        (folder / name).write_bytes(b"%d" % step * 50_000)
    records = checkpoints.store_files(step, launch, folder, ["model.bin", "optimizer.bin"])
    checkpoints.commit(step, launch, records, {"step": step})
    checkpoints.prune(2)
    print(step, flush=True)
"""


def test_killed_at_any_moment_it_goes_on_from_the_last_whole_one(
    profile: Profile, store: Store, checkpoints: Checkpoints, cache_folder: Path
) -> None:
    settings = json.dumps({"root": profile.root, "endpoint": profile.endpoint, "region": profile.region})
    moments = random.Random(0)
    saved = 0
    for attempt in range(4):
        command = [sys.executable, "-c", SAVES, settings, str(cache_folder), f"launch-{attempt}"]
        with subprocess.Popen(command, stdout=subprocess.PIPE, env=os.environ, text=True) as process:
            assert process.stdout is not None
            first = int(process.stdout.readline())
            assert first >= saved
            process.stdout.readline()
            time.sleep(moments.uniform(0, 0.15))
            process.kill()
            lines = process.stdout.read().split()
        saved = max([saved, first, *(int(line) for line in lines)])
    newest = checkpoints.newest()
    assert newest is not None and newest.step >= saved
    assert (checkpoints.fetch(newest) / "model.bin").read_bytes() == b"%d" % newest.step * 50_000
    checkpoints.prune(2)
    assert len(store.children("checkpoints/base/key")) <= 2
