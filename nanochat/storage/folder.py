"""A store in a folder: atomic by rename, exclusive by hard link, on disk before it is named."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TypeVar

from nanochat.spec.errors import StorageError
from nanochat.storage import files
from nanochat.storage.failures import Damaged, with_retries
from nanochat.storage.store import Entry, FileRecord, Store, check_path

T = TypeVar("T")

FOLDER_TRIES = 10


class FolderStore(Store):
    """Files below a folder, which is made when first written to."""

    def __init__(self, folder: Path) -> None:
        self.folder = Path(os.path.abspath(folder.expanduser()))
        self.root = str(self.folder)

    def _path(self, path: str, *, empty: bool = False) -> Path:
        return self.folder / check_path(path, empty=empty)

    def _with_retries(self, operation: Callable[[], T], *, doing: str, path: str) -> T:
        return with_retries(operation, doing=doing, where=str(self.folder / path))

    def _written(self, operation: Callable[[], T], *, path: str) -> T:
        """Again where another process removed the folder meanwhile; in S3 folders are only names, too."""
        for _ in range(FOLDER_TRIES):
            try:
                return self._with_retries(operation, doing="writing", path=path)
            except FileNotFoundError:
                continue
        raise StorageError(f"the folder of {self.folder / path} cannot be made: correct the profile's root")

    def read(self, path: str, limit: int) -> bytes:
        target = self._path(path)

        def read() -> bytes:
            with target.open("rb") as file:
                return file.read(limit + 1)

        return self._bounded(self._with_retries(read, doing="reading", path=path), path, limit)

    def sha256(self, path: str) -> str:
        target = self._path(path)
        return self._with_retries(lambda: files.sha256(target), doing="reading", path=path)

    def write(self, path: str, data: bytes) -> None:
        target = self._path(path)
        self._written(lambda: files.write(target, data), path=path)

    def create(self, path: str, data: bytes) -> bool:
        target = self._path(path)
        return self._written(lambda: files.create(target, data), path=path)

    def size(self, path: str) -> int | None:
        target = self._path(path)
        try:
            info = self._with_retries(target.stat, doing="reading", path=path)
        except FileNotFoundError:
            return None
        return info.st_size if target.is_file() else None

    def list(self, prefix: str = "") -> Sequence[Entry]:
        return [entry for entry in self._entries(prefix) if not files.is_temporary(entry.path)]

    def leftovers(self, prefix: str = "") -> Sequence[Entry]:
        return [entry for entry in self._entries(prefix) if files.is_temporary(entry.path)]

    def delete_leftover(self, entry: Entry) -> None:
        self._path(entry.path).unlink(missing_ok=True)

    def _entries(self, prefix: str) -> list[Entry]:
        top = self._path(prefix, empty=True)
        found = self._with_retries(lambda: list(_scan(str(top))), doing="listing", path=prefix)
        entries = [
            Entry(path=path[len(self.root) + 1 :], size=info.st_size, modified=info.st_mtime) for path, info in found
        ]
        return sorted(entries, key=lambda entry: entry.path)

    def children(self, prefix: str = "") -> Sequence[str]:
        top = self._path(prefix, empty=True)
        try:
            names = self._with_retries(lambda: os.listdir(top), doing="listing", path=prefix)
        except FileNotFoundError:
            return []
        return sorted(name for name in names if not files.is_temporary(name))

    def delete(self, prefix: str) -> None:
        target = self._path(prefix)
        self._with_retries(lambda: files.remove(target), doing="deleting", path=prefix)

    def upload(self, local: Path, path: str) -> FileRecord:
        target = self._path(path)
        size = local.stat().st_size
        digest = self._written(lambda: files.copy(local, target), path=path)
        return FileRecord(path=path, size=size, sha256=digest)

    def download(self, record: FileRecord, local: Path) -> None:
        source = self._path(record.path)
        digest = self._with_retries(lambda: files.copy(source, local), doing="copying", path=record.path)
        if digest != record.sha256 or local.stat().st_size != record.size:
            local.unlink()
            raise Damaged(f"{self.uri(record.path)} is not what was written")

    def local_path(self, path: str) -> Path | None:
        return self._path(path, empty=True)


def _scan(folder: str) -> Iterator[tuple[str, os.stat_result]]:
    """All files below a folder. What vanishes meanwhile is left out alone; fsspec leaves out its whole folder."""
    try:
        with os.scandir(folder) as found:
            items = list(found)
    except (FileNotFoundError, NotADirectoryError):
        return
    for item in items:
        try:
            if item.is_dir():
                yield from _scan(item.path)
            elif item.is_file():  # a pipe or a device would never end
                yield item.path, item.stat()
        except FileNotFoundError:
            continue
