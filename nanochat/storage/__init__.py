"""One store over a folder or object storage: artifacts with manifests, checkpoints, local cache, garbage collection."""

from nanochat.storage.artifacts import Artifacts, Writer
from nanochat.storage.checkpoints import Checkpoint, Checkpoints
from nanochat.storage.failures import Damaged
from nanochat.storage.manifest import Manifest
from nanochat.storage.opening import open_store
from nanochat.storage.store import Entry, FileRecord, Profile, Store

__all__ = [
    "Artifacts",
    "Checkpoint",
    "Checkpoints",
    "Damaged",
    "Entry",
    "FileRecord",
    "Manifest",
    "Profile",
    "Store",
    "Writer",
    "open_store",
]
