"""Garbage collection: what no run refers to, what was never finished, what writers left when they died.

    collected = collect(store, keep={("model", key), ("base", key)}, older_than_s=86_400, dry_run=True)

`keep` names artifacts by (kind, key) and checkpoints by (stage, key). Age is that of the newest file, so that what
a living process writes stays, as long as it writes something now and then.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Collection, Iterable
from dataclasses import dataclass

from nanochat.storage import artifacts, checkpoints
from nanochat.storage.failures import Damaged
from nanochat.storage.manifest import LARGEST, Manifest
from nanochat.storage.store import Entry, Store


@dataclass(frozen=True, slots=True)
class Removed:
    """Something that was, or in a dry run would be, removed: its path, why, and its size in bytes."""

    path: str
    reason: str
    size: int


@dataclass(frozen=True, slots=True)
class Collected:
    """The outcome of one collection."""

    removed: tuple[Removed, ...]

    @property
    def size(self) -> int:
        """Bytes freed."""
        return sum(item.size for item in self.removed)

    def __str__(self) -> str:
        lines = [f"{item.path}: {item.size:,} bytes, {item.reason}" for item in self.removed]
        return "\n".join([*lines, f"{len(self.removed):,} items, {self.size:,} bytes"])


def collect(
    store: Store, *, keep: Collection[tuple[str, str]], older_than_s: float, dry_run: bool = False
) -> Collected:
    """Remove, from artifacts and checkpoints, what is not in `keep` or unfinished, and older than `older_than_s`."""
    limit = time.time() - older_than_s
    removed: list[Removed] = []
    for root in (artifacts.ROOT, checkpoints.ROOT):
        for base, entries in _groups(store.list(root), depth=3).items():
            _, owner, key = base.split("/")
            if (owner, key) not in keep:
                doomed = {base: "nothing refers to it"} if _newest(entries) < limit else {}
            else:
                doomed = _unfinished(store, base, entries, limit)
            for path, reason in doomed.items():
                size = sum(entry.size for entry in entries if f"{entry.path}/".startswith(f"{path}/"))
                removed.append(Removed(path=path, reason=reason, size=size))
                if not dry_run:
                    _delete(store, path, entries)
    for entry in (*store.leftovers(artifacts.ROOT), *store.leftovers(checkpoints.ROOT), *store.leftovers("runs")):
        if entry.modified < limit:
            removed.append(Removed(path=entry.path, reason="a writer left it unfinished", size=entry.size))
            if not dry_run:
                store.delete_leftover(entry)
    return Collected(removed=tuple(removed))


def _groups(entries: Iterable[Entry], depth: int) -> dict[str, list[Entry]]:
    """Files by the folder that is their first `depth` parts."""
    groups: dict[str, list[Entry]] = defaultdict(list)
    for entry in entries:
        parts = entry.path.split("/")
        if len(parts) > depth:
            groups["/".join(parts[:depth])].append(entry)
    return groups


def _newest(entries: Iterable[Entry]) -> float:
    return max(entry.modified for entry in entries)


def _unfinished(store: Store, base: str, entries: list[Entry], limit: float) -> dict[str, str]:
    """Folders of launches below an artifact or a stage's checkpoints that no manifest names."""
    paths = {entry.path for entry in entries}
    winner = _winner(store, base) if f"{base}/{artifacts.MANIFEST}" in paths else None
    aside = {
        entry.path: "it was damaged and set aside"
        for entry in entries
        if entry.path.startswith(f"{base}/{artifacts.MANIFEST}.") and entry.modified < limit
    }
    return aside | {
        folder: "its launch did not finish it"
        for folder, found in _groups(entries, depth=4).items()
        if folder.rsplit("/", 1)[1] != winner
        and f"{folder}/{artifacts.MANIFEST}" not in paths
        and _newest(found) < limit
    }


def _winner(store: Store, base: str) -> str | None:
    try:
        return Manifest.from_bytes(store.read(f"{base}/{artifacts.MANIFEST}", LARGEST)).launch
    except (Damaged, FileNotFoundError):
        return None


def _delete(store: Store, path: str, entries: Iterable[Entry]) -> None:
    """Manifests first, so that no reader meets half of what they name."""
    for entry in entries:
        if entry.path.startswith(f"{path}/") and entry.path.endswith(f"/{artifacts.MANIFEST}"):
            store.delete(entry.path)
    store.delete(path)
