"""The controller's leases: the runs that are under way, suspended or waiting, and the models that it has served.

    leases.hold(store, run)         # written before anything of the run is looked for
    leases.let_go(store, run)       # it has ended, or is gone
    leases.serve(store, models)

There is one for each store, however many pipelines it has, so that a pipeline at rest costs nothing.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable
from dataclasses import dataclass, field

from nanochat.pipeline.leases import CollectionWatch, Lease
from nanochat.spec.errors import StorageError
from nanochat.storage.store import Store


@dataclass(slots=True)
class _Held:
    lease: Lease
    watch: CollectionWatch
    safe: set[str] = field(default_factory=set)  # runs that were named while nobody removed garbage, or since


class StoreLeases:
    """Safe to use from several threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._stores: dict[str, _Held] = {}  # by root

    def is_held(self, store: Store, run: str) -> bool:
        """Whether a run is named, and nothing that it needs can be removed."""
        held = self._stores.get(store.root)
        return held is not None and run in held.safe

    def hold(self, store: Store, run: str) -> None:
        """Name a run. StorageError where that fails, or while garbage is removed from the store."""
        held = self._of(store)
        held.lease.hold(run)
        collection = held.watch.collection()
        if collection is not None:
            raise StorageError(f"garbage is removed from it at the moment, by {collection.whose}")
        held.safe.add(run)

    def let_go(self, store: Store, run: str) -> None:
        """Name a run no more."""
        held = self._stores.get(store.root)
        if held is not None:
            held.safe.discard(run)
            held.lease.let_go(run)

    def serve(self, store: Store, models: Iterable[str]) -> None:
        """Name the models that are served; StorageError where that fails."""
        self._of(store).lease.serve(models)

    def _of(self, store: Store) -> _Held:
        with self._lock:
            if store.root not in self._stores:
                self._stores[store.root] = _Held(Lease(store).start(), CollectionWatch(store))
            return self._stores[store.root]
