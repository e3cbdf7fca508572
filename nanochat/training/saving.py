"""One save of a checkpoint under way: a thread writes, hashes and uploads while training goes on.

    save = Save(checkpoints, step, launch, peers, write=write, commit=commit, tell=progress.warn)
    if save.done: ...
    save.result(alive=progress.update, waits=world.waits)      # waits; raises what made it fail

Every process stores the files that are its own; when all have, the first writes the manifest, which alone makes the
checkpoint. What fails is told and tried again after a pause, from the same copy; credentials, rights and full disks,
which no pause mends, fail at once.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Collection, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path
from typing import Any

from nanochat.runtime.distributed import World
from nanochat.runtime.waits import Waits
from nanochat.spec.errors import NanochatError, StorageError, UserError
from nanochat.storage import Checkpoints
from nanochat.storage.failures import Damaged
from nanochat.storage.store import FileRecord

log = logging.getLogger(__name__)

PAUSES = (5.0, 30.0, 120.0)  # seconds before each further try; in a try the store has its own
TOLD = "a checkpoint could not be saved and is tried again: the log says why"
SIGN_OF_LIFE = 10.0  # seconds between two signs of life of a process that waits
SIGNS = 180  # after so many it counts as one that stands still


class Save:
    """One process's part in the save of one checkpoint. `peers` is a world for this thread alone."""

    def __init__(
        self,
        checkpoints: Checkpoints,
        step: int,
        launch: str,
        peers: World,
        *,
        write: Callable[[Path], Collection[str]],
        commit: Callable[[list[FileRecord]], None],
        tell: Callable[[str], None],
    ) -> None:
        """`write` puts this process's files into a folder and names them; `commit` is called with all processes' files
        in the first one; `tell` is given sentences for people."""
        self.checkpoints, self.step, self.launch, self.peers = checkpoints, step, launch, peers
        self._write, self._commit, self._tell = write, commit, tell
        self._folder: Path | None = None  # that it writes into
        self._stored = threading.Event()  # this process's part is
        self._urgent = threading.Event()
        pool = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self._future = pool.submit(self._run)
        pool.shutdown(wait=False)

    @property
    def done(self) -> bool:
        """Whether it has ended, well or not."""
        return self._future.done()

    def result(self, *, alive: Callable[[], object], waits: Waits) -> None:
        """Wait for the end, and raise StorageError or UserError where it is no good one; pauses are cut short.

        Signs of life are given for this process's own part alone: one of its peers may stand.
        """
        self._urgent.set()
        for _ in range(SIGNS):
            if self._stored.wait(SIGN_OF_LIFE):
                break
            alive()
        self._stored.wait()
        with waits:
            self._future.result()

    def _run(self) -> None:
        try:
            for pause in (*PAUSES, None):
                error = self._try()
                if error is None:
                    return
                if pause is None or isinstance(error, UserError):
                    self.checkpoints.abandon(self.step, self.launch, self._folder)
                    raise error
                log.warning("the checkpoint of step %s could not be saved and is tried again: %s", self.step, error)
                self._tell(TOLD)
                self._urgent.wait(pause)
        finally:
            self._stored.set()

    def _try(self) -> NanochatError | None:
        """Store all parts, then the manifest; the first process's error that is one, in all of them."""
        records: list[FileRecord] = []
        mine = _error_of(lambda: records.extend(self._store()))
        parts = self.peers.gather({"files": [asdict(record) for record in records], "error": _to_json(mine)})
        error = next((part["error"] for part in parts if part["error"]), None)
        if error is None and self.peers.first:
            together = [FileRecord(**record) for part in parts for record in part["files"]]
            error = _to_json(_error_of(lambda: self._commit(together)))
        return _from_json(self.peers.broadcast(error))

    def _store(self) -> Sequence[FileRecord]:
        folder = self._folder = self.checkpoints.folder(self.step, self.launch)
        names = self._write(folder)
        records = self.checkpoints.store_files(self.step, self.launch, folder, names)
        self._stored.set()
        return records


def _error_of(operation: Callable[[], object]) -> NanochatError | None:
    """The error of storage with which an operation ends; None where it ends well."""
    try:
        operation()
    except FileNotFoundError as error:
        return StorageError(f"{error.filename} was removed while it was written: does another launch still run?")
    except Damaged as error:
        return StorageError(f"{error.message} in the store that rank 0 sees; all nodes must use one store.")
    except (StorageError, UserError) as error:
        return error
    return None


def _to_json(error: NanochatError | None) -> dict[str, Any] | None:
    if error is None:
        return None
    return {"user": isinstance(error, UserError), "message": error.message, "detail": error.detail}


def _from_json(value: dict[str, Any] | None) -> NanochatError | None:
    if value is None:
        return None
    kind = UserError if value["user"] else StorageError
    return kind(value["message"], detail=value["detail"])
