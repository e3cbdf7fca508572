"""The logs of a launch: files that grow in its work folder, kept in the run's folder in numbered pieces.

    sync = LogSync(store, folder, work)
    sync.sync()           # whatever has been written since; goes on where a sync before it, even a dead one, was

Pieces never change, so that a folder and S3 are used alike.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from nanochat.pipeline.log_reader import PIECE
from nanochat.storage.store import Store

LOG_SECONDS = 3.0


@dataclass(slots=True)
class Kept:
    """How much of a file is in storage."""

    pieces: int
    position: int


class LogSync:
    """Copies the growing `*.log` files of one launch into storage."""

    def __init__(self, store: Store, folder: str, work: Path) -> None:
        self._store, self._folder, self._work = store, folder, work
        self._kept: dict[str, Kept] = {}

    def sync(self) -> None:
        """Store what is new; StorageError where that fails, and then the next call does it."""
        for path in sorted(self._work.glob("*.log")):
            name = path.stem
            if name not in self._kept:
                pieces = self._store.list(f"{self._folder}/{name}")
                self._kept[name] = Kept(len(pieces), sum(piece.size for piece in pieces))
            kept = self._kept[name]
            with path.open("rb") as file:
                file.seek(kept.position)
                while data := file.read(PIECE):
                    self._store.write(f"{self._folder}/{name}/{kept.pieces:06d}.log", data)
                    kept.pieces += 1
                    kept.position += len(data)


class LogEcho:
    """Copies what is new in growing files to a stream: a pod's own output, which `kubectl logs` shows."""

    def __init__(self, out: BinaryIO, paths: Iterable[Path]) -> None:
        self._out, self._positions = out, dict.fromkeys(paths, 0)

    def copy(self) -> None:
        """Write what is new, as far as files are there."""
        for path, position in self._positions.items():
            with suppress(FileNotFoundError), path.open("rb") as file:
                file.seek(position)
                while data := file.read(PIECE):
                    self._out.write(data)
                    self._positions[path] += len(data)
        self._out.flush()


class LogUploader:
    """A sync in the background; `close` stores the last words."""

    def __init__(self, store: Store, folder: str, work: Path, *, echo: LogEcho | None = None) -> None:
        self._sync, self._echo = LogSync(store, folder, work), echo
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._run, name="logs", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Store what is left and stop."""
        self._done.set()
        self._thread.join(timeout=60)

    def _run(self) -> None:
        warned = last = False
        while not last:
            last = self._done.wait(LOG_SECONDS)
            if self._echo is not None:
                with suppress(OSError):  # it has no readers, or no room
                    self._echo.copy()
            try:
                self._sync.sync()
            except Exception as error:  # a log that cannot be stored must not stop the stage
                if not warned:
                    print(f"logs cannot be stored now: {error}", file=sys.stderr)
                warned = True
