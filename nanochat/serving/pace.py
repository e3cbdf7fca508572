"""How fast slots become free, measured while requests wait for them; and so how long one more would wait.

pace = Pace()
pace.freed(now, waiting=True)       # a request left its slot, and others wait
pace.seconds(4)                     # until four more have left; None: not known yet
"""

from __future__ import annotations

from collections import deque

MEASURED = 32  # of the last intervals between two that left


class Pace:
    """The mean interval between two requests that leave while others wait: idle times say nothing."""

    def __init__(self) -> None:
        self._intervals: deque[float] = deque(maxlen=MEASURED)  # seconds
        self._last: float | None = None  # when one left, if others have waited since

    def freed(self, now: float, *, waiting: bool) -> None:
        """Note that a slot became free."""
        if self._last is not None:
            self._intervals.append(now - self._last)
        self._last = now if waiting else None

    def seconds(self, count: int) -> float | None:
        """How long it takes until so many have left."""
        if not self._intervals:
            return None
        return max(0, count) * sum(self._intervals) / len(self._intervals)
