"""Errors of storage: each in one sentence that says what to change, and whether it is worth trying again.

`with_retries(operation, ...)` runs an operation, tries again with growing delay after transient errors, and raises
`UserError` (credentials, missing bucket, full disk: trying again is no use) or `StorageError` (unreachable).
A missing file stays `FileNotFoundError`. Errors are told apart by types and codes, of which each backend has a table.
Messages carry error codes, never what a server or a library says, for that can hold parts of a request.
"""

from __future__ import annotations

import errno
import math
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from enum import Enum, auto
from time import sleep
from typing import TypeVar

from nanochat.spec.errors import NanochatError, StorageError, UserError

T = TypeVar("T")

DELAYS = (0.5, 1.0, 2.0, 4.0, 8.0)  # seconds before each further try


def delays(patience: float) -> tuple[float, ...]:
    """The usual delays, and the longest of them again until they last `patience` seconds."""
    more = max(0.0, patience - sum(DELAYS))
    return (*DELAYS, *[DELAYS[-1]] * math.ceil(more / DELAYS[-1]))


class Fault(Enum):
    """Kinds of failures that are told apart."""

    TRANSIENT = auto()  # the server is busy or broke off: the same operation may succeed a moment later
    SLOW = auto()  # no answer came in time: it is busy, or this machine is
    UNREACHABLE = auto()  # it does not answer: may pass, too
    FULL = auto()
    NO_BUCKET = auto()
    NO_CREDENTIALS = auto()
    EXPIRED = auto()
    REFUSED = auto()
    CLOCK = auto()


@dataclass(frozen=True, slots=True)
class ErrorTable:
    """How the errors of one backend's libraries are told apart, and the words of the advice."""

    types: Mapping[type[BaseException], Fault] = field(default_factory=dict)  # subclasses count
    codes: Mapping[str, Fault] = field(default_factory=dict)
    codes_of: Callable[[BaseException], tuple[str, ...]] = lambda error: ()  # of one exception, most telling first
    base: tuple[type[BaseException], ...] = (OSError,)  # every failure is one of these; all else is a mistake of ours
    bucket: str = "bucket"  # the backend's word for it
    give: str = ""  # how to give credentials
    correct: str = ""  # what may be wrong with them


LOCAL = ErrorTable()

_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_TRANSIENT = {errno.EAGAIN, errno.EINTR, errno.ESTALE, errno.ETIMEDOUT, errno.ECONNRESET, errno.EIO}
_RUST = re.compile(r"\(os error ([0-9]{1,4})\)")  # how libraries in Rust end the words of the system's error


class Damaged(StorageError):
    """A manifest, or a file that it names, is not what was written. Readers pass it over."""


class MissingBucket(FileNotFoundError):
    """There is no bucket."""


def _chain(error: BaseException) -> list[BaseException]:
    """The error and what it came from: fsspec's file systems wrap the errors of their libraries."""
    chain: list[BaseException] = []
    at: BaseException | None = error
    while at is not None and at not in chain:
        chain.append(at)
        at = at.__cause__
    return chain


def codes(error: BaseException, errors: ErrorTable) -> tuple[str, ...]:
    """The backend's codes for an error, most telling first; none where it never came from a server."""
    return next((found for item in _chain(error) if (found := errors.codes_of(item))), ())


def _errno(error: BaseException) -> int | None:
    if isinstance(error, OSError) and error.errno is not None:
        return error.errno
    words = _RUST.search(str(error))
    return int(words[1]) if words else None


def _errnos(error: BaseException) -> set[int]:
    return {number for item in _chain(error) if (number := _errno(item)) is not None}


def _as_os_error(error: Exception, where: str) -> Exception:
    """The system's error that a library in Rust has in its words alone; other errors as they are."""
    number = None if isinstance(error, OSError | NanochatError) else _errno(error)
    return error if number is None else OSError(number, os.strerror(number), where)


def is_disk_full(error: BaseException, errors: ErrorTable = LOCAL) -> bool:
    """Whether a local disk or quota is full."""
    # Libraries in C++ have errors of their own with the system's words in them.
    return not codes(error, errors) and (bool(_errnos(error) & _FULL) or "No space left on device" in str(error))


def fault(error: BaseException, errors: ErrorTable = LOCAL) -> Fault | None:
    """The kind of a failure; None where it is none of those."""
    answer = codes(error, errors)
    if answer:
        return next((errors.codes[code] for code in answer if code in errors.codes), None)
    if is_disk_full(error):
        return Fault.FULL
    for item in _chain(error):
        if isinstance(item, MissingBucket):
            return Fault.NO_BUCKET
        for kind, found in errors.types.items():
            if isinstance(item, kind):
                return found
    if isinstance(error, TimeoutError):
        return Fault.SLOW
    if isinstance(error, ConnectionError):
        return Fault.UNREACHABLE
    if isinstance(error, FileNotFoundError | PermissionError | FileExistsError):
        return None
    return Fault.TRANSIENT if _errnos(error) & _TRANSIENT else None


def transient(error: BaseException, errors: ErrorTable = LOCAL) -> bool:
    """Whether the same operation may succeed a moment later."""
    return fault(error, errors) in (Fault.TRANSIENT, Fault.SLOW, Fault.UNREACHABLE)


def to_user_error(
    error: BaseException, *, doing: str, where: str, endpoint: str = "", errors: ErrorTable = LOCAL
) -> NanochatError:
    """The error as one of ours, with what to change."""
    answer, found = codes(error, errors), fault(error, errors)
    names = [errno.errorcode[number] for number in sorted(_errnos(error)) if number in errno.errorcode]
    detail = " ".join((type(error).__name__, *(answer or names)[:1]))
    place = f"{where} at {endpoint}" if endpoint else where
    sentences = {
        Fault.FULL: f"the disk or quota that holds {where} is full: free space there, then run again",
        Fault.NO_BUCKET: f"there is no {errors.bucket} for {place}: create it, or correct the profile's root",
        Fault.EXPIRED: f"the credentials for {place} have expired: renew them, then run again",
        Fault.NO_CREDENTIALS: f"there are no credentials for {place}: {errors.give}",
        Fault.CLOCK: f"{place} refuses this machine's clock: set the clock right, then run again",
        Fault.REFUSED: f"{place} refuses these credentials for {doing}: correct {errors.correct}",
    }
    if found in sentences:
        return UserError(sentences[found], detail=detail)
    if isinstance(error, PermissionError) or errno.EROFS in _errnos(error):
        fault_of_user = f"no right for {doing} in {where}: change its owner or mode, or the profile's root"
        return UserError(fault_of_user, detail=detail)
    if isinstance(error, NotADirectoryError | IsADirectoryError):
        return UserError(f"{where} is a file where a folder should be, or the reverse: move it away", detail=detail)
    if found is Fault.SLOW:
        sentence = f"{place} gave no answer in time: the server, the network or this machine is busy, or cut off"
    elif found is Fault.UNREACHABLE:
        sentence = f"{place} does not answer: check the endpoint, the network and that the server runs"
    else:
        sentence = f"{doing} failed in {place} ({detail}): see the log, then run again"
    return StorageError(sentence, detail=detail)


@contextmanager
def translate_errors(*, doing: str, where: str) -> Iterator[None]:
    """Errors of local files inside become ours; a missing file and what is not storage stay as they are."""
    try:
        yield
    except FileNotFoundError:
        raise
    except Exception as error:
        told = _as_os_error(error, where)
        if isinstance(told, FileNotFoundError):
            raise told from error
        if isinstance(told, OSError) or is_disk_full(told):
            raise to_user_error(told, doing=doing, where=where) from error
        raise


def with_retries(
    operation: Callable[[], T],
    *,
    doing: str,
    where: str,
    endpoint: str = "",
    delays: Sequence[float] = DELAYS,
    errors: ErrorTable = LOCAL,
) -> T:
    """The operation's result. It may be called `len(delays)` + 1 times, so it has to bear repetition."""
    for attempt in range(len(delays) + 1):
        try:
            return operation()
        except NanochatError:
            raise
        except Exception as error:
            found = fault(error, errors)
            if isinstance(error, FileNotFoundError) and found is not Fault.NO_BUCKET:
                raise
            if found is None and not isinstance(error, errors.base):
                raise
            if attempt == len(delays) or not transient(error, errors):
                raise to_user_error(error, doing=doing, where=where, endpoint=endpoint, errors=errors) from error
        sleep(delays[attempt])
    raise AssertionError("the loop returns or raises")
