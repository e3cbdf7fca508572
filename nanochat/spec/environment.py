"""Numbers from environment variables, with bounds."""

from __future__ import annotations

import os
import re

from nanochat.spec.errors import UserError

RANKS = 1 << 20  # more processes than any launch has


def integer(name: str, default: int, *, low: int = 0, high: int = RANKS) -> int:
    """The whole number in a variable; UserError where it holds something else."""
    text = os.environ.get(name)
    if not text:
        return default
    if not re.fullmatch("[0-9]{1,9}", text) or not low <= int(text) <= high:
        raise UserError(f"{name} is {text[:40]!r}: set it to a whole number from {low} to {high:,}, or unset it")
    return int(text)
