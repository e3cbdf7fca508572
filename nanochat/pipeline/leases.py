"""Leases in a store: which runs are worked on and which models are served, and who removes garbage at the moment.

    with Lease(store, runs=[paths.root]) as lease:       # written at once, renewed by a thread, removed at the end
        lease.await_collection()                         # what is removed now is gone before anything is looked for
        ...

    with Collecting(store) as collecting:                # one at a time for each store
        leases = collecting.leases()                     # those that live
        collecting.check()                               # before each removal

    leases/<holder>.json       of a runner, or of a controller
    leases/gc.json             of the collection of garbage that is under way

Whoever works writes its lease and then looks for gc.json; a collection writes gc.json and then looks for leases: of two
that begin at once one sees the other. No machine's clock is compared with another's. A lease is old by the store's own
times, and one that is old counts as lost only after it was seen not to change.
"""

from __future__ import annotations

import json
import logging
import os
import socket
import threading
import time
import uuid
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from typing import Self

from nanochat.spec.errors import NanochatError, StorageError
from nanochat.storage.failures import Damaged
from nanochat.storage.records import MOST_RECORDS, Count, checked, read_object
from nanochat.storage.store import Store
from nanochat.tracking.background import Ticker

log = logging.getLogger(__name__)

ROOT = "leases"
GC = f"{ROOT}/gc.json"
RENEW_SECONDS = 10.0
WATCH_SECONDS = 3 * RENEW_SECONDS  # without a change: then it is not renewed any more
OLD_SECONDS = 900.0  # by the store's times: until then a store that was out of reach for a while is no reason to watch
_LARGEST = 4 << 20  # bytes; a lease of 10,000 runs is about one


@dataclass(frozen=True, slots=True)
class LeaseRecord:
    """The content of a lease. `beat` grows with each renewal."""

    holder: str
    host: str = ""
    process: Count = 0
    runs: tuple[str, ...] = ()  # folders of runs that are under way, suspended or waiting
    models: tuple[str, ...] = ()  # addresses of models that are served
    beat: Count = 0

    @property
    def whose(self) -> str:
        """For people."""
        return f"process {self.process} of {self.host}"


def _new_record(runs: Iterable[str] = ()) -> LeaseRecord:
    return LeaseRecord(uuid.uuid4().hex, socket.gethostname()[:200], os.getpid(), tuple(runs))


class Lease:
    """A lease of this process; safe to use from several threads."""

    def __init__(self, store: Store, *, runs: Iterable[str] = ()) -> None:
        self.record = _new_record(runs)
        self.path = f"{ROOT}/{self.record.holder}.json"
        self._store = store
        self._lock = threading.Lock()
        self._ticker: Ticker | None = None

    def start(self) -> Self:
        """Write it, and go on renewing it; StorageError where it cannot be written."""
        with self._lock:
            self._write(self.record)
        self._ticker = Ticker("lease", self._renew, lambda: RENEW_SECONDS)
        return self

    def hold(self, *runs: str) -> None:
        """Name more runs; StorageError where that cannot be written now: then a renewal does it later."""
        with self._lock:
            named = tuple(dict.fromkeys((*self.record.runs, *runs)))
            if named != self.record.runs:
                self._write(replace(self.record, runs=named))

    def let_go(self, run: str) -> None:
        """Name a run no more, from the next renewal on."""
        with self._lock:
            self.record = replace(self.record, runs=tuple(held for held in self.record.runs if held != run))

    def serve(self, models: Iterable[str]) -> None:
        """Name the models that are served; StorageError as with `hold`."""
        wanted = tuple(sorted(set(models)))
        with self._lock:
            if wanted != self.record.models:
                self._write(replace(self.record, models=wanted))

    def _write(self, record: LeaseRecord) -> None:
        self.record = replace(record, beat=record.beat + 1)
        self._store.write(self.path, _to_bytes(self.record))

    def _renew(self) -> None:
        with suppress(NanochatError, OSError), self._lock:  # the store is away: it is renewed when it is back
            self._write(self.record)

    def close(self) -> None:
        """Remove it; where the store is away it is left, and counts as lost after a while."""
        if self._ticker is not None:
            self._ticker.close()
        with suppress(NanochatError, OSError):
            self._store.delete(self.path)

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.close()

    def await_collection(self) -> None:
        """Wait until no garbage is removed from the store; one whose process was killed is passed over."""
        watch = CollectionWatch(self._store)
        while (found := watch.collection()) is not None:
            time.sleep(1.0)
            log.debug("waits for the gc of %s", found.whose)


def collection_under_way(store: Store) -> LeaseRecord | None:
    """The collection of garbage that is under way, or was when its process was killed."""
    return _read(store, GC)


def live_run(store: Store, root: str) -> bool:
    """Whether some runner or controller holds a run, as far as this machine's clock tells: for people, not for gc."""
    now = time.time()
    return any(
        (found := _read(store, entry.path)) is not None and root in found.runs
        for entry in store.list(ROOT)[:MOST_RECORDS]
        if abs(now - entry.modified) < OLD_SECONDS
    )


class Collecting:
    """The right to remove garbage from a store, which one process has at a time; another one waits for it."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._record = _new_record()
        self._lost = False  # to another process, whose right it is from then on
        self._ticker: Ticker | None = None

    def __enter__(self) -> Self:
        watch = CollectionWatch(self._store)
        while not self._store.create(GC, self._bytes()):
            watch.collection()
            time.sleep(1.0)
        self._ticker = Ticker("gc", self._renew, lambda: RENEW_SECONDS)
        return self

    def __exit__(self, *_: object) -> None:
        if self._ticker is not None:
            self._ticker.close()
        with suppress(NanochatError, OSError):
            if self._holds():
                self._store.delete(GC)

    def check(self) -> None:
        """StorageError where another process took this one for dead, after a suspended machine for instance."""
        if not self._holds():
            raise StorageError("this machine was silent for too long, and another gc began: run it again")

    def _holds(self) -> bool:
        found = None if self._lost else collection_under_way(self._store)
        self._lost = found is None or found.holder != self._record.holder
        return not self._lost

    def _bytes(self) -> bytes:
        self._record = replace(self._record, beat=self._record.beat + 1)
        return _to_bytes(self._record)

    def _renew(self) -> None:
        with suppress(NanochatError, OSError):
            if self._holds():
                self._store.write(GC, self._bytes())

    def date(self) -> float:
        """The store's time of about now, in seconds since 1970: that of a file that is written for it."""
        self._store.write(GC, self._bytes())
        return next(entry.modified for entry in self._store.list(ROOT) if entry.path == GC)

    def leases(self) -> list[LeaseRecord]:
        """The leases that live. Those that are lost are removed."""
        found, old, now = [], {}, self.date()
        for entry in self._store.list(ROOT)[:MOST_RECORDS]:
            record = None if entry.path == GC else _read(self._store, entry.path)
            if record is None:
                continue
            if now - entry.modified < OLD_SECONDS:
                found.append(record)
            else:
                old[entry.path] = record
        if old:
            time.sleep(WATCH_SECONDS)
        for path, record in old.items():
            if _read(self._store, path) == record:
                self._store.delete(path)
            else:
                found.append(record)
        return found


class CollectionWatch:
    """Watches gc.json, and removes it when it does not change any more."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._seen: LeaseRecord | None = None
        self._since = 0.0

    def collection(self) -> LeaseRecord | None:
        """The collection that is under way; None where there is none, or none any more."""
        found = collection_under_way(self._store)
        if found != self._seen:
            if found is not None and self._seen is None:
                log.warning("this waits for the gc of %s, which removes garbage from the store", found.whose)
            self._seen, self._since = found, time.monotonic()
        elif found is not None and time.monotonic() - self._since > WATCH_SECONDS:
            log.warning("the gc of %s is gone and was not finished", found.whose)
            self._store.delete(GC)
            return None
        return found


def _read(store: Store, path: str) -> LeaseRecord | None:
    """A lease; None where there is no file, and one of nobody where it makes no sense."""
    try:
        found = read_object(store, path, _LARGEST)
        return None if found is None else checked(LeaseRecord, found)
    except (Damaged, ValueError):
        log.warning("%s is no lease", store.uri(path))
        return LeaseRecord("")


def _to_bytes(record: LeaseRecord) -> bytes:
    return json.dumps(asdict(record)).encode()
