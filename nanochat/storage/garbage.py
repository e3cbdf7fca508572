"""Garbage collection: what no run refers to, what was never finished, what writers left when they died.

    collected = collect(store, keep={("model", key), ("base", key)}, older_than_s=86_400, now=now, dry_run=True)

`keep` names artifacts by (kind, key) and checkpoints by (stage, key). Age is that of the newest file, so that what
a living process writes stays, as long as it writes something now and then.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from types import MappingProxyType

from nanochat.storage import artifacts, checkpoints
from nanochat.storage.failures import Damaged
from nanochat.storage.manifest import LARGEST, Manifest
from nanochat.storage.store import Entry, Store

NAMING = (artifacts.MANIFEST, "status.json")  # files by which readers find the others beside them


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
    store: Store,
    *,
    keep: Collection[tuple[str, str]],
    spare: Collection[tuple[str, str]] = (),
    folders: Mapping[str, str] = MappingProxyType({}),
    older_than_s: float,
    now: float,
    dry_run: bool = False,
    check: Callable[[], None] = lambda: None,
) -> Collected:
    """Remove, from artifacts and checkpoints, what is not in `keep` or unfinished, and older than `older_than_s`.

    `spare` is what somebody works on, ("runs", folder) for a run: nothing below is touched, finished or not. `folders`
    go before all else, each for the reason beside it. `now` is the store's time. `check` is called before each
    removal, and may raise.
    """
    doomed = [*_folders(store, folders), *_doomed(store, set(keep) | set(spare), set(spare), now - older_than_s)]
    doomed += _leftovers(store, spare, folders, now - older_than_s)
    return Collected(tuple(item.removed if dry_run else _remove(store, item, check) for item in doomed))


@dataclass(frozen=True, slots=True)
class _Doomed:
    """Something to remove: its files, first of all those that name the others; or a leftover."""

    removed: Removed
    files: tuple[Entry, ...] = ()
    leftover: Entry | None = None


def _folders(store: Store, folders: Mapping[str, str]) -> Iterator[_Doomed]:
    for path, reason in folders.items():
        entries = tuple(store.list(path))
        yield _Doomed(Removed(path, reason, _size(entries) + _size(store.leftovers(path))), entries)


def _doomed(store: Store, keep: set[tuple[str, str]], spare: set[tuple[str, str]], limit: float) -> Iterator[_Doomed]:
    for root in (artifacts.ROOT, checkpoints.ROOT):
        written = {base: _newest(entries) for base, entries in _groups(store.leftovers(root), depth=3).items()}
        for base, entries in _groups(store.list(root), depth=3).items():
            _, owner, key = base.split("/")
            if (owner, key) in spare:
                continue
            if (owner, key) in keep:
                doomed = _unfinished(store, base, entries, limit)
            else:
                newest = max(_newest(entries), written.get(base, 0.0))
                doomed = {base: "nothing refers to it"} if newest < limit else {}
            for path, reason in doomed.items():
                files = tuple(entry for entry in entries if f"{entry.path}/".startswith(f"{path}/"))
                yield _Doomed(Removed(path, reason, _size(files)), files)


def _leftovers(
    store: Store, spare: Collection[tuple[str, str]], folders: Mapping[str, str], limit: float
) -> Iterator[_Doomed]:
    """Temporary files and broken uploads, but those that go with a folder anyway."""
    for root in (artifacts.ROOT, checkpoints.ROOT, "runs"):
        for entry in store.leftovers(root):
            parts = entry.path.split("/")
            spared = tuple(parts[1:3]) in spare or (parts[0], "/".join(parts[:3])) in spare
            if entry.modified < limit and not spared and "/".join(parts[:3]) not in folders:
                yield _Doomed(Removed(entry.path, "a writer left it unfinished", entry.size), leftover=entry)


def _remove(store: Store, item: _Doomed, check: Callable[[], None]) -> Removed:
    """Remove something; what is still there afterwards was not freed, and is said."""
    check()
    path = item.removed.path
    if item.leftover is not None:
        store.delete_leftover(item.leftover)
        return item.removed
    for entry in item.files:  # no reader meets half of what a manifest names, nor a run without its files
        if entry.path.rsplit("/", 1)[-1] in NAMING:
            store.delete(entry.path)
    store.delete(path)
    left = _size(entry for entry in store.list(path)) + (store.size(path) or 0)
    if left:
        return Removed(path, f"{item.removed.reason}; {left:,} bytes could not be removed", item.removed.size - left)
    return item.removed


def _size(entries: Iterable[Entry]) -> int:
    return sum(entry.size for entry in entries)


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
