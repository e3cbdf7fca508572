"""Held-out batches, the same on every call, and the mean loss over them.

    loss = mean_loss(model, row_batches(loader, rows=3200, world=world), world=world)

Each rank brings its own part; what is measured depends neither on the number of ranks nor on the device batch size.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator

import numpy as np
import torch

from nanochat.data.mixture import Mixture, PackedLoader, RowLoader
from nanochat.model.loss import IGNORED
from nanochat.model.transformer import Transformer
from nanochat.runtime.distributed import World

Batch = tuple[np.ndarray, np.ndarray]  # inputs and targets, (R, T) int64 each


@torch.no_grad()
def mean_loss(
    model: Transformer, batches: Iterable[Batch], *, world: World, alive: Callable[[], None] = lambda: None
) -> float:
    """Nats per supervised target over the batches of all ranks, NaN where there is none; `alive` after each batch."""
    total = torch.zeros((), dtype=torch.float64, device=model.device)
    count = 0
    for inputs, targets in batches:
        wanted = torch.from_numpy(targets).to(model.device)  # (R, T)
        total += model(torch.from_numpy(inputs).to(model.device), wanted, reduction="sum").double()
        count += int((targets != IGNORED).sum())
        alive()
    nats, targets_in_all = world.sum(float(total), count)
    return nats / targets_in_all if targets_in_all else math.nan


def packed_batches(mixture: Mixture, *, tokens: int, length: int, world: World, device_rows: int) -> Iterator[Batch]:
    """This rank's part of about `tokens` tokens from the mixture's beginning (or all of it), every one a target."""
    rows = max(1, min(tokens, int(mixture.lengths(0).sum())) // length)
    loader = PackedLoader(mixture, rows=rows, length=length)
    part = world.part(rows)
    for first in range(part.start, part.stop, device_rows):
        yield loader.batch(0, rows=slice(first, min(first + device_rows, part.stop)))


def row_batches(loader: RowLoader, *, rows: int, world: World) -> Iterator[Batch]:
    """This rank's part of the loader's first `rows` conversations, a step of the loader at a time."""
    part = world.part(math.ceil(rows / loader.rows))
    for step in range(part.start, part.stop):
        yield loader.batch(step, rows=slice(0, min(loader.rows, rows - step * loader.rows)))
