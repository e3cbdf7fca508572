"""What went wrong in storage, in one sentence that says what to change, and what is worth trying again.

`with_retries(operation, ...)` runs an operation, tries again with growing delay after transient errors, and raises
`UserError` (credentials, missing bucket, full disk: trying again is no use) or `StorageError` (unreachable).
A missing file stays `FileNotFoundError`. Messages carry error codes, never what a server or a library says,
for that can hold parts of a request.
"""

from __future__ import annotations

import errno
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from time import sleep
from typing import TypeVar

from nanochat.spec.errors import NanochatError, StorageError, UserError

T = TypeVar("T")

DELAYS = (0.5, 1.0, 2.0, 4.0, 8.0)  # seconds before each further try


def delays(patience: float) -> tuple[float, ...]:
    """The usual delays, and the longest of them again until they last `patience` seconds."""
    more = max(0.0, patience - sum(DELAYS))
    return (*DELAYS, *[DELAYS[-1]] * math.ceil(more / DELAYS[-1]))


_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_TRANSIENT_ERRNO = {errno.EAGAIN, errno.EINTR, errno.ESTALE, errno.ETIMEDOUT, errno.ECONNRESET, errno.EIO}
_TRANSIENT_CODES = {
    "500", "502", "503", "504", "InternalError", "ServiceUnavailable", "SlowDown", "RequestTimeout",
    "OperationAborted", "IncompleteBody", "BadDigest", "XAmzContentSHA256Mismatch",
    "ConditionalRequestConflict", "Throttling",
}  # fmt: skip
_REFUSED_CODES = {
    "401", "403", "AccessDenied", "Forbidden", "InvalidAccessKeyId", "SignatureDoesNotMatch", "NotSignedUp",
    "AccountProblem", "AllAccessDisabled", "InvalidSecurity", "AuthorizationHeaderMalformed",
    "XAdminUserNotFound",  # versitygw
}  # fmt: skip
_EXPIRED_CODES = {"ExpiredToken", "InvalidToken", "TokenRefreshRequired"}
_NETWORK_ERRORS = {
    "EndpointConnectionError", "ConnectTimeoutError", "ReadTimeoutError", "ConnectionClosedError",
    "HTTPClientError", "ProxyConnectionError", "IncompleteReadError", "ResponseStreamingError",
    "ClientPayloadError", "ConnectionError",
    "ServerDisconnectedError", "ClientConnectorError", "ClientOSError", "ServerTimeoutError",
}  # fmt: skip


class Damaged(StorageError):
    """A manifest, or a file that it names, is not what was written. Readers pass it over."""


def _chain(error: BaseException) -> list[BaseException]:
    """The error and what it came from: s3fs wraps botocore's errors."""
    chain: list[BaseException] = []
    at: BaseException | None = error
    while at is not None and at not in chain:
        chain.append(at)
        at = at.__cause__
    return chain


def code(error: BaseException) -> str:
    """S3's error code, '' where there is none."""
    for item in _chain(error):
        response = getattr(item, "response", None)
        if isinstance(response, dict):
            return str(response.get("Error", {}).get("Code", ""))
    return ""


def _names(error: BaseException) -> set[str]:
    return {kind.__name__ for item in _chain(error) for kind in type(item).__mro__}


def _errnos(error: BaseException) -> set[int]:
    return {item.errno for item in _chain(error) if isinstance(item, OSError) and item.errno is not None}


def is_disk_full(error: BaseException) -> bool:
    """Whether a local disk or quota is full."""
    # Libraries in Rust and C++ have errors of their own with the system's words in them.
    return not code(error) and (bool(_errnos(error) & _FULL) or "No space left on device" in str(error))


def transient(error: BaseException) -> bool:
    """Whether the same operation may succeed a moment later."""
    answer = code(error)
    if answer:
        return answer in _TRANSIENT_CODES
    if isinstance(error, FileNotFoundError | PermissionError | FileExistsError) or is_disk_full(error):
        return False
    return bool(_names(error) & _NETWORK_ERRORS or _errnos(error) & _TRANSIENT_ERRNO) or isinstance(
        error, TimeoutError | ConnectionError
    )


def to_user_error(error: BaseException, *, doing: str, where: str, endpoint: str = "") -> NanochatError:
    """The error as one of ours, with what to change."""
    answer, names = code(error), _names(error)
    detail = f"{type(error).__name__} {answer}".strip()
    place = f"{where} at {endpoint}" if endpoint else where
    fault = ""
    if is_disk_full(error):
        fault = f"the disk or quota that holds {where} is full: free space there, then run again"
    elif answer in ("NoSuchBucket", "InvalidBucketName"):
        fault = f"there is no bucket for {place}: create it, or correct the profile's root"
    elif answer in _EXPIRED_CODES:
        fault = f"the credentials for {place} have expired: renew them, then run again"
    elif names & {
        "NoCredentialsError",
        "PartialCredentialsError",
        "CredentialRetrievalError",
        "ProfileNotFound",
    }:
        fault = (
            f"there are no credentials for {place}: set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, "
            "or give this machine a role"
        )
    elif answer == "RequestTimeTooSkewed":
        fault = f"{place} refuses this machine's clock: set the clock right, then run again"
    elif answer in _REFUSED_CODES:
        fault = (
            f"{place} refuses these credentials for {doing}: correct AWS_ACCESS_KEY_ID and "
            "AWS_SECRET_ACCESS_KEY, the region, or the rights of this user"
        )
    elif isinstance(error, PermissionError) or errno.EROFS in _errnos(error):
        fault = f"no right for {doing} in {where}: change its owner or mode, or the profile's root"
    elif isinstance(error, NotADirectoryError | IsADirectoryError):
        fault = f"{where} is a file where a folder should be, or the reverse: move it away"
    if fault:
        return UserError(fault, detail=detail)
    if names & _NETWORK_ERRORS or isinstance(error, TimeoutError | ConnectionError):
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
        if isinstance(error, OSError) or is_disk_full(error):
            raise to_user_error(error, doing=doing, where=where) from error
        raise


def with_retries(
    operation: Callable[[], T],
    *,
    doing: str,
    where: str,
    endpoint: str = "",
    delays: Sequence[float] = DELAYS,
) -> T:
    """The operation's result. It may be called `len(delays)` + 1 times, so it has to bear repetition."""
    for attempt in range(len(delays) + 1):
        try:
            return operation()
        except (FileNotFoundError, NanochatError) as error:
            if code(error) == "NoSuchBucket":
                raise to_user_error(error, doing=doing, where=where, endpoint=endpoint) from error
            raise
        except Exception as error:
            # botocore and aiohttp have no common base of errors, so all are looked at.
            storage = isinstance(error, OSError) or bool(_names(error) & ({"BotoCoreError"} | _NETWORK_ERRORS))
            if not storage:
                raise
            if attempt == len(delays) or not transient(error):
                raise to_user_error(error, doing=doing, where=where, endpoint=endpoint) from error
        sleep(delays[attempt])
    raise AssertionError("the loop returns or raises")
