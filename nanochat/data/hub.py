"""Fetching files by address: https://, object storage, file:// or a local path, whole or not at all.

    hub = Hub()
    hub.fetch(address, target, setting="sources.hub", limit=16 << 30, check=check_parquet)

A transfer goes into `<target>.part`, is continued where it was cut (if the server has ranges and says that the file is
the same), checked, and renamed. What may pass is tried again with growing delay, or after the server's Retry-After.
"""

from __future__ import annotations

import email.utils
import os
import random
import re
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, BinaryIO

import httpx

from nanochat.data.hub_access import HubAccess
from nanochat.data.verify import DamagedFile, WrongFile
from nanochat.parse.address import FILE, Address, shown
from nanochat.spec.addresses import given_address
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
        access: HubAccess | None = None,
    ) -> None:
        """`watch` is told the bytes as they come (0 while waiting) and may raise to end a transfer.

        Addresses of object storage are read from the server of `store` where it is of their kind.
        """
        self._retry = retry or Retry()
        self._sleep = sleep
        self.watch = watch or (lambda count: None)
        self.store = store or Profile(root="")
        self._access = access or HubAccess()
        self._client = httpx.Client(
            follow_redirects=True,
            timeout=self._retry.timeout,
            headers={"Accept-Encoding": "identity", "User-Agent": "nanochat"},
        )

    def __enter__(self) -> Hub:
        return self

    def __exit__(self, *_: object) -> None:
        self._client.close()

    def fetch(
        self,
        url: str,
        target: Path,
        *,
        setting: str,
        limit: int,
        check: Callable[[Path], object] | None = None,
    ) -> int:
        """Fetch a file of at most `limit` bytes to `target` and return its size in bytes.

        `setting` is the setting that names the address, for messages. `check` raises DamagedFile where the file is
        not whole, WrongFile where it is and cannot be used. Raises UserError where the address is wrong or the file
        damaged at its source, StorageError where the source could not be reached.
        """
        part = target.with_name(target.name + ".part")
        address = given_address(url, FILE, setting)
        transfer = self._transfer(address, Source(address.text, setting, limit), part)
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
            except WrongFile as error:
                raise UserError(f"{shown(url)}: {error.problem}: replace it there, or correct {setting}") from None
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

    def _transfer(self, address: Address, source: Source, part: Path) -> Callable[[], None]:
        path = address.path
        if path is not None:
            return lambda: self._local(path, source, part)
        if address.scheme in SCHEMES:
            return lambda: self._object(address.scheme, source, part)
        state = HttpTransfer(self._client, source, part, self._access)
        return lambda: state.run(self.watch)

    def _local(self, path: Path, source: Source, part: Path) -> None:
        if not path.is_file():
            raise UserError(f"there is no file {path}: correct {source.setting}")
        with open(path, "rb") as file, open(part, "wb") as out:
            self._copy(file, out, source)

    def _object(self, scheme: str, source: Source, part: Path) -> None:
        url, backend = source.url, find_backend(scheme)
        place = self.store.towards(url)
        try:
            with backend.connect(place, None).open(url, "rb", block_size=8 * BLOCK) as file, open(part, "wb") as out:
                self._copy(file, out, source)
        except FileNotFoundError:
            raise UserError(f"{url} does not exist: correct {source.setting}") from None
        except Exception as error:
            if transient(error, backend.errors):
                raise Transient(type(error).__name__) from error
            if isinstance(error, backend.errors.base):
                raise to_user_error(error, doing="reading", where=url, errors=backend.errors) from error
            raise

    def _copy(self, file: Any, out: BinaryIO, source: Source) -> None:
        while block := file.read(BLOCK):
            out.write(block)
            source.check_size(out.tell())
            self.watch(len(block))

    def _delay(self, failures: int, after: float | None) -> float:
        if after is not None:
            return min(after, self._retry.longest_asked)
        delay = min(self._retry.delay * 2 ** (failures - 1), self._retry.longest)
        return delay * random.uniform(0.75, 1.25)  # so that many that failed together do not return together

    def _wait(self, seconds: float) -> None:
        while seconds > 0:
            self.watch(0)
            self._sleep(min(seconds, 1.0))
            seconds -= 1.0


@dataclass(frozen=True, slots=True)
class Source:
    """One file to fetch; as text its address for messages."""

    url: str
    setting: str
    limit: int  # bytes

    def __str__(self) -> str:
        return shown(self.url)

    def check_size(self, size: int) -> None:
        """UserError where a file of this many bytes, or so many of it, is larger than it may be."""
        if size > self.limit:
            raise UserError(f"{self} has more than {self.limit:,} bytes: correct {self.setting}")


class HttpTransfer:
    """One file over HTTP: what is there of it stays, and is continued if the server has the same file still."""

    def __init__(self, client: httpx.Client, source: Source, part: Path, access: HubAccess) -> None:
        self._client = client
        self._source = source
        self._part = part
        self._access = access
        self._validator = ""  # ETag or Last-Modified of what is in the part file
        part.unlink(missing_ok=True)

    def run(self, watch: Callable[[int], None]) -> None:
        """Transfer the file, or what is missing of it; raises Transient where that may succeed later."""
        have = self._part.stat().st_size if self._part.exists() else 0
        headers = self._access.headers(self._source.url)  # httpx leaves them out where it is sent to another origin
        if have and self._validator:
            headers |= {"Range": f"bytes={have}-", "If-Range": self._validator}
        try:
            with self._client.stream("GET", self._source.url, headers=headers) as response:
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
                        self._source.check_size(out.tell())
                        watch(len(block))
        except httpx.TransportError as error:
            raise Transient(f"{type(error).__name__}: {error}") from error
        except (httpx.InvalidURL, httpx.TooManyRedirects, httpx.DecodingError) as error:
            raise UserError(f"{self._source} cannot be read ({error}): correct {self._source.setting}") from None

    def _check_status(self, response: httpx.Response) -> None:
        status, source = response.status_code, self._source
        if status in (200, 206):
            return
        if status == 416:
            self._validator = ""
            raise Transient("the server has no such range")
        if status in (408, 425, 429) or status >= 500:
            raise Transient(f"HTTP {status}", after=_retry_after(response.headers.get("Retry-After")))
        why = response.headers.get("X-Error-Code", "")  # of a hub, such as GatedRepo
        answer = f"HTTP {status}, {why}" if re.fullmatch(r"\w{1,40}", why) else f"HTTP {status}"
        if status in (401, 403):
            advice = self._access.advice(source.url)
            raise UserError(f"{source} is refused ({answer}): {advice}, or correct {source.setting}")
        if status in (404, 410):
            raise UserError(f"{source} does not exist ({answer}): correct {source.setting}")
        raise UserError(f"{source} answers with {answer}: correct {source.setting}")


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
