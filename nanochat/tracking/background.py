"""A thread that does one thing again and again, so that a training loop never waits for storage."""

from __future__ import annotations

import threading
from collections.abc import Callable


class Ticker:
    """Calls `action` every `interval()` seconds until closed; what `action` raises is its own to handle.

    Where `last()` says so it is called once more on closing, by the thread, so that the closing may be given up.
    """

    def __init__(
        self,
        name: str,
        action: Callable[[], object],
        interval: Callable[[], float],
        *,
        last: Callable[[], bool] = lambda: False,
    ) -> None:
        self._action = action
        self._interval = interval
        self._last = last
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._work, name=name, daemon=True)
        self._thread.start()

    def _work(self) -> None:
        while not self._closing.wait(self._interval()):
            self._action()
        if self._last():
            self._action()

    def close(self, timeout: float | None = None) -> bool:
        """Stop; returns once the thread has ended, or after `timeout` seconds (then False)."""
        self._closing.set()
        self._thread.join(timeout)
        return not self._thread.is_alive()
