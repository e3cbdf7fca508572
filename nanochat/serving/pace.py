"""How fast slots become free, measured while requests wait for them.

pace = Pace(slots=8)
pace.waits(now)                         # from now on a request waits
pace.freed(now, waiting=True, held=2.5) # one left the slot that it had for so many seconds, and others wait
pace.interval(now)                      # seconds until one more has left
"""

from __future__ import annotations

from collections import deque

MEASURED = 256  # of the last intervals between two that left
FIRST_GUESS = 1.0  # seconds that a request keeps its slot, before anything is known


class Pace:
    """The mean interval between two requests that leave while others wait: idle times say nothing."""

    def __init__(self, slots: int) -> None:
        self._slots = slots
        self._guess = FIRST_GUESS / slots  # until intervals are measured
        self._intervals: deque[float] = deque(maxlen=MEASURED)  # seconds
        self._last: float | None = None  # when one left, or the first began to wait; None: nobody waits

    def waits(self, now: float) -> None:
        """Note that there are more requests than slots."""
        if self._last is None:
            self._last = now

    def rests(self) -> None:
        """Note that nobody waits any more, though no slot became free."""
        self._last = None

    def freed(self, now: float, *, waiting: bool, held: float) -> None:
        """Note that a slot became free, which was held for so many seconds."""
        if self._last is not None:
            self._intervals.append(now - self._last)
        self._last = now if waiting else None
        if held:
            self._guess = held / self._slots

    @property
    def measured(self) -> int:
        """How many intervals it goes by; 0 until each slot may have become free once: some do at the same time."""
        return len(self._intervals) if len(self._intervals) >= self._slots else 0

    def interval(self, now: float) -> float:
        """Seconds between two that leave; where the last one is long ago, that counts, too."""
        count, total = len(self._intervals), sum(self._intervals)
        mean = total / count if self.measured else self._guess
        return mean if self._last is None else max(mean, (total + now - self._last) / (count + self._slots))
