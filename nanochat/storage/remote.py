"""A store in object storage: one implementation over fsspec's calls, for all that there is a backend of.

An object appears whole or not at all. Exclusive creation is the server's (`pipe_file(mode="create")`); the writer's
mark on the object tells a creation whose answer was lost from one by another writer.
"""

from __future__ import annotations

import hashlib
import os
import threading
import uuid
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import urlsplit

from nanochat.spec.errors import StorageError
from nanochat.storage import files
from nanochat.storage.backends import find_backend
from nanochat.storage.failures import (
    DELAYS,
    Damaged,
    MissingBucket,
    codes,
    is_disk_full,
    to_user_error,
    with_retries,
)
from nanochat.storage.store import Entry, FileRecord, Profile, Store, check_path

T = TypeVar("T")

DELETIONS_AT_ONCE = 16
PIECE = 8 << 20  # bytes that are read at a time of a large object
NO_RANGE = {"InvalidRange", "416"}  # codes of a part of an empty object
EXISTS = {"PreconditionFailed", "412"}  # codes of an exclusive creation that came second


class RemoteStore(Store):
    """Objects below scheme://bucket/prefix."""

    def __init__(self, profile: Profile, delays: Sequence[float] = DELAYS, credentials: Path | None = None) -> None:
        """`delays` are the seconds before each further try after an error that may pass."""
        parts = urlsplit(profile.root)
        self._bucket, self._prefix = parts.netloc, parts.path.strip("/")
        self._backend = find_backend(parts.scheme)
        self.root = "/".join(filter(None, (f"{parts.scheme}://{self._bucket}", self._prefix)))
        self._profile, self._credentials, self._delays = profile, credentials, delays
        self._bucket_found = False
        self._lock = threading.Lock()
        self._connected: tuple[tuple[Any, ...], Any] | None = None

    @property
    def _fs(self) -> Any:
        """The file system, made anew when the files with credentials are others: they are renewed now and then."""
        marks = _marks(self._credentials)
        with self._lock:
            if self._connected is None or self._connected[0] != marks:
                self._connected = marks, self._backend.connect(self._profile, self._credentials)
            return self._connected[1]

    def _address(self, path: str) -> str:
        return "/".join(filter(None, (self._bucket, self._prefix, path)))

    def _path(self, address: str) -> str:
        return address[len(self._address("")) :].lstrip("/")

    def _with_retries(self, operation: Callable[[], T], *, doing: str, path: str) -> T:
        def attempt() -> T:
            try:
                return operation()
            except FileNotFoundError:
                self._require_bucket()
                raise

        return with_retries(
            attempt,
            doing=doing,
            where=self.uri(path),
            endpoint=self._profile.endpoint or "",
            delays=self._delays,
            errors=self._backend.errors,
        )

    def _require_bucket(self) -> None:
        """Where nothing was found: MissingBucket if there is no bucket, either."""
        if not self._bucket_found:
            try:
                self._backend.find_bucket(self._fs, self._bucket)
            except FileNotFoundError as error:
                raise MissingBucket(self._bucket) from error
            self._bucket_found = True

    def read(self, path: str, limit: int) -> bytes:
        address = self._address(check_path(path))

        def read() -> bytes:
            try:
                return self._fs.cat_file(address, start=0, end=limit + 1)
            except Exception as error:
                if NO_RANGE & set(codes(error, self._backend.errors)):
                    return b""
                raise

        return self._bounded(self._with_retries(read, doing="reading", path=path), path, limit)

    def sha256(self, path: str) -> str:
        address = self._address(check_path(path))

        def digest() -> str:
            with self._fs.open(address, "rb", block_size=PIECE) as file:
                return hashlib.file_digest(file, "sha256").hexdigest()

        return self._with_retries(digest, doing="reading", path=path)

    def write(self, path: str, data: bytes) -> None:
        address = self._address(check_path(path))
        self._with_retries(lambda: self._fs.pipe_file(address, data), doing="writing", path=path)

    def create(self, path: str, data: bytes) -> bool:
        address, writer = self._address(check_path(path)), uuid.uuid4().hex

        def attempt() -> bool:
            try:
                self._fs.pipe_file(address, data, mode="create", **self._backend.mark(writer))
            except Exception as error:
                if not isinstance(error, FileExistsError) and not EXISTS & set(codes(error, self._backend.errors)):
                    raise
                # The answer to an earlier try of ours may have been lost: then the object carries our mark.
                with suppress(FileNotFoundError):
                    return self._backend.writer(self._fs, address) == writer
                return False
            return True

        return self._with_retries(attempt, doing="writing", path=path)

    def size(self, path: str) -> int | None:
        address = self._address(check_path(path))
        try:
            info = self._with_retries(lambda: self._fs.info(address), doing="reading", path=path)
        except FileNotFoundError:
            return None
        return int(info["size"]) if info["type"] == "file" else None

    def list(self, prefix: str = "") -> Sequence[Entry]:
        top = self._address(check_path(prefix, empty=True))

        def find() -> list[dict[str, Any]]:
            found = self._backend.find(self._fs, top)
            if not found:
                self._require_bucket()
            # Where `top` is a file alone, adlfs gives a list of it instead; folders' marks end with '/'.
            return (
                []
                if isinstance(found, list)
                else [info for name, info in found.items() if name.startswith(f"{top}/") and not name.endswith("/")]
            )

        entries = [
            Entry(self._path(info["name"]), int(info["size"]), info[self._backend.modified].timestamp())
            for info in self._with_retries(find, doing="listing", path=prefix)
            if info["type"] == "file"
        ]
        return sorted(entries, key=lambda entry: entry.path)

    def children(self, prefix: str = "") -> Sequence[str]:
        top = self._address(check_path(prefix, empty=True))
        try:
            found = self._with_retries(lambda: self._backend.children(self._fs, top), doing="listing", path=prefix)
        except FileNotFoundError:
            return []
        names = {address.rstrip("/") for address in found}
        return sorted(name[len(top) + 1 :] for name in names if name.startswith(f"{top}/"))

    def delete(self, prefix: str) -> None:
        paths = [*(entry.path for entry in self.list(check_path(prefix))), prefix]

        def remove(path: str) -> None:
            # One by one: `rm` takes a path for a pattern, and s3fs' passes over what the server refuses to delete.
            with suppress(FileNotFoundError):
                self._with_retries(lambda: self._fs.rm_file(self._address(path)), doing="deleting", path=path)

        with ThreadPoolExecutor(DELETIONS_AT_ONCE) as pool:
            list(pool.map(remove, paths))

    def upload(self, local: Path, path: str) -> FileRecord:
        address, before = self._address(check_path(path)), local.stat()
        record = FileRecord(path=path, size=before.st_size, sha256=files.sha256(local))

        def attempt() -> None:
            self._fs.put_file(str(local), address, **self._backend.upload_options(record.size))
            # What arrived was verified part by part; the size says that none is missing.
            if self._fs.info(address)["size"] != record.size:
                raise TimeoutError("the upload did not arrive whole")

        self._with_retries(attempt, doing="writing", path=path)
        after = local.stat()
        if (after.st_size, after.st_mtime_ns) != (before.st_size, before.st_mtime_ns):
            raise StorageError(f"{local} changed while it was uploaded: let only one process write it")
        return record

    def download(self, record: FileRecord, local: Path) -> None:
        address = self._address(check_path(record.path))
        local.parent.mkdir(parents=True, exist_ok=True)
        scratch = files.temporary(local)

        def attempt() -> bool:
            try:
                self._fs.get_file(address, str(scratch), **self._backend.download_options())
            except OSError as error:
                if is_disk_full(error, self._backend.errors):
                    raise to_user_error(error, doing="writing", where=str(local)) from error
                raise
            return scratch.stat().st_size == record.size and files.sha256(scratch) == record.sha256

        try:
            # A second try tells damage on the way from damage in storage.
            if not any(self._with_retries(attempt, doing="reading", path=record.path) for _ in range(2)):
                raise Damaged(f"{self.uri(record.path)} is not what was written")
            files.sync(scratch)
            os.replace(scratch, local)
        finally:
            scratch.unlink(missing_ok=True)

    def local_path(self, path: str) -> Path | None:
        return None

    def leftovers(self, prefix: str = "") -> Sequence[Entry]:
        """Uploads in parts that were never completed; what they hold cannot be listed, so their size is 0."""
        start = self._address(check_path(prefix, empty=True))[len(self._bucket) + 1 :]
        found = self._with_retries(
            lambda: self._backend.leftovers(self._fs, self._bucket, f"{start}/" if start else ""),
            doing="listing",
            path=prefix,
        )
        return [replace(entry, path=self._path(f"{self._bucket}/{entry.path}")) for entry in found]

    def delete_leftover(self, entry: Entry) -> None:
        path, upload = entry.path.rsplit("?", 1)
        key = self._address(path)[len(self._bucket) + 1 :]
        with suppress(FileNotFoundError):
            self._with_retries(
                lambda: self._backend.delete_leftover(self._fs, self._bucket, key, upload), doing="deleting", path=path
            )


def _marks(folder: Path | None) -> tuple[Any, ...]:
    """Values that differ between two contents of a folder with credentials."""
    if folder is None or not folder.is_dir():
        return ()
    found = ((file.name, file.stat()) for file in folder.iterdir() if file.is_file())
    return tuple(sorted((name, stat.st_mtime_ns, stat.st_size, stat.st_ino) for name, stat in found))
