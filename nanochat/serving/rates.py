"""How often each key may ask: so many requests in any minute.

rates = Rates(60)
rates.wait("key", now)      # 0.0: the request is taken, and counted; else the seconds until one would be
"""

from __future__ import annotations

from collections import deque

WINDOW = 60.0  # seconds


class Rates:
    """Counts by key; it holds a time for each request of the last minute that was taken."""

    def __init__(self, most: int) -> None:
        self.most = most
        self._taken: dict[str, deque[float]] = {}

    def wait(self, key: str, now: float) -> float:
        """Seconds until the key may ask; 0.0 where it may now, which counts."""
        taken = self._taken.setdefault(key, deque(maxlen=self.most))
        if len(taken) == self.most and (left := taken[0] + WINDOW - now) > 0:
            return left
        taken.append(now)
        return 0.0
