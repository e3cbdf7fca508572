"""Warnings of the log as lines among those of a command.

with Warned(display.say):
    ...
"""

from __future__ import annotations

import logging
from collections.abc import Callable


class Warned(logging.Handler):
    """A context manager in which `say` is given the first line of each warning, from whichever thread."""

    def __init__(self, say: Callable[[str], object]) -> None:
        super().__init__(logging.WARNING)
        self._say = say

    def emit(self, record: logging.LogRecord) -> None:
        self._say(f"warning: {record.getMessage().splitlines()[0]}")

    def __enter__(self) -> None:
        logging.getLogger().addHandler(self)

    def __exit__(self, *_: object) -> None:
        logging.getLogger().removeHandler(self)
