"""The loss on held-out tokens, and bits per byte, over all ranks.

    losses = validate(model, batches, world=world, byte_lengths=lengths)
    losses.mean, losses.bits_per_byte

Bits per byte is comparable between vocabularies: nats of the targets that stand for bytes, over ln 2 times those bytes.
Special tokens stand for no byte and do not count (but do in the mean).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from nanochat.data.mixture import RowLoader
from nanochat.data.packing import FlatLoader
from nanochat.model.transformer import IGNORED, Transformer
from nanochat.training.distributed import World

Batch = tuple[np.ndarray, np.ndarray]  # inputs and targets, (R, T) int64 each


@dataclass(frozen=True, slots=True)
class Losses:
    """Sums over all targets of all ranks."""

    nats: float
    tokens: float
    byte_nats: float  # of the targets that stand for bytes
    bytes: float

    @property
    def mean(self) -> float:
        """Nats per target; NaN where there is none."""
        return self.nats / self.tokens if self.tokens else math.nan

    @property
    def bits_per_byte(self) -> float:
        """NaN where there is no byte."""
        return self.byte_nats / (math.log(2) * self.bytes) if self.bytes else math.nan


@torch.no_grad()
def validate(
    model: Transformer,
    batches: Iterable[Batch],
    *,
    world: World,
    byte_lengths: Sequence[int],
    alive: Callable[[], None] = lambda: None,
) -> Losses:
    """Losses over the batches of all ranks; each rank brings its own. `alive` is called after each batch."""
    lengths = torch.tensor(byte_lengths, device=model.device)  # (V,)
    nats = byte_nats = tokens = bytes_ = torch.zeros((), dtype=torch.float64, device=model.device)
    for inputs, targets in batches:
        wanted = torch.from_numpy(targets).to(model.device)  # (R, T)
        losses = model(torch.from_numpy(inputs).to(model.device), wanted, reduction="none").double()  # (R, T)
        widths = torch.where(wanted == IGNORED, 0, lengths[wanted.clamp(min=0)])  # (R, T)
        nats, tokens = nats + losses.sum(), tokens + (wanted != IGNORED).sum()
        byte_nats, bytes_ = byte_nats + losses[widths > 0].sum(), bytes_ + widths.sum()
        alive()
    sums: list[Tensor] = [nats, tokens, byte_nats, bytes_]
    return Losses(*world.sum(*(float(value) for value in sums)))


def flat_rows(tokens: int, *, total: int, length: int) -> int:
    """Rows that hold about `tokens` of a stream of `total`; the stream is not read twice."""
    return max(1, min(tokens, total) // length)


def flat_batches(loader: FlatLoader, *, world: World, device_rows: int) -> Iterator[Batch]:
    """This rank's part of the loader's first step, `device_rows` at a time."""
    part = world.part(loader.rows)
    for first in range(part.start, part.stop, device_rows):
        yield loader.batch(0, rows=slice(first, min(first + device_rows, part.stop)))


def row_batches(loader: RowLoader, *, rows: int, world: World) -> Iterator[Batch]:
    """This rank's part of the loader's first `rows` conversations, a step of the loader at a time."""
    part = world.part(math.ceil(rows / loader.rows))
    for step in range(part.start, part.stop):
        yield loader.batch(step, rows=slice(0, min(loader.rows, rows - step * loader.rows)))
