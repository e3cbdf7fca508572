"""The store of a profile: a folder, or object storage."""

from __future__ import annotations

from pathlib import Path

from nanochat.parse.address import SERVER, STORE
from nanochat.spec.addresses import given_address
from nanochat.spec.environment import integer
from nanochat.storage.failures import delays
from nanochat.storage.folder import FolderStore
from nanochat.storage.store import Profile, Store

PATIENCE = "NANOCHAT_STORE_PATIENCE"  # seconds that storage may be out of reach, where that is not the usual time


def open_store(profile: Profile, *, patient: bool = True, credentials: Path | None = None) -> Store:
    """The store of a profile; nothing is read or written yet. Not `patient`, a remote one is tried once and at once.

    `credentials` is a folder with a file for each variable with credentials, instead of the environment.
    """
    address = given_address(profile.root, STORE, "the store's root")
    if profile.endpoint:
        given_address(profile.endpoint, SERVER, "the store's endpoint")
    if address.path is None:
        # fsspec's file systems take half a second to import: not spent where a folder is used.
        from nanochat.storage.remote import RemoteStore

        patience = integer(PATIENCE, 0, high=86_400)
        return RemoteStore(profile, delays=delays(patience) if patient else (), credentials=credentials)
    return FolderStore(address.path)
