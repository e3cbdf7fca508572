"""The lock of a run: one runner for a pipeline on this machine.

with RunLock(lock_path(resolved, namespace, name), what=name):
    ...                                      # UserError where another runner holds it
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from nanochat.pipeline.profiles import ResolvedProfile
from nanochat.spec.errors import UserError

TRIES = 5


@dataclass(slots=True)
class RunLock:
    """Held by one process at a time; the kernel frees it when that ends, however it ends."""

    path: Path
    what: str
    handle: IO[str] | None = None

    def __enter__(self) -> RunLock:
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self.handle = self.path.open("a+")
        except OSError as error:
            raise UserError(
                f"{self.path} cannot be written: {error.strerror}; set NANOCHAT_HOME to a folder that can"
            ) from None
        for left in reversed(range(TRIES)):  # whoever asks whether it is held holds it for a moment
            try:
                fcntl.flock(self.handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except OSError:
                if not left:
                    self.handle.close()
                    raise self._refusal() from None
                time.sleep(0.05)
        self.handle.seek(0)
        self.handle.truncate()
        self.handle.write(str(os.getpid()))
        self.handle.flush()
        return self

    def __exit__(self, *_: object) -> None:
        if self.handle is not None:
            self.handle.close()

    def _refusal(self) -> UserError:
        with self.path.open() as handle:
            pid = handle.read().strip()
        return UserError(
            f"'{self.what}' is already running (process {pid}): watch it with 'nanochat status {self.what}' or end "
            f"it with 'nanochat cancel {self.what}'"
        )

    @staticmethod
    def is_held(path: Path) -> bool:
        """Whether a live runner holds the lock."""
        if not path.exists():
            return False
        with path.open() as handle:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                return True
        return False


def lock_path(resolved: ResolvedProfile, namespace: str, name: str) -> Path:
    """The lock of a pipeline in a store, on this machine."""
    digest = hashlib.sha256(f"{resolved.profile.root}\n{namespace}.{name}".encode()).hexdigest()[:16]
    return resolved.locks / f"{digest}.lock"
