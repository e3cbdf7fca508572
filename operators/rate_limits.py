"""Limits of how often the controller writes to the API server what can as well be written a little later.

bucket = Bucket(burst=25, refill=1 / 300, tokens=25, at=now)
limit = ProgressLimit()
if limit.take(uid): ...                  # the progress of a pipeline may be written now
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

PROGRESS_SECONDS = 10.0  # between two writes of one pipeline's progress
PROGRESS_RATE, PROGRESS_BURST = 5.0, 10.0  # such writes of all pipelines in a second, and at once: client-go's default
IDLE_SECONDS = 60.0  # a pipeline that did not ask for so long makes no progress now


@dataclass(slots=True)
class Bucket:
    """A token bucket: `burst` at once, and `refill` more each second."""

    burst: float
    refill: float
    tokens: float
    at: float

    def take(self, now: float) -> bool:
        """Take one, where there is one."""
        self.tokens = min(self.burst, self.tokens + max(0.0, now - self.at) * self.refill)
        self.at = now
        if self.tokens < 1:
            return False
        self.tokens -= 1
        return True


class ProgressLimit:
    """Which pipeline may write its progress; safe to use from several threads.

    One writes every PROGRESS_SECONDS, and so do many, as long as all together keep to PROGRESS_RATE; where they cannot,
    they take turns: each waits for as long as one round of all of them takes.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock, self._lock = clock, threading.Lock()
        self._all = Bucket(PROGRESS_BURST, PROGRESS_RATE, PROGRESS_BURST, clock())
        self._asked: dict[str, tuple[float, float]] = {}  # uid -> when it asked last, and when it wrote last
        self._pruned = clock()

    def take(self, uid: str) -> bool:
        """Whether a pipeline may write now; then it counts as done."""
        with self._lock:
            now = self._clock()
            if now - self._pruned >= IDLE_SECONDS:
                self._asked = {one: when for one, when in self._asked.items() if now - when[0] < IDLE_SECONDS}
                self._pruned = now
            wrote = self._asked.get(uid, (now, float("-inf")))[1]
            turn = max(PROGRESS_SECONDS, len(self._asked) / PROGRESS_RATE)
            may = now - wrote >= turn and self._all.take(now)
            self._asked[uid] = now, now if may else wrote
            return may
