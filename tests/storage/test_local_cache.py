"""The cache is bounded, verified, and shared by processes without getting in each other's way."""

from __future__ import annotations

import hashlib
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from nanochat.spec.errors import UserError
from nanochat.storage import Damaged, FileRecord
from nanochat.storage import cache as cache_module
from nanochat.storage.cache import Cache

DATA = b"d" * 1000
RECORD = FileRecord("deep/file", len(DATA), hashlib.sha256(DATA).hexdigest())


class FakeStore:
    """Counts downloads."""

    def __init__(self) -> None:
        self.downloads = 0

    def download(self, record: FileRecord, local: Path) -> None:
        self.downloads += 1
        local.parent.mkdir(parents=True, exist_ok=True)
        local.write_bytes(DATA[: record.size])


@pytest.fixture
def remote() -> FakeStore:
    """A remote store whose files are all the same."""
    return FakeStore()


@pytest.fixture
def hashed(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """The files that were read to be verified."""
    seen: list[Path] = []
    real: Callable[[Path], str] = cache_module.files.sha256
    monkeypatch.setattr(cache_module.files, "sha256", lambda path: seen.append(path) or real(path))
    return seen


def test_a_file_is_fetched_once(cache_folder: Path, remote: FakeStore) -> None:
    for _ in range(3):
        folder = Cache(cache_folder, 10_000).fetch("a", [RECORD], remote.download)
        assert (folder / "deep" / "file").read_bytes() == DATA
    assert remote.downloads == 1


def test_a_cache_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    cache = Cache(tmp_path / "file" / "cache", 1 << 20)
    with pytest.raises(UserError, match=r"^the cache .*/file/cache is a file where a folder should be"):
        cache.scratch("half")


def test_many_at_once_fetch_once(cache_folder: Path, remote: FakeStore) -> None:
    start = threading.Barrier(8)

    def fetch(_: int) -> bytes:
        cache = Cache(cache_folder, 10_000)
        start.wait()
        return (cache.fetch("a", [RECORD], remote.download) / "deep" / "file").read_bytes()

    with ThreadPoolExecutor(8) as pool:
        assert set(pool.map(fetch, range(8))) == {DATA}
    assert remote.downloads == 1


@pytest.mark.parametrize("change", [b"x" * 1000, b"", None])
def test_a_file_that_changed_is_fetched_again(cache_folder: Path, remote: FakeStore, change: bytes | None) -> None:
    cache = Cache(cache_folder, 10_000)
    path = cache.fetch("a", [RECORD], remote.download) / "deep" / "file"
    path.unlink() if change is None else path.write_bytes(change)
    assert (cache.fetch("a", [RECORD], remote.download) / "deep" / "file").read_bytes() == DATA
    assert remote.downloads == 2


def test_unchanged_files_are_hashed_once_in_a_while(
    tmp_path: Path, cache_folder: Path, hashed: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "file"
    path.write_bytes(DATA)
    for _ in range(3):
        Cache(cache_folder, 0).verify(path, RECORD)
    assert len(hashed) == 1
    monkeypatch.setattr(cache_module, "TRUSTED_SECONDS", 0.0)
    Cache(cache_folder, 0).verify(path, RECORD)
    assert len(hashed) == 2


def test_a_change_that_keeps_size_and_time_is_seen(tmp_path: Path, cache_folder: Path) -> None:
    path, cache = tmp_path / "file", Cache(cache_folder, 0)
    path.write_bytes(DATA)
    cache.verify(path, RECORD)
    before = path.stat()
    path.write_bytes(b"x" * 1000)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    with pytest.raises(Damaged, match="another content"):
        cache.verify(path, RECORD)


@pytest.mark.parametrize("note", [b"", b"{}", b"[]", b"[1, 2]", b"\xff", b'["a", 1, 2, 3, 4, "x"]'])
def test_damaged_notes_only_cost_time(tmp_path: Path, cache_folder: Path, hashed: list[Path], note: bytes) -> None:
    path, cache = tmp_path / "file", Cache(cache_folder, 0)
    path.write_bytes(DATA)
    cache.verify(path, RECORD)
    (written,) = (path for path in cache_folder.glob("verified/*/*"))
    written.write_bytes(note)
    cache.verify(path, RECORD)
    cache.verify(path, RECORD)
    assert len(hashed) == 2


def test_the_least_recently_used_make_room(cache_folder: Path, remote: FakeStore) -> None:
    for name, now in (("a", 1), ("b", 2), ("c", 3), ("a", 4)):
        cache = Cache(cache_folder, 3500)
        folder = cache.fetch(name, [RECORD], remote.download)
        os.utime(cache_folder / "locks" / folder.name, (now, now))
        cache.close()
    assert remote.downloads == 3
    Cache(cache_folder, 3500).fetch("d", [RECORD], remote.download)  # 'b' has to go
    for name in ("a", "c"):
        Cache(cache_folder, 3500).fetch(name, [RECORD], remote.download)
    assert remote.downloads == 4
    assert sum(path.stat().st_size for path in cache_folder.glob("entries/*/deep/*")) == 3000


def test_what_is_in_use_stays_until_it_is_released(
    cache_folder: Path, remote: FakeStore, caplog: pytest.LogCaptureFixture
) -> None:
    user, other = Cache(cache_folder, 2500), Cache(cache_folder, 2500)
    used = [user.fetch(name, [RECORD], remote.download) for name in ("a", "b")]
    other.fetch("c", [RECORD], remote.download)
    assert "all that it holds is in use" in caplog.text
    assert all((folder / "deep" / "file").exists() for folder in used)
    user.release("a")
    other.fetch("d", [RECORD], remote.download)
    assert [(folder / "deep" / "file").exists() for folder in used] == [False, True]


class Listing:
    """What `os.scandir` returns, of entries that were read before."""

    def __init__(self, entries: list[os.DirEntry[str]]) -> None:
        self.entries = iter(entries)

    def __iter__(self) -> Iterator[os.DirEntry[str]]:
        return self

    def __next__(self) -> os.DirEntry[str]:
        return next(self.entries)

    def __enter__(self) -> Listing:
        return self

    def __exit__(self, *_: object) -> None:
        pass


def test_compiled_code_that_changes_meanwhile_is_no_trouble(
    cache_folder: Path, remote: FakeStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A compiler in another thread or process removes files and folders between a look at what there is and at each."""
    compiled = Cache(cache_folder, 1500).fetch("compiled code", (), remote.download)
    real = os.scandir

    def scandir(folder: Path | str | int) -> Listing:
        is_compiled = str(folder) == str(compiled)
        if is_compiled:
            (compiled / "kernel").mkdir(exist_ok=True)
            (compiled / ".1.2.tmp").touch()
        with real(folder) as found:
            entries = list(found)
        if is_compiled:
            (compiled / "kernel").rmdir()
            (compiled / ".1.2.tmp").unlink()
        return Listing(entries)

    monkeypatch.setattr(os, "scandir", scandir)
    assert Cache(cache_folder, 1500).fetch("compiled code", (), remote.download) == compiled
    assert (Cache(cache_folder, 1500).fetch("a", [RECORD], remote.download) / "deep" / "file").exists()


def test_what_cannot_fit_is_named(cache_folder: Path, remote: FakeStore) -> None:
    with pytest.raises(UserError, match=r"1,000 bytes do not fit in the cache .* of 999: make it larger"):
        Cache(cache_folder, 999).fetch("a", [RECORD], remote.download)


USES = """
import os, signal, sys
from pathlib import Path
from nanochat.storage import FileRecord
from nanochat.storage.cache import Cache

cache = Cache(Path(sys.argv[1]), 1500)
(cache.scratch("half") / "file").write_bytes(b"half")
def download(record, local):
    local.parent.mkdir(parents=True)
    (local.parent / ".tmp-1-1").write_bytes(b"half")
    if sys.argv[2] == "fetching":
        os.kill(os.getpid(), signal.SIGKILL)
    local.write_bytes(b"d" * 1000)
cache.fetch("a", [FileRecord("deep/file", 1000, sys.argv[3])], download)
os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.parametrize("moment", ["fetching", "using"])
def test_what_a_killed_process_used_or_left_is_free_again(
    cache_folder: Path, remote: FakeStore, caplog: pytest.LogCaptureFixture, moment: str
) -> None:
    command = [sys.executable, "-c", USES, str(cache_folder), moment, RECORD.sha256]
    assert subprocess.run(command, timeout=60).returncode == -signal.SIGKILL
    cache = Cache(cache_folder, 1500)
    assert (cache.fetch("a", [RECORD], remote.download) / "deep" / "file").read_bytes() == DATA
    assert remote.downloads == (1 if moment == "fetching" else 0)
    assert not list(cache_folder.rglob("entries/**/.tmp-*"))
    cache.release("a")
    cache.fetch("b", [RECORD], remote.download)
    assert not list(cache_folder.glob("writing/*"))
    assert caplog.text == ""
