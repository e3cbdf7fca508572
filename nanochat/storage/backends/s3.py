"""S3 and servers that speak it, by s3fs: exclusive creation by If-None-Match, parts with checksums."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import aiohttp
import botocore.exceptions
import s3fs

from nanochat.spec.errors import UserError
from nanochat.storage.backends import PART, PARTS_AT_ONCE, REQUEST_RETRIES, Backend, credential
from nanochat.storage.failures import ErrorTable, Fault
from nanochat.storage.store import Entry, Profile

MOST_PARTS = 9_000  # S3 allows 10,000 parts
CONNECTIONS = 32  # of one store; a request beyond them waits for one


def _codes(error: BaseException) -> tuple[str, ...]:
    response = getattr(error, "response", None)
    if not isinstance(response, dict):
        return ()
    status = response.get("ResponseMetadata", {}).get("HTTPStatusCode", "")
    return tuple(filter(None, (str(response.get("Error", {}).get("Code", "")), str(status))))


ERRORS = ErrorTable(
    base=(OSError, botocore.exceptions.BotoCoreError, aiohttp.ClientError),
    codes_of=_codes,
    types={
        botocore.exceptions.ConnectTimeoutError: Fault.SLOW,
        botocore.exceptions.ReadTimeoutError: Fault.SLOW,
        aiohttp.ServerTimeoutError: Fault.SLOW,
        botocore.exceptions.HTTPClientError: Fault.UNREACHABLE,
        botocore.exceptions.ConnectionError: Fault.UNREACHABLE,
        botocore.exceptions.IncompleteReadError: Fault.UNREACHABLE,
        aiohttp.ClientError: Fault.UNREACHABLE,
        botocore.exceptions.NoCredentialsError: Fault.NO_CREDENTIALS,
        botocore.exceptions.PartialCredentialsError: Fault.NO_CREDENTIALS,
        botocore.exceptions.CredentialRetrievalError: Fault.NO_CREDENTIALS,
        botocore.exceptions.ProfileNotFound: Fault.NO_CREDENTIALS,
    },
    codes={
        **dict.fromkeys(
            ("InternalError", "ServiceUnavailable", "SlowDown", "OperationAborted", "IncompleteBody", "BadDigest",
             "XAmzContentSHA256Mismatch", "ConditionalRequestConflict", "Throttling", "500", "502", "503", "504"),
            Fault.TRANSIENT,
        ),
        **dict.fromkeys(
            ("AccessDenied", "Forbidden", "InvalidAccessKeyId", "SignatureDoesNotMatch", "NotSignedUp",
             "AccountProblem", "AllAccessDisabled", "InvalidSecurity", "AuthorizationHeaderMalformed",
             "XAdminUserNotFound",  # versitygw
             "401", "403"),
            Fault.REFUSED,
        ),
        **dict.fromkeys(("ExpiredToken", "InvalidToken", "TokenRefreshRequired"), Fault.EXPIRED),
        **dict.fromkeys(("NoSuchBucket", "InvalidBucketName"), Fault.NO_BUCKET),
        "RequestTimeout": Fault.SLOW,
        "RequestTimeTooSkewed": Fault.CLOCK,
    },
    give="set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or give this machine a role",
    correct="AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, the region, or the rights of this user",
)  # fmt: skip


class S3(Backend):
    """S3 by s3fs."""

    errors = ERRORS
    modified = "LastModified"

    def connect(self, profile: Profile, credentials: Path | None) -> Any:
        fs: Any = s3fs.S3FileSystem(
            anon=profile.anonymous,
            **_credentials(credentials),
            endpoint_url=profile.endpoint,
            client_kwargs={"region_name": profile.region} if profile.region else {},
            config_kwargs={
                "connect_timeout": 5,
                "read_timeout": 60,
                "retries": {"total_max_attempts": 1},
                "max_pool_connections": CONNECTIONS,
            },
            max_concurrency=1,  # small files are read by one request, which meets one state of them
            use_listings_cache=False,
            skip_instance_cache=True,
        )
        fs.retries = 1 + REQUEST_RETRIES
        return fs

    def mark(self, writer: str) -> dict[str, Any]:
        return {"Metadata": {"writer": writer}}

    def writer(self, fs: Any, address: str) -> str | None:
        return fs.getxattr(address, "writer")

    # By a prefix s3fs asks once; by a path it asks twice more where nothing is found, for an object of that name.
    def find(self, fs: Any, address: str) -> Any:
        parent, _, name = address.rpartition("/")
        return fs.find(parent, prefix=f"{name}/", detail=True) if parent else super().find(fs, address)

    def children(self, fs: Any, address: str) -> Sequence[str]:
        parent, _, name = address.rpartition("/")
        if not parent:
            return super().children(fs, address)
        return fs.find(parent, prefix=f"{name}/", maxdepth=1, withdirs=True)

    def upload_options(self, size: int) -> dict[str, Any]:
        # Each part goes with a checksum that the server verifies.
        return {"chunksize": max(PART, -(-size // MOST_PARTS)), "max_concurrency": PARTS_AT_ONCE}

    def download_options(self) -> dict[str, Any]:
        return {"chunksize": PART, "max_concurrency": PARTS_AT_ONCE}

    def leftovers(self, fs: Any, bucket: str, prefix: str) -> Sequence[Entry]:
        answer = fs.call_s3("list_multipart_uploads", Bucket=bucket, Prefix=prefix)
        return [
            Entry(f"{item['Key']}?{item['UploadId']}", 0, item["Initiated"].timestamp())
            for item in answer.get("Uploads", ())
        ]

    def delete_leftover(self, fs: Any, bucket: str, key: str, upload: str) -> None:
        fs.abort_mpu(bucket, key, upload)


def _credentials(folder: Path | None) -> dict[str, Any]:
    """s3fs' names for the credentials in a folder; none where there is no folder."""
    if folder is None:
        return {}
    names = {"key": "AWS_ACCESS_KEY_ID", "secret": "AWS_SECRET_ACCESS_KEY", "token": "AWS_SESSION_TOKEN"}
    found = {name: value for name, file in names.items() if (value := credential(file, folder))}
    if not {"key", "secret"} <= found.keys():
        raise UserError(f"{folder} must hold the files AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY")
    return found


BACKEND = S3()
