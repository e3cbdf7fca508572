"""Measured processes that train together: the first is told and answers, the others go on when it does.

with join_timed(device) as (world, waits):
    ...
    figures = waiting(world, waits)                  # between two steps, in every process
    boundary(world, paced, lambda: figures, begun=step > 1)
    waits.take()                                     # what was waited for in there is part of no step
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
    """Notes the seconds, too, of each wait for others."""

    def __init__(self) -> None:
        super().__init__()
        self._seconds: list[float] = []
        self._began = 0.0

    def __enter__(self) -> None:
        super().__enter__()
        self._began = time.monotonic()

    def __exit__(self, *_: object) -> None:
        super().__exit__()
        self._seconds.append(time.monotonic() - self._began)

    def take(self) -> list[float]:
        """The seconds of each since the last call."""
        seconds, self._seconds = self._seconds, []
        return seconds


@contextmanager
def join_timed(device: torch.device) -> Iterator[tuple[World, TimedWaits]]:
    """The processes that train together, and how long this one waits for the others."""
    waits = TimedWaits()
    with join(device) as world:
        yield replace(world, waits=waits), waits


def waiting(world: World, waits: TimedWaits) -> dict[str, float]:
    """Seconds of the last step: `waited` for others, the mean of all processes; and `exposed`, what is left of that
    without the wait for the slowest: of each operation the wait of whoever came last."""
    operations = list(zip(*world.gather(waits.take()), strict=True))
    return {"waited": sum(map(sum, operations)) / world.size, "exposed": sum(map(min, operations))}


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
