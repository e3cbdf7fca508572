"""Which ranks of a launch stand still: what a launcher sees of its ranks, for whoever asks which node is to blame.

    reporter = StandstillReporter(store, paths.standstill(stage, launch), work, ranks=range(2, 4), seconds=300)
    reporter.close()
    seen = read_standstill(store, paths.standstill(stage, launch))

    seen = standstill_of(work, range(2))        # where all ranks are on this machine

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
MOST_NAMED = 8  # ranks, in a sentence


@dataclass(frozen=True, slots=True)
class Standstill:
    """The ranks of one launch that stand still; none while it moves."""

    waiting: tuple[Count, ...] = ()  # for the others
    standing: tuple[Count, ...] = ()  # for nobody

    @property
    def waits(self) -> bool:
        """Whether all of its ranks wait for the others."""
        return bool(self.waiting) and not self.standing

    @property
    def sentence(self) -> str:
        """Who stands while others wait, as the end of a sentence; '' where that is not known."""
        if not (self.waiting and self.standing):
            return ""
        return f": {named_ranks(self.standing)} stood still while the others waited"


def named_ranks(ranks: Sequence[int]) -> str:
    """Ranks in a sentence; "ranks" where it is not known which."""
    names = ", ".join(map(str, ranks[:MOST_NAMED])) + (", ..." if len(ranks) > MOST_NAMED else "")
    return f"rank{'s' if len(ranks) != 1 else ''} {names}".rstrip()


def read_standstill(store: Store, path: str) -> Standstill:
    """The standstill in storage, none where nothing is told; StorageError where it is out of reach."""
    with suppress(Damaged, ValueError):
        return checked(Standstill, read_object(store, path) or {})
    return Standstill()


def standstill_of(work: Path, ranks: Sequence[int]) -> Standstill:
    """Which of these ranks wait now, by a launch's work folder; one that has ended counts among them."""
    waiting = tuple(
        rank
        for rank in ranks
        if (read_waits(work / f"rank{rank}.waits")[1] and not _is_stopped(work, rank))
        or (work / f"outcome-rank{rank}.json").exists()
    )
    return Standstill(waiting, tuple(rank for rank in ranks if rank not in waiting))


def _is_stopped(work: Path, rank: int) -> bool:
    """Whether the rank's process was stopped by a signal; False where the system does not tell."""
    with suppress(OSError, IndexError):
        pid = (work / f"rank{rank}.pid").read_text()
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] in ("T", "t")
    return False


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
        moves = [read_waits(self._work / f"rank{rank}.waits")[0] for rank in self._ranks]
        if moves != self._moves:
            self._moves, self._since = moves, self._passed()
        seen = Standstill()
        if self._passed() - self._since >= self._seconds:
            seen = standstill_of(self._work, self._ranks)
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
