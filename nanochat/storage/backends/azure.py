"""Azure Blob Storage by adlfs: exclusive creation by If-None-Match, blocks with MD5s."""

from __future__ import annotations

import base64
import logging
import os
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import aiohttp
from adlfs import AzureBlobFileSystem
from azure.core.credentials import AzureNamedKeyCredential, AzureSasCredential
from azure.core.exceptions import (
    AzureError,
    ClientAuthenticationError,
    HttpResponseError,
    IncompleteReadError,
    ServiceRequestError,
    ServiceRequestTimeoutError,
    ServiceResponseError,
    ServiceResponseTimeoutError,
)
from azure.identity import CredentialUnavailableError
from azure.identity.aio import DefaultAzureCredential
from azure.storage.blob.aio import BlobServiceClient, LinearRetry
from fsspec.asyn import sync

from nanochat.spec.errors import UserError
from nanochat.storage.backends import PART, PARTS_AT_ONCE, REQUEST_RETRIES, Backend, credential
from nanochat.storage.failures import ErrorTable, Fault
from nanochat.storage.store import Profile

ACCOUNT = "AZURE_STORAGE_ACCOUNT_NAME"
KEY, TOKEN = "AZURE_STORAGE_ACCOUNT_KEY", "AZURE_STORAGE_SAS_TOKEN"


def _codes(error: BaseException) -> tuple[str, ...]:
    if not isinstance(error, HttpResponseError) or error.status_code is None:
        return ()
    code = getattr(error, "error_code", None)
    return (*filter(None, [str(getattr(code, "value", code or ""))]), str(error.status_code))


ERRORS = ErrorTable(
    base=(OSError, AzureError, aiohttp.ClientError),
    codes_of=_codes,
    types={
        ServiceRequestTimeoutError: Fault.SLOW,
        ServiceResponseTimeoutError: Fault.SLOW,
        aiohttp.ServerTimeoutError: Fault.SLOW,
        ServiceRequestError: Fault.UNREACHABLE,
        ServiceResponseError: Fault.UNREACHABLE,
        IncompleteReadError: Fault.UNREACHABLE,
        aiohttp.ClientError: Fault.UNREACHABLE,
        ClientAuthenticationError: Fault.NO_CREDENTIALS,  # without an answer: no identity gave a token
    },
    codes={
        **dict.fromkeys(
            ("ServerBusy", "InternalError", "OperationTimedOut", "Md5Mismatch", "ContainerBeingDeleted",
             "InvalidBlockList",  # another upload of the same blob was completed meanwhile
             "408", "429", "500", "502", "503", "504"),
            Fault.TRANSIENT,
        ),
        **dict.fromkeys(("401", "403"), Fault.REFUSED),
        **dict.fromkeys(("ContainerNotFound", "InvalidResourceName"), Fault.NO_BUCKET),
    },
    bucket="container",
    give=f"set {KEY} or {TOKEN}, or give this machine an identity",
    correct=f"{KEY} or {TOKEN}, the roles of this identity, or this machine's clock",
)  # fmt: skip


class _FileSystem(AzureBlobFileSystem):
    """adlfs with a client of ours: with any endpoint, parts of bounded size and no retries for a minute."""

    def __init__(self, profile: Profile, folder: Path | None, **options: Any) -> None:
        self._profile, self._folder = profile, folder
        super().__init__(anon=True, assume_container_exists=False, **options)

    def do_connect(self) -> None:
        url = self._profile.endpoint or _account_url()
        self.credential = None if self._profile.anonymous else _credential(url, self._folder)  # adlfs closes it
        self.service_client = BlobServiceClient(
            url,
            credential=self.credential,
            retry_policy=LinearRetry(backoff=1, retry_total=REQUEST_RETRIES, random_jitter_range=0),
            connection_timeout=5,
            read_timeout=60,
            max_block_size=PART,
            max_single_put_size=PART,
            max_single_get_size=PART,
            max_chunk_get_size=PART,
        )


class Azure(Backend):
    """Azure Blob Storage by adlfs. Blocks that are never committed are dropped by the server after a week."""

    errors = ERRORS
    modified = "last_modified"

    def connect(self, profile: Profile, credentials: Path | None) -> Any:
        return _FileSystem(profile, credentials, use_listings_cache=False, skip_instance_cache=True)

    def mark(self, writer: str) -> dict[str, Any]:
        return {"headers": {"x-ms-meta-writer": writer}}  # adlfs sets `metadata` itself

    def writer(self, fs: Any, address: str) -> str | None:
        return (fs.info(address)["metadata"] or {}).get("writer")

    def find_bucket(self, fs: Any, bucket: str) -> None:
        # adlfs asks for the container's properties, for which a token of the container alone gives no right.
        async def look() -> None:
            async with fs.service_client.get_container_client(bucket) as container:
                async for _ in container.list_blobs(results_per_page=1):
                    return

        sync(fs.loop, look)

    def upload_options(self, size: int) -> dict[str, Any]:
        return {"max_concurrency": PARTS_AT_ONCE, "validate_content": True}

    def download_options(self) -> dict[str, Any]:
        return {"max_concurrency": PARTS_AT_ONCE}


def _account_url() -> str:
    account = os.environ.get(ACCOUNT)
    if not account:
        raise UserError(
            "the account of abfs:// is not known: set the profile's endpoint to https://ACCOUNT.blob.core.windows.net"
        )
    return f"https://{account}.blob.core.windows.net"


def _credential(url: str, folder: Path | None) -> Any:
    """A key or token that is given, else the identity of the machine, pod or user."""
    parts = urlsplit(url)
    if key := credential(KEY, folder):
        # An emulator has its accounts in the path.
        account = credential(ACCOUNT, folder) or parts.path.strip("/") or parts.netloc.partition(".")[0]
        try:
            base64.b64decode(key, validate=True)
        except ValueError:
            raise UserError(f"{KEY} is not a key, which are base64: copy it again") from None
        return AzureNamedKeyCredential(account, key)
    if token := credential(TOKEN, folder):
        return AzureSasCredential(token)
    if folder is not None:
        raise UserError(f"{folder} must hold the file {KEY} or {TOKEN}")
    if parts.scheme != "https":
        raise CredentialUnavailableError("an identity's token is only sent over https")
    logging.getLogger("azure.identity").setLevel(logging.ERROR)  # its list of what it tried is said in one sentence
    return DefaultAzureCredential()


BACKEND = Azure()
