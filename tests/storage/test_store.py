"""All kinds of store mean the same: atomic writes, one winner, verified transfers, paths that stay inside."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nanochat.spec.errors import StorageError, UserError
from nanochat.storage import Damaged, FileRecord, Profile, Store, open_store
from nanochat.storage.store import check_path

STORES = ("folder", "s3", "gcs", "azure")


def test_files_are_written_read_listed_and_deleted(store: Store) -> None:
    store.write("a/b/one", b"1")
    store.write("a/two", b"22")
    store.write("a/two", b"333")
    store.write("ab", b"")
    assert store.read("a/b/one", 1 << 20) == b"1"
    assert store.read("a/two", 1 << 20) == b"333"
    assert [(entry.path, entry.size) for entry in store.list("a")] == [("a/b/one", 1), ("a/two", 3)]
    assert [entry.path for entry in store.list()] == ["a/b/one", "a/two", "ab"]
    assert list(store.children("a")) == ["b", "two"]
    assert list(store.children()) == ["a", "ab"]
    assert store.size("a/two") == 3
    assert store.exists("ab")
    store.delete("a")
    assert [entry.path for entry in store.list()] == ["ab"]


def test_what_is_not_there(store: Store) -> None:
    with pytest.raises(FileNotFoundError):
        store.read("nothing", 1 << 20)
    assert store.size("nothing") is None
    assert not store.list("nothing")
    assert not store.children("nothing")
    store.delete("nothing")
    store.write("folder/file", b"")
    assert not store.exists("folder")


def test_json_goes_both_ways_and_damage_is_named(store: Store) -> None:
    store.write_json("value.json", {"a": [1, None, "\u00e9"]})
    assert store.read_json("value.json", 1 << 20) == {"a": [1, None, "\u00e9"]}
    store.write("value.json", b"{")
    with pytest.raises(StorageError, match=r"value\.json cannot be read \(not JSON"):
        store.read_json("value.json", 1 << 20)


def test_only_the_first_creates(store: Store) -> None:
    assert store.create("one", b"first")
    assert not store.create("one", b"second")
    assert store.read("one", 1 << 20) == b"first"


def test_sixteen_racing_writers_leave_one_winner(store: Store) -> None:
    start = threading.Barrier(16)

    def write(number: int) -> bool:
        start.wait()
        return store.create("race", b"%d" % number)

    with ThreadPoolExecutor(16) as pool:
        won = list(pool.map(write, range(16)))
    assert won.count(True) == 1
    assert store.read("race", 1 << 20) == b"%d" % won.index(True)
    assert [entry.path for entry in store.list()] == ["race"]


def test_racing_processes_leave_one_winner(profile: Profile) -> None:
    program = (
        "import json, sys\n"
        "from nanochat.storage import Profile, open_store\n"
        "store = open_store(Profile(**json.loads(sys.argv[1])))\n"
        "sys.stdin.read()\n"
        "print(store.create('race', sys.argv[2].encode()))\n"
    )
    settings = json.dumps({"root": profile.root, "endpoint": profile.endpoint, "region": profile.region})
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", program, settings, str(n)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        for n in range(4)
    ]
    for process in processes:
        assert process.stdin is not None
        process.stdin.close()
        process.stdin = None
    answers = [process.communicate(timeout=60)[0].strip() for process in processes]
    assert answers.count("True") == 1
    assert open_store(profile).read("race", 1 << 20) == str(answers.index("True")).encode()


def test_readers_meet_whole_files_while_they_are_replaced(store: Store) -> None:
    contents = {bytes([65 + n]) * 10_000 for n in range(4)}
    store.write("file", min(contents))
    done = threading.Event()

    def replace() -> None:
        for _ in range(10):
            for content in contents:
                store.write("file", content)
        done.set()

    with ThreadPoolExecutor(1) as pool:
        writing = pool.submit(replace)
        while not done.is_set() and not writing.done():
            assert store.read("file", 1 << 20) in contents
        writing.result()


def test_listings_miss_nothing_while_others_write_and_remove(store: Store) -> None:
    for name in ("one", "two"):
        store.write(f"runs/a/{name}", b"")
    with ThreadPoolExecutor(2) as pool:

        def write(number: int) -> None:
            for _ in range(20):
                store.write("runs/a/one", b"again")
                store.write(f"runs/b/{number}", b"")
                store.delete("runs/b")

        writing = [pool.submit(write, number) for number in range(2)]
        while not all(task.done() for task in writing):
            paths = [entry.path for entry in store.list("runs")]
            # versitygw lists the file that it is about to put in the place of another
            assert [path for path in paths if path.startswith("runs/a/") and ".sgwtmp." not in path] == [
                "runs/a/one",
                "runs/a/two",
            ]
        for task in writing:
            task.result()


def test_a_folder_that_is_made_while_it_is_deleted_is_no_trouble(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = open_store(Profile(root=str(tmp_path)))
    store.write("made/since", b"")
    monkeypatch.setattr(Path, "is_dir", lambda _path: False)  # as it was when it was looked for
    store.delete("made")
    assert store.read("made/since", 10) == b""


@pytest.mark.parametrize("size", [0, 1, 40 << 20])
def test_uploads_come_back_verified(store: Store, tmp_path: Path, size: int) -> None:
    local, back = tmp_path / "local", tmp_path / "deep" / "back"
    local.write_bytes(os.urandom(size))
    record = store.upload(local, "big/file")
    assert record == FileRecord("big/file", size, hashlib.sha256(local.read_bytes()).hexdigest())
    assert store.size("big/file") == size
    store.download(record, back)
    assert back.read_bytes() == local.read_bytes()
    assert not store.leftovers()
    assert os.listdir(back.parent) == ["back"]


def test_a_damaged_download_leaves_nothing(store: Store, tmp_path: Path) -> None:
    (tmp_path / "local").write_bytes(b"content")
    record = store.upload(tmp_path / "local", "file")
    for damage in (b"Content", b"con", b""):
        store.write("file", damage)
        with pytest.raises(Damaged, match="not what was written"):
            store.download(record, tmp_path / "back" / "file")
        assert not list((tmp_path / "back").iterdir())


def test_check_finds_nothing_wrong_and_leaves_nothing(store: Store) -> None:
    store.check()
    assert not store.list()


def test_no_more_is_read_than_was_asked_for(store: Store) -> None:
    store.write("empty", b"")
    store.write("file", b"12345")
    assert store.read("empty", 0) == b"" and store.read("empty", 5) == b""
    assert store.read("file", 5) == b"12345" and store.read("file", 1 << 30) == b"12345"
    with pytest.raises(Damaged, match=r"file has more than 4 bytes"):
        store.read("file", 4)
    with pytest.raises(Damaged, match=r"empty cannot be read"):
        store.read_json("empty", 4)


@pytest.mark.parametrize("path", ["", "/a", "a/", "a//b", "..", "a/../../b", "./a", "a\\b", "a\nb", "a\0b"])
def test_paths_stay_inside(store: Store, path: str) -> None:
    for operation in (lambda path: store.read(path, 16), store.size, store.delete, lambda path: store.write(path, b"")):
        with pytest.raises(ValueError, match="not a path within a store"):
            operation(path)


@pytest.mark.parametrize("name", ["a b", "a#1", "a?b=c", "a%20b", "a+b&c", "[x]*", '"', "\u00fc"])
def test_names_mean_themselves(store: Store, name: str) -> None:
    """Not what they mean in an address or a pattern."""
    store.write("odd/other", b"")
    store.write(f"odd/{name}", b"x")
    assert store.read(f"odd/{name}", 1 << 20) == b"x" and store.size(f"odd/{name}") == 1
    assert {entry.path for entry in store.list("odd")} == {"odd/other", f"odd/{name}"}
    assert set(store.children("odd")) == {"other", name}
    store.delete(f"odd/{name}")
    assert [entry.path for entry in store.list("odd")] == ["odd/other"]


def test_what_begins_alike_is_kept_apart(store: Store) -> None:
    for path in ("a", "ab/one", "abc/two"):
        store.write(path, b"")
    assert [entry.path for entry in store.list("ab")] == ["ab/one"]
    assert list(store.children("ab")) == ["one"]
    assert not store.list("a") and not store.list("abcd")
    store.delete("ab")
    assert [entry.path for entry in store.list()] == ["a", "abc/two"]


@given(st.text())
def test_any_path_is_refused_or_stays_below_the_root(path: str) -> None:
    try:
        check_path(path)
    except ValueError:
        return
    root = Path("/root/folder")
    assert os.path.normpath(root / path) == str(root / path)
    assert (root / path).is_relative_to(root) and root / path != root


def test_unknown_roots_are_named() -> None:
    with pytest.raises(UserError, match="it must be a folder, s3://bucket"):
        open_store(Profile(root="ftp://host/x"))
    with pytest.raises(UserError, match="empty"):
        open_store(Profile(root=""))
    for root, named in (("s3://", "s3:// must"), ("gs:///x", "gs:// must"), ("abfs://a@b", "abfs://container")):
        with pytest.raises(UserError, match=named):
            open_store(Profile(root=root))


def test_folder_roots_may_be_uris_or_below_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    assert open_store(Profile(root=f"file://{tmp_path}/x")).root == f"{tmp_path}/x"
    assert open_store(Profile(root="~/x")).root == f"{tmp_path}/x"
    assert open_store(Profile(root="~/x")).uri("a/b") == f"{tmp_path}/x/a/b"


def test_temporary_files_are_not_listed(tmp_path: Path) -> None:
    store = open_store(Profile(root=str(tmp_path)))
    store.write("a/file", b"")
    (tmp_path / "a" / ".tmp-99-0123").write_bytes(b"half")
    assert [entry.path for entry in store.list()] == ["a/file"]
    assert list(store.children("a")) == ["file"]
    assert [entry.path for entry in store.leftovers()] == ["a/.tmp-99-0123"]
