"""One store over a folder or object storage (S3, GCS, Azure, by fsspec), with the same meaning.

    store = open_store(Profile(root="s3://bucket/prefix", endpoint="http://localhost:7070"))
    store.write("runs/a/progress.json", b"{}")          # atomic: readers see the old file or the new one
    store.create("artifacts/x/manifest.json", b"...")   # True for exactly one of those who try

Paths are relative to the root, with '/'. Credentials come from the environment, the machine's identity or a folder.
Whoever reads says how much at most. What is missing raises FileNotFoundError; all else a UserError or StorageError that
says what to change.
"""

from __future__ import annotations

import json
import uuid
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from nanochat.parse import Malformed
from nanochat.parse.json_text import read_json
from nanochat.spec.errors import StorageError, UserError
from nanochat.storage.failures import Damaged


@dataclass(frozen=True, slots=True)
class Profile:
    """Where a store is. `root` is a folder or s3://bucket/prefix (or gs, abfs); credentials are never part of it."""

    root: str
    endpoint: str | None = None
    region: str | None = None
    anonymous: bool = False

    def towards(self, address: str) -> Profile:
        """How an address is reached: as this store where it is of the same kind of storage, else as its kind is."""
        return self if urlsplit(self.root).scheme == urlsplit(address).scheme else Profile(root=address)


@dataclass(frozen=True, slots=True)
class Entry:
    """A file in a listing; `modified` is in seconds since 1970."""

    path: str
    size: int
    modified: float


@dataclass(frozen=True, slots=True)
class FileRecord:
    """A file with its size in bytes and SHA-256."""

    path: str
    size: int
    sha256: str


def check_path(path: str, *, empty: bool = False) -> str:
    """The path, if it stays below the root and means the same to every kind of store."""
    if path == "" and empty:
        return path
    parts = path.split("/")
    if any(part in ("", ".", "..") or "\\" in part or not part.isprintable() for part in parts):
        raise ValueError(f"not a path within a store: {path!r}")
    return path


class Store(ABC):
    """Files under one root. All operations may be used by several threads and processes at once."""

    root: str

    def __repr__(self) -> str:
        return f"Store({self.root!r})"

    def uri(self, path: str = "") -> str:
        """The full address of a path."""
        check_path(path, empty=True)
        return f"{self.root}/{path}" if path else self.root

    @abstractmethod
    def read(self, path: str, limit: int) -> bytes:
        """A file's content of at most `limit` bytes; `Damaged` where there are more: no more of them are read."""

    @abstractmethod
    def sha256(self, path: str) -> str:
        """The SHA-256 of a file of any size, which is read piece by piece."""

    @abstractmethod
    def write(self, path: str, data: bytes) -> None:
        """Write or replace a small file atomically."""

    @abstractmethod
    def create(self, path: str, data: bytes) -> bool:
        """Write a small file only if none is there: True for the one caller that made it."""

    @abstractmethod
    def size(self, path: str) -> int | None:
        """Size of a file in bytes, None where there is none."""

    @abstractmethod
    def list(self, prefix: str = "") -> Sequence[Entry]:
        """All files below a folder at any depth, by path, but temporary ones; empty where there is none."""

    @abstractmethod
    def children(self, prefix: str = "") -> Sequence[str]:
        """Names of the folders and files directly in a folder, sorted; temporary ones are left out."""

    @abstractmethod
    def delete(self, prefix: str) -> None:
        """Remove a file, or a folder with all it holds; nothing happens where there is none."""

    @abstractmethod
    def upload(self, local: Path, path: str) -> FileRecord:
        """Copy a local file of any size to a path, verified."""

    @abstractmethod
    def download(self, record: FileRecord, local: Path) -> None:
        """Copy a file of any size from `record.path` in the store: whole and verified, or `Damaged`."""

    @abstractmethod
    def local_path(self, path: str) -> Path | None:
        """The file or folder itself where the store is a folder; None where it is remote."""

    @abstractmethod
    def leftovers(self, prefix: str = "") -> Sequence[Entry]:
        """Temporary files of writers, dead or alive; their age tells."""

    @abstractmethod
    def delete_leftover(self, entry: Entry) -> None:
        """Remove one of `leftovers`."""

    def _bounded(self, data: bytes, path: str, limit: int) -> bytes:
        """The data as it is, where of the `limit` + 1 bytes that were asked for the last was not there."""
        if len(data) > limit:
            raise Damaged(f"{self.uri(path)} has more than {limit:,} bytes: it is not what was written")
        return data

    def exists(self, path: str) -> bool:
        """Whether there is a file at a path."""
        return self.size(path) is not None

    def write_json(self, path: str, value: Any) -> None:
        """Write a value as JSON, atomically."""
        self.write(path, (json.dumps(value, indent=1) + "\n").encode())

    def read_json(self, path: str, limit: int) -> Any:
        """The value of a JSON file of at most `limit` bytes; `Damaged` where it holds something else."""
        try:
            return read_json(self.read(path, limit), limit=limit)
        except Malformed as error:
            raise Damaged(f"{self.uri(path)} cannot be read ({error}): remove it, then run again") from None

    def check(self) -> None:
        """Try all that a run needs (write, exclusive create, list, read, delete); raises what is wrong."""
        path = f"checks/{uuid.uuid4().hex}"
        first, second = self.create(path, b"1"), self.create(path, b"2")
        listed = [entry.path for entry in self.list("checks")]
        content = self.read(path, 16)
        self.delete(path)
        if not first or second:
            raise UserError(
                f"{self.root} does not honour exclusive creation, which artifacts depend on: use a server that does"
            )
        if content != b"1" or path not in listed:
            raise StorageError(f"{self.root} did not return what was just written: check the storage server")
