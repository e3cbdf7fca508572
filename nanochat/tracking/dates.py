"""Dates that never go back, though the machine's clock may be set back: what comes later has the later date.

    dates = Dates()
    dates()          # seconds since 1970

They are for people and for MLflow. How long something takes is a matter of `time.monotonic` alone, which stands still
while a laptop sleeps.
"""

from __future__ import annotations

import time
from collections.abc import Callable


class Dates:
    """The machine's date or, where its clock was set back, the last date and what has passed since."""

    def __init__(self, *, clock: Callable[[], float] = time.time, passed: Callable[[], float] = time.monotonic) -> None:
        self._clock, self._passed = clock, passed
        self._began = clock() - passed()

    def __call__(self) -> float:
        passed = self._passed()
        self._began = max(self._began, self._clock() - passed)
        return self._began + passed
