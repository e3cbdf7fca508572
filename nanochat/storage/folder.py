"""A store in a folder: atomic by rename, exclusive by hard link, on disk before it is named."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar, cast

from fsspec.implementations.local import LocalFileSystem

from nanochat.storage import files
from nanochat.storage.failures import Damaged, tried
from nanochat.storage.store import Entry, FileRecord, Store, check_path

T = TypeVar("T")


class FolderStore(Store):
    """Files below a folder, which is made when first written to."""

    def __init__(self, folder: Path) -> None:
        self.folder = Path(os.path.abspath(folder.expanduser()))
        self.root = str(self.folder)
        self._fs = LocalFileSystem(skip_instance_cache=True)

    def _path(self, path: str, *, empty: bool = False) -> Path:
        return self.folder / check_path(path, empty=empty)

    def _tried(self, operation: Callable[[], T], *, doing: str, path: str) -> T:
        return tried(operation, doing=doing, where=str(self.folder / path))

    def read(self, path: str) -> bytes:
        target = self._path(path)
        return self._tried(target.read_bytes, doing="reading", path=path)

    def write(self, path: str, data: bytes) -> None:
        target = self._path(path)
        self._tried(lambda: files.write(target, data), doing="writing", path=path)

    def create(self, path: str, data: bytes) -> bool:
        target = self._path(path)
        return self._tried(lambda: files.create(target, data), doing="writing", path=path)

    def size(self, path: str) -> int | None:
        target = self._path(path)
        try:
            info = self._tried(target.stat, doing="reading", path=path)
        except FileNotFoundError:
            return None
        return info.st_size if target.is_file() else None

    def list(self, prefix: str = "") -> Sequence[Entry]:
        return [entry for entry in self._entries(prefix) if not files.is_temporary(entry.path)]

    def leftovers(self, prefix: str = "") -> Sequence[Entry]:
        return [entry for entry in self._entries(prefix) if files.is_temporary(entry.path)]

    def delete_leftover(self, entry: Entry) -> None:
        self._path(entry.path).unlink(missing_ok=True)

    def _entries(self, prefix: str) -> Iterator[Entry]:
        top = self._path(prefix, empty=True)
        found: dict[str, Any] = self._tried(
            lambda: cast(Any, self._fs.find(str(top), detail=True)), doing="listing", path=prefix
        )
        for name, info in sorted(found.items()):
            path = Path(name).relative_to(self.folder).as_posix()
            if info["type"] == "file" and path != ".":
                yield Entry(path=path, size=info["size"], modified=info["mtime"])

    def children(self, prefix: str = "") -> Sequence[str]:
        top = self._path(prefix, empty=True)
        try:
            names = self._tried(lambda: os.listdir(top), doing="listing", path=prefix)
        except FileNotFoundError:
            return []
        return sorted(name for name in names if not files.is_temporary(name))

    def delete(self, prefix: str) -> None:
        target = self._path(prefix)
        self._tried(lambda: files.remove(target), doing="deleting", path=prefix)

    def upload(self, local: Path, path: str) -> FileRecord:
        target = self._path(path)
        digest = self._tried(lambda: files.copy(local, target), doing="writing", path=path)
        return FileRecord(path=path, size=target.stat().st_size, sha256=digest)

    def download(self, record: FileRecord, local: Path) -> None:
        source = self._path(record.path)
        digest = self._tried(lambda: files.copy(source, local), doing="copying", path=record.path)
        if digest != record.sha256 or local.stat().st_size != record.size:
            local.unlink()
            raise Damaged(f"{self.uri(record.path)} is not what was written")

    def local_path(self, path: str) -> Path | None:
        return self._path(path, empty=True)
