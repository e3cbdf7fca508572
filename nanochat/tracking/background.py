"""A thread that does one thing again and again, so that a training loop never waits for storage."""

from __future__ import annotations

import threading
from collections.abc import Callable


class Ticker:
    """Calls `action` every `interval()` seconds until closed; what `action` raises is its own to handle."""

    def __init__(self, name: str, action: Callable[[], None], interval: Callable[[], float]) -> None:
        self._action = action
        self._interval = interval
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._work, name=name, daemon=True)
        self._thread.start()

    def _work(self) -> None:
        while not self._closing.wait(self._interval()):
            self._action()

    def close(self, timeout: float | None = None) -> None:
        """Stop; returns once the action under way, if any, has ended, or after `timeout` seconds."""
        self._closing.set()
        self._thread.join(timeout)
