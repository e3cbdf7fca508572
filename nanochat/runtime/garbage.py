"""Garbage collection at moments of one's own: never in the midst of a training step.

    with Garbage() as garbage:
        step()
        garbage.keep()              # once what stays is there
        garbage.collect_if_much()   # now and then
        garbage.collect()           # where training waits anyway: at a save, at a validation

A collection that comes by itself may come at any allocation, and to one rank while the others wait for it. All that
PyTorch and its compiler hold takes half a second to look through, so that is done once.
"""

from __future__ import annotations

import gc
from typing import Self

MUCH = 200_000  # containers made and not freed since the last collection


class Garbage:
    """Inside the `with` block nothing is collected but by its calls; after it as before."""

    def __enter__(self) -> Self:
        self._enabled = gc.isenabled()
        self._kept = False
        gc.disable()
        return self

    def __exit__(self, *_: object) -> None:
        if self._kept:
            gc.unfreeze()
        if self._enabled:
            gc.enable()

    def keep(self) -> None:
        """Collect, and look no more at what is left, until the end of the block."""
        gc.collect()
        gc.freeze()
        self._kept = True

    def collect(self) -> None:
        """Free what is unreachable."""
        gc.collect()

    def collect_if_much(self) -> None:
        """Do so where there may be much of it, that memory has a bound in a run without saves."""
        if gc.get_count()[0] > MUCH:
            gc.collect()
