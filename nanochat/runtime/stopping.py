"""Signals that ask a process to save what it has and to end.

restore = on_stop(lambda number, frame: stop.set())
restore()                # the former handlers
"""

from __future__ import annotations

import os
import signal
import stat
import sys
from collections.abc import Callable
from contextlib import suppress
from types import FrameType

Handler = Callable[[int, FrameType | None], object]


def on_stop(handler: Handler, *more: signal.Signals) -> Callable[[], None]:
    """Call `handler` at SIGTERM, at SIGHUP and at `more`; returns what brings back the former handlers.

    SIGHUP comes when a terminal is closed or a connection lost; where it is ignored (`nohup`) it stays so.
    """

    def handle(number: int, frame: FrameType | None) -> None:
        if number == signal.SIGHUP:
            _leave_terminal()
        handler(number, frame)

    numbers = [signal.SIGTERM, *more]
    if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:
        numbers.append(signal.SIGHUP)
    former = {number: signal.signal(number, handle) for number in numbers}

    def restore() -> None:
        for number, before in former.items():
            signal.signal(number, before)

    return restore


def _leave_terminal() -> None:
    """Send output to nowhere where it went to a terminal: to write to one that is gone is an error."""
    nowhere = os.open(os.devnull, os.O_RDWR)
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError, AttributeError):
            if stat.S_ISCHR(os.fstat(stream.fileno()).st_mode):
                os.dup2(nowhere, stream.fileno())
    os.close(nowhere)
