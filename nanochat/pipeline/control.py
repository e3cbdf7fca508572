"""control.json in a run's folder: what was asked of a run that another process carries out."""

from __future__ import annotations

from nanochat.pipeline.runs import RunPaths
from nanochat.storage.store import Store


def ask_cancel(store: Store, paths: RunPaths) -> None:
    """Ask the runner to save checkpoints and stop for good."""
    store.write_json(paths.control, {"cancel": True})


def is_cancelled(store: Store, paths: RunPaths) -> bool:
    """Whether the run was asked to stop."""
    return store.exists(paths.control) and bool(store.read_json(paths.control).get("cancel"))


def forget(store: Store, paths: RunPaths) -> None:
    """Forget what was asked of the run before."""
    store.delete(paths.control)
