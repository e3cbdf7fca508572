"""A store in S3 or a server that speaks it: uploads in parts, exclusive creation by If-None-Match."""

from __future__ import annotations

import os
import uuid
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import urlsplit

import s3fs

from nanochat.spec.errors import StorageError, UserError
from nanochat.storage import files
from nanochat.storage.failures import DELAYS, Damaged, code, is_disk_full, to_user_error, with_retries
from nanochat.storage.store import Entry, FileRecord, Profile, Store, check_path

T = TypeVar("T")

PART = 8 << 20  # bytes of one part of an upload or download
PARTS_AT_ONCE = 4  # a transfer holds a few times PART x PARTS_AT_ONCE bytes, however large the file
MOST_PARTS = 9_000  # S3 allows 10,000 parts


def _credentials(folder: Path | None) -> dict[str, Any]:
    """s3fs' names for the credentials in a folder; none where there is no folder."""
    if folder is None:
        return {}
    names = {"key": "AWS_ACCESS_KEY_ID", "secret": "AWS_SECRET_ACCESS_KEY", "token": "AWS_SESSION_TOKEN"}
    found = {name: (folder / file).read_text().strip() for name, file in names.items() if (folder / file).exists()}
    if not {"key", "secret"} <= found.keys():
        raise UserError(f"{folder} must hold the files AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY")
    return found


class S3Store(Store):
    """Objects below s3://bucket/prefix."""

    def __init__(self, profile: Profile, delays: Sequence[float] = DELAYS, credentials: Path | None = None) -> None:
        """`delays` are the seconds before each further try after an error that may pass."""
        parts = urlsplit(profile.root)
        self._bucket, self._prefix = parts.netloc, parts.path.strip("/")
        if not self._bucket or "@" in self._bucket:
            raise UserError("the store's root must be s3://bucket or s3://bucket/prefix")
        if profile.endpoint and "@" in profile.endpoint:
            raise UserError("the store's endpoint holds credentials: give them by AWS_ACCESS_KEY_ID instead")
        self.root = "/".join(filter(None, (f"s3://{self._bucket}", self._prefix)))
        self._endpoint = profile.endpoint or ""
        self._delays = delays
        # s3fs makes its blocking methods at run time, where a type checker does not see them.
        self._fs: Any = s3fs.S3FileSystem(
            anon=profile.anonymous,
            **_credentials(credentials),
            endpoint_url=profile.endpoint,
            client_kwargs={"region_name": profile.region} if profile.region else {},
            # `with_retries` does the retrying: it knows what is worth it. One quick retry stays with s3fs.
            config_kwargs={"connect_timeout": 5, "read_timeout": 60, "retries": {"total_max_attempts": 1}},
            use_listings_cache=False,
            skip_instance_cache=True,
        )
        self._fs.retries = 2

    def _key(self, path: str) -> str:
        return f"{self._prefix}/{path}".strip("/")

    def _with_retries(self, operation: Callable[[], T], *, doing: str, path: str) -> T:
        where = self.uri(path)
        return with_retries(operation, doing=doing, where=where, endpoint=self._endpoint, delays=self._delays)

    def read(self, path: str) -> bytes:
        address = f"{self._bucket}/{self._key(check_path(path))}"
        return self._with_retries(lambda: self._fs.cat_file(address), doing="reading", path=path)

    def write(self, path: str, data: bytes) -> None:
        key = self._key(check_path(path))
        self._with_retries(lambda: self._put(key, data), doing="writing", path=path)

    def create(self, path: str, data: bytes) -> bool:
        key, writer = self._key(check_path(path)), uuid.uuid4().hex

        def attempt() -> bool:
            try:
                self._put(key, data, IfNoneMatch="*", Metadata={"writer": writer})
            except OSError as error:
                if code(error) not in ("PreconditionFailed", "412"):
                    raise
                # The answer to an earlier try of ours may have been lost: then the object carries our mark.
                head = self._head(key)
                return head is not None and head.get("Metadata", {}).get("writer") == writer
            return True

        return self._with_retries(attempt, doing="writing", path=path)

    def _put(self, key: str, data: bytes, **options: Any) -> None:
        self._fs.call_s3("put_object", Bucket=self._bucket, Key=key, Body=data, **options)

    def _head(self, key: str) -> dict[str, Any] | None:
        try:
            return self._fs.call_s3("head_object", Bucket=self._bucket, Key=key)
        except FileNotFoundError:
            return None

    def size(self, path: str) -> int | None:
        key = self._key(check_path(path))
        head = self._with_retries(lambda: self._head(key), doing="reading", path=path)
        return None if head is None else int(head["ContentLength"])

    def _pages(self, prefix: str, **options: Any) -> Iterator[dict[str, Any]]:
        start = self._key(check_path(prefix, empty=True))
        request = {"Bucket": self._bucket, "Prefix": f"{start}/" if start else "", **options}
        while True:
            page = self._with_retries(
                lambda: self._fs.call_s3("list_objects_v2", **request),
                doing="listing",
                path=prefix,
            )
            yield page
            if not page.get("IsTruncated"):
                return
            request["ContinuationToken"] = page["NextContinuationToken"]

    def _entry(self, item: dict[str, Any]) -> Entry:
        path = item["Key"][len(self._prefix) :].lstrip("/")
        return Entry(path=path, size=int(item["Size"]), modified=item["LastModified"].timestamp())

    def list(self, prefix: str = "") -> Sequence[Entry]:
        items = [item for page in self._pages(prefix) for item in page.get("Contents", ())]
        entries = [self._entry(item) for item in items if not item["Key"].endswith("/")]
        return sorted(entries, key=lambda entry: entry.path)

    def children(self, prefix: str = "") -> Sequence[str]:
        names: set[str] = set()
        for page in self._pages(prefix, Delimiter="/"):
            names.update(item["Prefix"].rstrip("/").rsplit("/", 1)[-1] for item in page.get("CommonPrefixes", ()))
            names.update(item["Key"].rsplit("/", 1)[-1] for item in page.get("Contents", ()))
        return sorted(names)

    def delete(self, prefix: str) -> None:
        keys = [self._key(entry.path) for entry in self.list(check_path(prefix))]
        keys.append(self._key(prefix))
        for start in range(0, len(keys), 1000):  # the most that one request takes
            batch = {"Objects": [{"Key": key} for key in keys[start : start + 1000]], "Quiet": True}
            answer = self._with_retries(
                lambda: self._fs.call_s3("delete_objects", Bucket=self._bucket, Delete=batch),  # noqa: B023
                doing="deleting",
                path=prefix,
            )
            refused = [item for item in answer.get("Errors", ()) if item.get("Code") != "NoSuchKey"]
            if refused:
                raise StorageError(
                    f"{self.uri(prefix)} could not be deleted ({refused[0].get('Code')}): "
                    "check this user's right to delete"
                )

    def upload(self, local: Path, path: str) -> FileRecord:
        key, before = self._key(check_path(path)), local.stat()
        record = FileRecord(path=path, size=before.st_size, sha256=files.sha256(local))
        part = max(PART, -(-before.st_size // MOST_PARTS))

        def attempt() -> None:
            # Each part goes with a checksum that the server verifies; the size says that no part is missing.
            self._fs.put_file(str(local), f"{self._bucket}/{key}", chunksize=part, max_concurrency=PARTS_AT_ONCE)
            head = self._head(key)
            if head is None or int(head["ContentLength"]) != record.size:
                raise TimeoutError("the upload did not arrive whole")

        self._with_retries(attempt, doing="writing", path=path)
        after = local.stat()
        if (after.st_size, after.st_mtime_ns) != (before.st_size, before.st_mtime_ns):
            raise StorageError(f"{local} changed while it was uploaded: let only one process write it")
        return record

    def download(self, record: FileRecord, local: Path) -> None:
        address = f"{self._bucket}/{self._key(check_path(record.path))}"
        local.parent.mkdir(parents=True, exist_ok=True)
        scratch = files.temporary(local)

        def attempt() -> bool:
            try:
                self._fs.get_file(address, str(scratch), chunksize=PART, max_concurrency=PARTS_AT_ONCE)
            except OSError as error:
                if is_disk_full(error):
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
        start = self._key(check_path(prefix, empty=True))
        answer = self._with_retries(
            lambda: self._fs.call_s3(
                "list_multipart_uploads", Bucket=self._bucket, Prefix=f"{start}/" if start else ""
            ),
            doing="listing",
            path=prefix,
        )
        return [
            Entry(
                path=f"{item['Key'][len(self._prefix) :].lstrip('/')}?{item['UploadId']}",
                size=0,
                modified=item["Initiated"].timestamp(),
            )
            for item in answer.get("Uploads", ())
        ]

    def delete_leftover(self, entry: Entry) -> None:
        path, upload = entry.path.rsplit("?", 1)
        try:
            self._with_retries(
                lambda: self._fs.call_s3(
                    "abort_multipart_upload", Bucket=self._bucket, Key=self._key(path), UploadId=upload
                ),
                doing="deleting",
                path=path,
            )
        except FileNotFoundError:
            return
