"""Reads the logs that `nanochat.pipeline.logs` stores: which launches a stage had, and what their files hold.

for launch in list_launches(store, paths.logs("base")):
    text = read_log(store, f"{paths.logs('base', launch.name)}/rank0", offset=0)
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from nanochat.storage.store import Entry, Store

MOST_BYTES = 4 << 20  # of one read
PIECE = 4 << 20  # bytes in a piece at most; what is larger was not written by `nanochat.pipeline.logs`
_LAUNCH = re.compile(r"[0-9]{1,6}-.+")


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
    for entry in _pieces(store, folder):
        name, _, file = entry.path.removeprefix(f"{folder}/").rpartition("/")[0].partition("/")
        if not (file and _LAUNCH.fullmatch(name)):
            continue
        sizes = files.setdefault(name, {})
        sizes[file] = sizes.get(file, 0) + entry.size
        began[name] = min(began.get(name, entry.modified), entry.modified)
    launches = [LaunchLogs(name, sizes) for name, sizes in files.items()]
    return sorted(launches, key=lambda launch: (launch.attempt, began[launch.name]))


def read_log(store: Store, folder: str, *, offset: int) -> bytes:
    """The bytes of a log from `offset` on, MOST_BYTES at most; empty at its end."""
    found, at = b"", 0
    for piece in _pieces(store, folder):
        if at + piece.size > offset and len(found) < MOST_BYTES:
            found += store.read(piece.path, PIECE)[max(0, offset - at) :]
        at += piece.size
    return found[:MOST_BYTES]


def _pieces(store: Store, folder: str) -> list[Entry]:
    return [entry for entry in store.list(folder) if entry.size <= PIECE]
