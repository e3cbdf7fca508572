"""The stores of all pipelines: one for each place, however many pipelines keep their artifacts there.

    stores = Stores(cache_folder)
    store = stores.open(profile)              # nothing is read yet
    artifacts = stores.artifacts(profile)     # what is looked up for one pipeline the others take for some seconds

A connection to object storage costs 13 MiB and a tenth of a second, and a pipeline looks for hundreds of artifacts: a
thousand pipelines share both.
"""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

from nanochat.model.artifact import KIND, SERVED
from nanochat.pipeline.outputs import TOLD_OF_MODELS
from nanochat.storage.artifacts import RECENT, Artifacts
from nanochat.storage.manifest import Manifest
from nanochat.storage.opening import open_store
from nanochat.storage.store import Profile, Store
from operators.config import StoreProfile

T = TypeVar("T")

MOST = 100  # stores that are kept; profiles are at most as many
FRESH_SECONDS = 15.0  # for which what was looked up is taken as it was


class Stores:
    """Safe to use from several threads."""

    def __init__(self, cache: Path) -> None:
        self._cache = cache
        self._lock = threading.Lock()
        self._kept: OrderedDict[tuple[Profile, str], SharedArtifacts] = OrderedDict()

    def open(self, profile: StoreProfile, *, root: str = "") -> Store:
        """The store of a profile, or another `root` of it, by the controller's credentials.

        It is tried once and at once. Credentials that are renewed in its folder are taken up.
        """
        return self.artifacts(profile, root=root).store

    def artifacts(self, profile: StoreProfile, *, root: str = "") -> SharedArtifacts:
        """The artifacts of that store."""
        location = replace(profile.location(), root=root) if root else profile.location()
        key = (location, profile.credentials or "")
        with self._lock:
            if key not in self._kept:
                credentials = Path(profile.credentials) if profile.credentials else None
                store = open_store(location, patient=False, credentials=credentials)
                self._kept[key] = SharedArtifacts(store, self._cache, location, profile.credentials or "")
            self._kept.move_to_end(key)
            if len(self._kept) > MOST:
                self._kept.popitem(last=False)
            return self._kept[key]

    def forget(self) -> None:
        """Drop what was looked up and is old."""
        with self._lock:
            kept = list(self._kept.values())
        for artifacts in kept:
            artifacts.forget()


class SharedArtifacts(Artifacts):
    """The artifacts of a store as many pipelines look for them; safe to use from several threads."""

    def __init__(self, store: Store, cache_folder: Path, location: Profile, credentials: str = "") -> None:
        """`location` and `credentials`, a folder, say how another process opens the store."""
        super().__init__(store, cache_folder)
        self.location, self.credentials = location, credentials
        self._looking = threading.RLock()  # who comes second takes what the first one finds
        self._known: dict[tuple[str, ...], tuple[float, Any]] = {}  # what was asked -> when, and the answer

    def survey(self, wanted: Iterable[tuple[str, str]], *, since: float = 0.0) -> dict[tuple[str, str], Manifest]:
        """The manifests, in short, of those that exist of many (kind, key), as they were some seconds ago or, of
        time.monotonic(), not before `since`. A kind's artifacts are listed, and only those that are there looked into.
        """
        with self._looking:
            pairs = [pair for pair in dict.fromkeys(wanted) if pair[1] in self._keys(pair[0], since)]
            new = [pair for pair in pairs if not self._is_fresh(("of", *pair), since)]
            began, found = time.monotonic(), self.find_all(new)
            for pair in new:
                self._known["of", *pair] = began, _in_short(found.get(pair))
            return {pair: told for pair in pairs if (told := self._known["of", *pair][1]) is not None}

    def damaged(self, kind: str, key: str) -> tuple[str, ...]:
        """Damage, one sentence each; () where all is well, or where nothing lies there."""
        return super().damaged(kind, key) if key in self._keys(kind) else ()

    def recent(self, kind: str, most: int = RECENT) -> Sequence[Manifest]:
        """The newest readable manifests of a kind, as they were some seconds ago."""
        with self._looking:
            return self._shared(("recent", kind, str(most)), lambda: super(SharedArtifacts, self).recent(kind, most))

    def forget(self) -> None:
        """Drop what is old, unless somebody looks for something just now."""
        if not self._looking.acquire(blocking=False):
            return
        try:
            self._known = {asked: known for asked, known in self._known.items() if self._is_fresh(asked)}
        finally:
            self._looking.release()

    def _keys(self, kind: str, since: float = 0.0) -> frozenset[str]:
        with self._looking:
            return self._shared(("keys", kind), lambda: super(SharedArtifacts, self)._keys(kind), since)

    def _shared(self, asked: tuple[str, ...], look: Callable[[], T], since: float = 0.0) -> T:
        if not self._is_fresh(asked, since):
            began = time.monotonic()
            self._known[asked] = began, look()
        return self._known[asked][1]

    def _is_fresh(self, asked: tuple[str, ...], since: float = 0.0) -> bool:
        known = self._known.get(asked)
        return known is not None and known[0] > max(since, time.monotonic() - FRESH_SECONDS)


def _in_short(manifest: Manifest | None) -> Manifest | None:
    """A manifest without what no status tells and no fingerprint counts, for it is kept for a while."""
    if manifest is None:
        return None
    files = tuple(record for record in manifest.files if record.path in SERVED) if manifest.kind == KIND else ()
    told = manifest.metadata if manifest.kind in TOLD_OF_MODELS else {}
    return replace(manifest, recipe={}, inputs={}, files=files, metadata=told)
