"""Each kind of object storage behind fsspec's calls has a module for its particulars, imported when used.

backend = find_backend("gs")        # UserError where its extra is not installed
fs = backend.connect(profile, credentials)
"""

from __future__ import annotations

import importlib
import os
from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from nanochat.spec.errors import UserError
from nanochat.storage.failures import ErrorTable
from nanochat.storage.store import Entry, Profile

PART = 8 << 20  # bytes of one part of an upload or download
PARTS_AT_ONCE = 4  # a transfer holds a few times PART x PARTS_AT_ONCE bytes, however large the file
REQUEST_RETRIES = 1  # at once, for one part of a large file; trying a whole operation again is `with_retries`'

SCHEMES = {"s3": ("s3", ""), "gs": ("gcs", "gcs"), "abfs": ("azure", "azure")}  # module and extra of each


class Backend(ABC):
    """One kind of object storage. Addresses are `bucket/key`, file systems fsspec's."""

    errors: ErrorTable
    modified: str  # the field of `info` with the time of the last change

    @abstractmethod
    def connect(self, profile: Profile, credentials: Path | None) -> Any:
        """A file system without listings cache that tries each request twice; nothing is read or written yet."""

    @abstractmethod
    def mark(self, writer: str) -> dict[str, Any]:
        """Options of `pipe_file` that write an object with its writer's mark."""

    @abstractmethod
    def writer(self, fs: Any, address: str) -> str | None:
        """The mark of an object."""

    def find_bucket(self, fs: Any, bucket: str) -> None:
        """FileNotFoundError where there is no bucket, unless errors about its objects say that themselves."""
        return

    def find(self, fs: Any, address: str) -> Any:
        """The details of all objects below an address by name; may be a list where the address is an object's."""
        return fs.find(address, detail=True)

    def children(self, fs: Any, address: str) -> Sequence[str]:
        """The addresses directly below one; may be itself where it is an object's."""
        return fs.ls(address, detail=False)

    def upload_options(self, size: int) -> dict[str, Any]:
        """Options of `put_file` for a file of `size` bytes: parts of bounded size, verified where they arrive."""
        return {}

    def download_options(self) -> dict[str, Any]:
        """Options of `get_file`: parts of bounded size."""
        return {}

    def leftovers(self, fs: Any, bucket: str, prefix: str) -> Sequence[Entry]:
        """Unfinished uploads of keys that begin with `prefix`, at `key?id`; none where the server drops them itself."""
        return []

    def delete_leftover(self, fs: Any, bucket: str, key: str, upload: str) -> None:
        """Remove an unfinished upload."""
        raise NotImplementedError


def credential(name: str, folder: Path | None) -> str:
    """A value with credentials: the folder's file of that name, without a folder the variable; '' where not given."""
    if folder is None:
        return os.environ.get(name, "").strip()
    file = folder / name
    return file.read_text().strip() if file.exists() else ""


def find_backend(scheme: str) -> Backend:
    """The backend of an address' scheme; UserError where what it needs is not installed."""
    module, extra = SCHEMES[scheme]
    try:
        return importlib.import_module(f"{__name__}.{module}").BACKEND
    except ModuleNotFoundError as error:
        if not extra:
            raise
        advice = f"run pip install '.[{extra}]' in the project's folder"
        raise UserError(f"a store at {scheme}:// needs more packages: {advice}") from error
