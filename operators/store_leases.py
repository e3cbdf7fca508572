"""The controller's leases: the runs that are under way, suspended or waiting, and the models that it has served.

    leases.expect(run)              # it is named with the next that is held
    leases.hold(store, run)         # written before anything of the run is looked for
    leases.let_go(store, run)       # it has ended, or is gone
    leases.serve(store, models)

There is one for each store, however many pipelines it has, so that a pipeline at rest costs nothing.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterable
from dataclasses import dataclass, field

from nanochat.pipeline.leases import CollectionWatch, Lease
from nanochat.spec.errors import StorageError
from nanochat.storage.store import Store


@dataclass(slots=True)
class _Held:
    lease: Lease
    watch: CollectionWatch
    since: dict[str, float] = field(default_factory=dict)  # run -> from when on nothing that it needs can be removed
    lock: threading.Lock = field(default_factory=threading.Lock)  # who waits for it finds its run named by another
    started: bool = False

    def start(self) -> Lease:
        """The lease, which is written and renewed from now on; StorageError where it cannot be written."""
        if not self.started:
            self.lease.start()
            self.started = True
        return self.lease


class StoreLeases:
    """Safe to use from several threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._stores: dict[str, _Held] = {}  # by root
        self._expected: set[str] = set()

    def expect(self, run: str) -> None:
        """A run will be held: it is named with the next one, in every store, so that many are written at once."""
        with self._lock:
            self._expected.add(run)

    def since(self, store: Store, run: str) -> float | None:
        """From when on, of time.monotonic(), a run is named and nothing that it needs can be removed; None: not yet."""
        held = self._stores.get(store.root)
        return held.since.get(run) if held else None

    def hold(self, store: Store, run: str) -> None:
        """Name a run. StorageError where that fails, or while garbage is removed from the store."""
        held = self._of(store)
        with held.lock:
            if run in held.since:
                return
            with self._lock:
                runs = self._expected | {run}
            held.start().hold(*runs)
            collection = held.watch.collection()
            if collection is not None:
                raise StorageError(f"garbage is removed from it at the moment, by {collection.whose}")
            held.since |= dict.fromkeys(runs - held.since.keys(), time.monotonic())

    def let_go(self, store: Store, run: str) -> None:
        """Name a run no more."""
        with self._lock:
            self._expected.discard(run)
        held = self._stores.get(store.root)
        if held is not None:
            with held.lock:
                held.since.pop(run, None)
                held.lease.let_go(run)

    def serve(self, store: Store, models: Iterable[str]) -> None:
        """Name the models that are served; StorageError where that fails."""
        held = self._of(store)
        with held.lock:
            held.start().serve(models)

    def _of(self, store: Store) -> _Held:
        with self._lock:
            if store.root not in self._stores:
                self._stores[store.root] = _Held(Lease(store), CollectionWatch(store))
            return self._stores[store.root]
