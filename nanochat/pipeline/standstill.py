"""Which ranks of a launch stand still: what a launcher sees of its ranks, for whoever asks which node is to blame.

    reporter = StandstillReporter(store, paths.standstill(stage, launch), work, ranks=range(2, 4), seconds=300)
    reporter.close()
    seen = read_standstill(store, paths.standstill(stage, launch))

When one rank of many stops, all stop: the others wait for it in a collective operation (`nanochat.runtime.waits`). So
a rank that neither moves nor waits is the one that stands. The file is written when nothing has moved for a while, and
once more when something moves again; a launcher that stands itself writes nothing, which tells as much.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path

from nanochat.runtime.waits import read_waits
from nanochat.storage.failures import Damaged
from nanochat.storage.records import Count, checked, read_object
from nanochat.storage.store import Store
from nanochat.tracking.background import Ticker

LOOK_SECONDS = 1.0


@dataclass(frozen=True, slots=True)
class Standstill:
    """The ranks of one launch that stand still; none while it moves."""

    waiting: tuple[Count, ...] = ()  # for the others
    standing: tuple[Count, ...] = ()  # for nobody

    @property
    def waits(self) -> bool:
        """Whether all of its ranks wait for the others."""
        return bool(self.waiting) and not self.standing


def read_standstill(store: Store, path: str) -> Standstill:
    """The standstill in storage, none where nothing is told; StorageError where it is out of reach."""
    with suppress(Damaged, ValueError):
        return checked(Standstill, read_object(store, path) or {})
    return Standstill()


class StandstillReporter:
    """Looks at the ranks of this node in the background, and tells when they stand still for `seconds`."""

    def __init__(
        self,
        store: Store,
        path: str,
        work: Path,
        *,
        ranks: Sequence[int],
        seconds: float,
        passed: Callable[[], float] = time.monotonic,
    ) -> None:
        self._store, self._path, self._work = store, path, work
        self._ranks, self._seconds, self._passed = ranks, seconds, passed
        self._moves: list[int] = []
        self._since = passed()
        self._told, self._warned = Standstill(), False
        self._ticker = Ticker("standstill", self.look, lambda: LOOK_SECONDS)

    def look(self) -> None:
        """Tell what has changed; what cannot be stored is told with the next look."""
        waits = [read_waits(self._work / f"rank{rank}.waits") for rank in self._ranks]
        moves = [count for count, _ in waits]
        if moves != self._moves:
            self._moves, self._since = moves, self._passed()
        seen = Standstill()
        if self._passed() - self._since >= self._seconds:
            waiting = tuple(
                rank
                for rank, (_, waits_now) in zip(self._ranks, waits, strict=True)
                if (waits_now and not self._is_stopped(rank)) or self._has_ended(rank)
            )
            seen = Standstill(waiting, tuple(rank for rank in self._ranks if rank not in waiting))
        if seen == self._told:
            return
        try:
            self._store.write_json(self._path, asdict(seen))
            self._told = seen
        except Exception as error:  # evidence that cannot be stored must not stop the stage
            if not self._warned:
                print(f"a standstill cannot be told of now: {error}", file=sys.stderr)
            self._warned = True

    def close(self) -> None:
        """Look no more."""
        self._ticker.close(timeout=LOOK_SECONDS)

    def _has_ended(self, rank: int) -> bool:
        return (self._work / f"outcome-rank{rank}.json").exists()

    def _is_stopped(self, rank: int) -> bool:
        """Whether the rank's process was stopped by a signal; False where the system does not tell."""
        with suppress(OSError, IndexError):
            pid = (self._work / f"rank{rank}.pid").read_text()
            return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] in ("T", "t")
        return False
