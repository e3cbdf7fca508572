"""Fetching files by address: https://, object storage, file:// or a local path, whole or not at all.

    hub = Hub()
    hub.fetch("https://huggingface.co/datasets/...parquet", target, setting="sources.hub", check=check_parquet)

A transfer goes into `<target>.part`, is continued where it was cut (if the server has ranges and says that the file is
the same), checked, and renamed. What may pass is tried again with growing delay, or after the server's Retry-After.
"""

from __future__ import annotations

import email.utils
import os
import random
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, BinaryIO
from urllib.parse import urlsplit

import httpx

from nanochat.data.verify import DamagedFile
from nanochat.parse import Malformed
from nanochat.parse.address import FILE, Address, resolve, shown
from nanochat.spec.errors import StorageError, UserError
from nanochat.storage.backends import SCHEMES, find_backend
from nanochat.storage.failures import to_user_error, transient
from nanochat.storage.store import Profile

BLOCK = 1 << 20  # bytes held in memory of one transfer
DAMAGED_LIMIT = 2  # whole transfers of a file that is damaged before its source is held to be


@dataclass(frozen=True, slots=True)
class Retry:
    """When to try again: `delay` seconds at first, twice as long each time, at most `longest`."""

    attempts: int = 7
    delay: float = 1.0
    longest: float = 60.0
    longest_asked: float = 300.0  # the most that a server's Retry-After is followed
    timeout: float = 30.0  # seconds without a byte


class Transient(Exception):
    """A transfer failed in a way that may pass; `after` is the server's Retry-After in seconds."""

    def __init__(self, message: str, *, after: float | None = None) -> None:
        super().__init__(message)
        self.after = after


class Hub:
    """Fetches files. May be used by several threads at once."""

    def __init__(
        self,
        *,
        retry: Retry | None = None,
        sleep: Callable[[float], None] = time.sleep,
        watch: Callable[[int], None] | None = None,
        store: Profile | None = None,
    ) -> None:
        """`watch` is told the bytes as they come (0 while waiting) and may raise to end a transfer.

        Addresses of object storage are read from the server of `store` where it is of their kind.
        """
        self._retry = retry or Retry()
        self._sleep = sleep
        self._watch = watch or (lambda count: None)
        self._store = store
        self._client = httpx.Client(
            follow_redirects=True,
            timeout=self._retry.timeout,
            headers={"Accept-Encoding": "identity", "User-Agent": "nanochat"},
        )

    def __enter__(self) -> Hub:
        return self

    def __exit__(self, *_: object) -> None:
        self._client.close()

    def fetch(self, url: str, target: Path, *, setting: str, check: Callable[[Path], object] | None = None) -> int:
        """Fetch a file to `target` and return its size in bytes.

        `setting` is the setting that names the address, for messages. `check` raises DamagedFile where the file is
        not whole. Raises UserError where the address is wrong or the file damaged at its source, StorageError where
        the source could not be reached.
        """
        part = target.with_name(target.name + ".part")
        try:
            address = resolve(url, FILE)
        except Malformed as error:
            raise UserError(f"{setting}: {error}") from None
        transfer = self._transfer(address, part, setting)
        failures = damages = 0
        while True:
            try:
                transfer()
                if check is not None:
                    check(part)
                break
            except DamagedFile as error:
                part.unlink()
                damages += 1
                if damages == DAMAGED_LIMIT or address.scheme not in ("http", "https"):
                    raise UserError(
                        f"{shown(url)} is damaged: {error}; replace it there, or correct {setting}"
                    ) from None
                self._wait(self._retry.delay)
            except Transient as error:
                failures += 1
                if failures == self._retry.attempts:
                    raise StorageError(
                        f"{shown(url)} could not be fetched in {failures} attempts ({error}): "
                        f"check the network, or correct {setting}"
                    ) from None
                self._wait(self._delay(failures, error.after))
        size = part.stat().st_size
        os.replace(part, target)
        return size

    def _transfer(self, address: Address, part: Path, setting: str) -> Callable[[], None]:
        path = address.path
        if path is not None:
            return lambda: self._local(path, part, setting)
        if address.scheme in SCHEMES:
            return lambda: self._object(address, part, setting)
        state = HttpTransfer(self._client, address.text, part, setting)
        return lambda: state.run(self._watch)

    def _local(self, path: Path, part: Path, setting: str) -> None:
        if not path.is_file():
            raise UserError(f"there is no file {path}: correct {setting}")
        with open(path, "rb") as source, open(part, "wb") as out:
            self._copy(source, out)

    def _object(self, address: Address, part: Path, setting: str) -> None:
        url, scheme, store = address.text, address.scheme, self._store
        backend = find_backend(scheme)
        place = store if store and urlsplit(store.root).scheme == scheme else Profile(root=url)
        try:
            with backend.connect(place, None).open(url, "rb", block_size=8 * BLOCK) as source, open(part, "wb") as out:
                self._copy(source, out)
        except FileNotFoundError:
            raise UserError(f"{url} does not exist: correct {setting}") from None
        except Exception as error:
            if transient(error, backend.errors):
                raise Transient(type(error).__name__) from error
            if isinstance(error, backend.errors.base):
                raise to_user_error(error, doing="reading", where=url, errors=backend.errors) from error
            raise

    def _copy(self, source: Any, out: BinaryIO) -> None:
        while block := source.read(BLOCK):
            out.write(block)
            self._watch(len(block))

    def _delay(self, failures: int, after: float | None) -> float:
        if after is not None:
            return min(after, self._retry.longest_asked)
        delay = min(self._retry.delay * 2 ** (failures - 1), self._retry.longest)
        return delay * random.uniform(0.75, 1.25)  # so that many that failed together do not return together

    def _wait(self, seconds: float) -> None:
        while seconds > 0:
            self._watch(0)
            self._sleep(min(seconds, 1.0))
            seconds -= 1.0


class HttpTransfer:
    """One file over HTTP: what is there of it stays, and is continued if the server has the same file still."""

    def __init__(self, client: httpx.Client, url: str, part: Path, setting: str) -> None:
        self._client = client
        self._url = url
        self._part = part
        self._setting = setting
        self._validator = ""  # ETag or Last-Modified of what is in the part file
        part.unlink(missing_ok=True)

    def run(self, watch: Callable[[int], None]) -> None:
        """Transfer the file, or what is missing of it; raises Transient where that may succeed later."""
        have = self._part.stat().st_size if self._part.exists() else 0
        headers = {"Range": f"bytes={have}-", "If-Range": self._validator} if have and self._validator else {}
        try:
            with self._client.stream("GET", self._url, headers=headers) as response:
                self._check_status(response)
                goes_on = response.status_code == 206
                if goes_on and not response.headers.get("Content-Range", "").startswith(f"bytes {have}-"):
                    self._validator = ""  # another range than asked for: from the start next time
                    raise Transient("the server sent another range than asked for")
                if not goes_on:
                    self._validator = _validator(response)
                with open(self._part, "ab" if goes_on else "wb") as out:
                    # A body shorter than its Content-Length or its last chunk is an error of httpx.
                    for block in response.iter_bytes():  # as they come: what has come is kept
                        out.write(block)
                        watch(len(block))
        except httpx.TransportError as error:
            raise Transient(f"{type(error).__name__}: {error}") from error
        except (httpx.InvalidURL, httpx.TooManyRedirects, httpx.DecodingError) as error:
            raise UserError(f"{shown(self._url)} cannot be read ({error}): correct {self._setting}") from None

    def _check_status(self, response: httpx.Response) -> None:
        status, where = response.status_code, shown(self._url)
        if status in (200, 206):
            return
        if status == 416:
            self._validator = ""
            raise Transient("the server has no such range")
        if status in (408, 425, 429) or status >= 500:
            raise Transient(f"HTTP {status}", after=_retry_after(response.headers.get("Retry-After")))
        if status in (404, 410):
            raise UserError(f"{where} does not exist (HTTP {status}): correct {self._setting}")
        if status in (401, 403):
            raise UserError(f"{where} is refused (HTTP {status}): it needs rights, or {self._setting} is wrong")
        raise UserError(f"{where} answers with HTTP {status}: correct {self._setting}")


def _validator(response: httpx.Response) -> str:
    """The file's identity for If-Range; '' where nothing gives one (weak ETags do not)."""
    if response.headers.get("Content-Encoding"):
        return ""
    tag = response.headers.get("ETag", "")
    return tag if tag and not tag.startswith("W/") else response.headers.get("Last-Modified", "")


def _retry_after(value: str | None) -> float | None:
    """Seconds of a Retry-After header: a number or a date."""
    if not value:
        return None
    if value.strip().isdigit():
        return float(value)
    try:
        when = email.utils.parsedate_to_datetime(value)
    except ValueError:
        return None
    return max(0.0, (when.astimezone(UTC) - datetime.now(UTC)).total_seconds())
