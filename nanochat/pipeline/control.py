"""control.json in a run's folder: what was asked of a run that another process carries out."""

from __future__ import annotations

import logging

from nanochat.pipeline.runs import RunPaths
from nanochat.storage.failures import Damaged
from nanochat.storage.records import read_object
from nanochat.storage.store import Store

log = logging.getLogger(__name__)

LARGEST = 1 << 16  # bytes


def ask_cancel(store: Store, paths: RunPaths) -> None:
    """Ask the runner to save checkpoints and stop for good."""
    store.write_json(paths.control, {"cancel": True})


def is_cancelled(store: Store, paths: RunPaths) -> bool:
    """Whether the run was asked to stop. A file that makes no sense asks for nothing: it is removed, with a warning."""
    try:
        asked = read_object(store, paths.control, LARGEST)
    except Damaged as damage:
        log.warning("what was asked of the run is passed over: %s", damage.message)
        forget(store, paths)
        return False
    return asked is not None and asked.get("cancel") is True


def forget(store: Store, paths: RunPaths) -> None:
    """Forget what was asked of the run before."""
    store.delete(paths.control)
