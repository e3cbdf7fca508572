"""The store of a profile: a folder, or object storage."""

from __future__ import annotations

import os
from pathlib import Path
from urllib.parse import urlsplit

from nanochat.spec.errors import UserError
from nanochat.storage.backends import SCHEMES
from nanochat.storage.failures import delays
from nanochat.storage.folder import FolderStore
from nanochat.storage.store import Profile, Store

PATIENCE = "NANOCHAT_STORE_PATIENCE"  # seconds that storage may be out of reach, where that is not the usual time


def open_store(profile: Profile, *, patient: bool = True, credentials: Path | None = None) -> Store:
    """The store of a profile; nothing is read or written yet. Not `patient`, a remote one is tried once and at once.

    `credentials` is a folder with a file for each variable with credentials, instead of the environment.
    """
    parts = urlsplit(profile.root)
    if parts.scheme in SCHEMES:
        # fsspec's file systems take half a second to import: not spent where a folder is used.
        from nanochat.storage.remote import RemoteStore

        patience = float(os.environ.get(PATIENCE) or 0)
        return RemoteStore(profile, delays=delays(patience) if patient else (), credentials=credentials)
    if parts.scheme in ("", "file"):
        if not profile.root:
            raise UserError("the store's root is empty: give a folder or s3://bucket/prefix")
        return FolderStore(Path(parts.path if parts.scheme else profile.root))
    known = ", ".join(f"{scheme}://" for scheme in SCHEMES)
    raise UserError(f"the store's root begins with '{parts.scheme}://': only folders and {known} are known")
