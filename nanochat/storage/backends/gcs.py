"""Google Cloud Storage by gcsfs: exclusive creation by ifGenerationMatch=0, in one multipart request."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import aiohttp
import google.auth.exceptions
import requests
from gcsfs.core import GCSFileSystem
from gcsfs.retry import ChecksumError, HttpError, NonRetryableError
from google.oauth2 import service_account

from nanochat.spec.errors import UserError
from nanochat.storage.backends import PART, REQUEST_RETRIES, Backend, credential
from nanochat.storage.failures import ErrorTable, Fault
from nanochat.storage.store import Profile

KEY = "GOOGLE_CREDENTIALS"  # the JSON of a service account's key
SCOPE = "https://www.googleapis.com/auth/devstorage.read_write"


class Refusal(OSError):
    """An answer with an HTTP status of failure; gcsfs' own errors keep the status in their words alone."""

    def __init__(self, status: int) -> None:
        super().__init__(f"HTTP {status}")
        self.status = status


async def _raise_for_status(response: aiohttp.ClientResponse) -> None:
    # 404 and 412 are gcsfs' to name; 499 says that an upload was cancelled as asked.
    if response.status >= 400 and response.status not in (404, 412, 499):
        response.close()
        raise Refusal(response.status)


def _codes(error: BaseException) -> tuple[str, ...]:
    if isinstance(error, Refusal):
        return (str(error.status),)
    if isinstance(error, google.auth.exceptions.GoogleAuthError) and error.retryable:
        return ("retryable",)
    return ()


ERRORS = ErrorTable(
    base=(OSError, HttpError, google.auth.exceptions.GoogleAuthError, aiohttp.ClientError, NonRetryableError),
    codes_of=_codes,
    types={
        aiohttp.ServerTimeoutError: Fault.SLOW,
        requests.Timeout: Fault.SLOW,
        aiohttp.ClientError: Fault.UNREACHABLE,
        requests.ConnectionError: Fault.UNREACHABLE,  # by these google.auth fetches its tokens
        ChecksumError: Fault.TRANSIENT,
        google.auth.exceptions.TransportError: Fault.UNREACHABLE,
        google.auth.exceptions.DefaultCredentialsError: Fault.NO_CREDENTIALS,
        google.auth.exceptions.ReauthFailError: Fault.EXPIRED,
        google.auth.exceptions.RefreshError: Fault.REFUSED,
    },
    codes={
        **dict.fromkeys(("408", "429", "500", "502", "503", "504", "retryable"), Fault.TRANSIENT),
        **dict.fromkeys(("401", "403"), Fault.REFUSED),
    },
    give=f"set {KEY} or GOOGLE_APPLICATION_CREDENTIALS, or give this machine a service account",
    correct=f"{KEY} or GOOGLE_APPLICATION_CREDENTIALS, or the roles of this service account",
)


def _retried(name: str) -> Callable[..., Any]:
    """A method of gcsfs without its retries, which go on for half a minute and log each error."""
    method = getattr(GCSFileSystem, name).__wrapped__

    async def request(self: GCSFileSystem, *args: Any, **options: Any) -> Any:
        for _ in range(REQUEST_RETRIES):
            try:
                return await method(self, *args, **options)
            except aiohttp.ClientError:
                continue
        return await method(self, *args, **options)

    return request


class _FileSystem(GCSFileSystem):
    _request = _retried("_request")
    _get_file_request = _retried("_get_file_request")


class Gcs(Backend):
    """Google Cloud Storage by gcsfs. Uploads that are never completed are dropped by the server after a week."""

    errors = ERRORS
    modified = "mtime"

    def connect(self, profile: Profile, credentials: Path | None) -> Any:
        return _FileSystem(
            project="",  # only listing and making buckets needs one
            token="anon" if profile.anonymous else _token(credentials),
            endpoint_url=profile.endpoint,
            requests_timeout=aiohttp.ClientTimeout(total=None, sock_connect=5, sock_read=60),
            session_kwargs={"raise_for_status": _raise_for_status},
            use_listings_cache=False,
            skip_instance_cache=True,
        )

    def mark(self, writer: str) -> dict[str, Any]:
        return {"metadata": {"writer": writer}}

    def writer(self, fs: Any, address: str) -> str | None:
        return fs.info(address).get("metadata", {}).get("writer")

    def find_bucket(self, fs: Any, bucket: str) -> None:
        fs.ls(bucket, max_results=1)

    def upload_options(self, size: int) -> dict[str, Any]:
        return {"chunksize": PART, "consistency": "md5"}

    def download_options(self) -> dict[str, Any]:
        return {"concurrency": 1}  # one stream, which meets one state of the object and holds a block of it


def _token(folder: Path | None) -> Any:
    """gcsfs' `token`: the credentials of a key, or the usual chain of Google's libraries (files, the machine's)."""
    key = credential(KEY, folder)
    if key:
        try:
            return service_account.Credentials.from_service_account_info(json.loads(key), scopes=[SCOPE])
        except (ValueError, TypeError, AttributeError):
            raise UserError(f"{KEY} is not the JSON of a service account's key: make a new one") from None
    if folder is not None:
        raise UserError(f"{folder} must hold the file {KEY}")
    return "google_default"


BACKEND = Gcs()
