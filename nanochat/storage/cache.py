"""The local cache: files of remote stores, size-bounded and verified; and the memory of what was verified.

An entry is the folder of one artifact or checkpoint. All processes of a machine may share a cache: an entry
is fetched by one while the others wait; the least recently used entries make room, never one that a living
process uses. Locks are the kernel's (flock), so that they die with their process. Layout:

    entries/<digest>/...      files of one entry
    locks/<digest>            held while an entry is fetched; its time is the entry's last use
    users/<id>                held by a living process for as long as it lives; names the entries in use
    writing/<id>/...          what it writes that is not stored yet
    verified/<digest>         size, times and inode of a file when its SHA-256 was last found right
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import logging
import os
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from nanochat.spec.errors import UserError
from nanochat.storage import files
from nanochat.storage.failures import Damaged, to_user_error, translate_errors
from nanochat.storage.store import FileRecord

log = logging.getLogger(__name__)

TRUSTED_SECONDS = 7 * 86_400.0  # an unchanged file is hashed again after that, for disks forget silently


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    path.parent.mkdir(parents=True, exist_ok=True)
    handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:32]


class Cache:
    """A cache in a folder, of at most `limit` bytes; `close` or the process's end lets its entries go."""

    def __init__(self, folder: Path, limit: int) -> None:
        self.folder = Path(os.path.abspath(folder.expanduser()))
        self.limit = limit
        self._user: Path | None = None
        self._handle = -1
        self._owner = 0
        self._used: set[str] = set()

    def verify(self, path: Path, record: FileRecord) -> None:
        """`Damaged` where a file is not what the record says. An unchanged file is hashed once in a week."""
        try:
            info = path.stat()
        except FileNotFoundError:
            raise Damaged(f"{path} is missing") from None
        if info.st_size != record.size:
            raise Damaged(f"{path} has {info.st_size:,} bytes instead of {record.size:,}")
        if not self._remembered(path, info, record.sha256):
            if files.sha256(path) != record.sha256:
                raise Damaged(f"{path} has another content than was written")
            self.remember(path, record.sha256, info)

    def remember(self, path: Path, sha256: str, info: os.stat_result | None = None) -> None:
        """Note that a file was found right, as of `info`, so that it is not hashed again."""
        state = [sha256, *_state(info or path.stat()), time.time()]
        note = self._note(path)
        scratch = files.temporary(note)
        try:
            note.parent.mkdir(parents=True, exist_ok=True)
            scratch.write_text(json.dumps(state))
            os.replace(scratch, note)
        except OSError:
            # Only speed is lost.
            scratch.unlink(missing_ok=True)

    def _remembered(self, path: Path, info: os.stat_result, sha256: str) -> bool:
        try:
            state = json.loads(self._note(path).read_bytes())
            return state[:-1] == [sha256, *_state(info)] and 0 <= time.time() - state[-1] < TRUSTED_SECONDS
        except (OSError, ValueError, TypeError, LookupError):
            return False

    def _note(self, path: Path) -> Path:
        name = _digest(os.path.realpath(path))
        return self.folder / "verified" / name[:2] / name

    @contextmanager
    def once(self, address: str) -> Iterator[None]:
        """While one process of this machine is in here for an address, the others wait."""
        with _locked(self.folder / "locks" / _digest(address)):
            yield

    def folder_for(self, address: str) -> Path:
        """The folder of an entry that somebody else fills; it stays as one that is fetched does."""
        return self.fetch(address, (), lambda *_: None)

    def fetch(self, address: str, records: Sequence[FileRecord], download: Callable[[FileRecord, Path], None]) -> Path:
        """The folder of an entry, holding all `records`, each verified; `download` gets what is missing.

        The entry stays until `release`, `close` or the end of the process.
        """
        name = _digest(address)
        folder, lock = self.folder / "entries" / name, self.folder / "locks" / name
        try:
            self._pin(name)
            with _locked(lock):
                for left in _paths(folder):
                    if left.name.startswith(files.TEMPORARY):  # by a process that was killed
                        files.remove(left)
                missing = [record for record in records if not self._holds(folder, record)]
                if missing:
                    self._make_room(sum(record.size for record in missing))
                for record in missing:
                    target = folder / record.path
                    download(record, target)
                    self.remember(target, record.sha256)
                os.utime(lock)
        except OSError as error:
            raise to_user_error(error, doing="writing", where=f"the cache {self.folder}") from error
        folder.mkdir(parents=True, exist_ok=True)
        return folder

    def _holds(self, folder: Path, record: FileRecord) -> bool:
        try:
            self.verify(folder / record.path, record)
        except Damaged:
            files.remove(folder / record.path)
            return False
        return True

    def release(self, address: str) -> None:
        """Let an entry go: it may now make room for others. Files that are open or mapped stay readable."""
        with _locked(self.folder / "lock"):
            self._used.discard(_digest(address))
            self._register()

    def close(self) -> None:
        """Let all entries go."""
        if self._user is not None and self._owner == os.getpid():
            os.close(self._handle)
        self._user, self._used = None, set()

    def scratch(self, name: str) -> Path:
        """An empty folder for writing; it is removed when this process has ended without doing so."""
        with translate_errors(doing="writing", where=f"the cache {self.folder}"):
            with _locked(self.folder / "lock"):
                self._register()
                self._others()
            assert self._user is not None
            folder = self.folder / "writing" / self._user.name / name
            files.remove(folder)
            folder.mkdir(parents=True)
        return folder

    def _pin(self, name: str) -> None:
        with _locked(self.folder / "lock"):
            self._used.add(name)
            self._register()

    def _register(self) -> None:
        """Note which entries this process uses, in a file that it holds locked; under the cache's lock."""
        if self._user is None or self._owner != os.getpid():  # a fork begins anew
            self._owner = os.getpid()
            self._user = self.folder / "users" / uuid.uuid4().hex
            self._user.parent.mkdir(parents=True, exist_ok=True)
            self._handle = os.open(self._user, os.O_RDWR | os.O_CREAT, 0o600)
            fcntl.flock(self._handle, fcntl.LOCK_EX)
        self._user.write_text("\n".join(sorted(self._used)))

    def _others(self) -> set[str]:
        """Entries in use by other living processes. What dead ones left is removed; under the cache's lock."""
        used: set[str] = set()
        for user in (self.folder / "users").iterdir():
            if user == self._user:
                continue
            handle = os.open(user, os.O_RDWR)
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                files.remove(self.folder / "writing" / user.name)
                user.unlink()
            except BlockingIOError:
                used.update(user.read_text().split())
            finally:
                os.close(handle)
        return used

    def _make_room(self, needed: int) -> None:
        if needed > self.limit:
            raise UserError(f"{needed:,} bytes do not fit in the cache {self.folder} of {self.limit:,}: make it larger")
        with _locked(self.folder / "lock"):
            entries = self.folder / "entries"
            sizes = {
                entry.name: sum(_size(path) for path in _paths(entry))
                for entry in (entries.iterdir() if entries.is_dir() else ())
            }
            total, used = sum(sizes.values()) + needed, self._used | self._others()
            for name in sorted(sizes.keys() - used, key=self._last_use):
                if total <= self.limit:
                    return
                files.remove(entries / name)
                (self.folder / "locks" / name).unlink(missing_ok=True)
                total -= sizes[name]
        if total > self.limit:
            log.warning("the cache %s exceeds its limit: all that it holds is in use", self.folder)

    def _last_use(self, name: str) -> float:
        try:
            return (self.folder / "locks" / name).stat().st_mtime
        except FileNotFoundError:
            return 0.0


def _paths(folder: Path) -> Iterator[Path]:
    """Files below a folder. Compiled code changes at any time: what goes away meanwhile is passed over."""
    for parent, _, names in os.walk(folder):
        yield from (Path(parent, name) for name in names)


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0


def _state(info: os.stat_result) -> tuple[int, int, int, int]:
    return info.st_size, info.st_mtime_ns, info.st_ctime_ns, info.st_ino
