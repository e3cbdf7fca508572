"""Reads the logs that `nanochat.pipeline.logs` stores: which launches a stage had, and what their files hold.

for launch in list_launches(store, paths.logs("base")):
    text = read_log(store, f"{paths.logs('base', launch.name)}/rank0", offset=0)
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from nanochat.storage.store import Store

MOST_BYTES = 4 << 20  # of one read


@dataclass(frozen=True, slots=True)
class LaunchLogs:
    """One start of an attempt on one node; `files` has the bytes of each log."""

    name: str
    files: Mapping[str, int]

    @property
    def attempt(self) -> int:
        """The number of the attempt."""
        return int(self.name.partition("-")[0])


def list_launches(store: Store, folder: str) -> list[LaunchLogs]:
    """All launches of a stage, in the order of attempts and within one as they began to write."""
    files: dict[str, dict[str, int]] = {}
    began: dict[str, float] = {}
    for entry in store.list(folder):
        name, file, _ = entry.path.split("/")[-3:]
        sizes = files.setdefault(name, {})
        sizes[file] = sizes.get(file, 0) + entry.size
        began[name] = min(began.get(name, entry.modified), entry.modified)
    launches = [LaunchLogs(name, sizes) for name, sizes in files.items()]
    return sorted(launches, key=lambda launch: (launch.attempt, began[launch.name]))


def read_log(store: Store, folder: str, *, offset: int) -> bytes:
    """The bytes of a log from `offset` on, MOST_BYTES at most; empty at its end."""
    found, at = b"", 0
    for piece in store.list(folder):
        if at + piece.size > offset and len(found) < MOST_BYTES:
            found += store.read(piece.path)[max(0, offset - at) :]
        at += piece.size
    return found[:MOST_BYTES]
