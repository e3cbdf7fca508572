"""Measured processes that train together: the first is told and answers, the others go on when it does.

with join_timed(device) as (world, waits):
    ...
    boundary(world, paced, work, begun=step > 1)     # between two steps, in every process
    waits.take()                                     # seconds for which this one has waited for others since
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace

import torch

from nanochat.bench.pacing import Ended, Paced
from nanochat.runtime.distributed import World, join
from nanochat.runtime.waits import Waits


class TimedWaits(Waits):
    """Counts the seconds, too, for which a process waits for others."""

    def __init__(self) -> None:
        super().__init__()
        self.seconds = self._began = 0.0

    def __enter__(self) -> None:
        super().__enter__()
        self._began = time.monotonic()

    def __exit__(self, *_: object) -> None:
        super().__exit__()
        self.seconds += time.monotonic() - self._began

    def take(self) -> float:
        """The seconds since the last call."""
        seconds, self.seconds = self.seconds, 0.0
        return seconds


@contextmanager
def join_timed(device: torch.device) -> Iterator[tuple[World, TimedWaits]]:
    """The processes that train together, and how long this one waits for the others."""
    waits = TimedWaits()
    with join(device) as world:
        yield replace(world, waits=waits), waits


def boundary(world: World, paced: Paced, work: Callable[[], Mapping[str, float]], *, begun: bool) -> None:
    """`Paced.boundary` of the first process, for all: what was done since the last one, if a step has `begun` there, is
    found out in all of them, for that may take them all."""
    try:
        if world.first:
            paced.boundary(work)
        elif begun:
            work()
    except Ended:
        world.broadcast(False)
        raise
    if not world.broadcast(True):
        raise Ended
