"""Bits per byte: the loss on text in a unit that does not depend on the tokenizer.

    figure = bits_per_byte(model, batches, byte_lengths=tokenizer.byte_lengths(), world=world)

The sum of the nats of all targets over ln 2 times the sum of their bytes. Targets of no bytes (special tokens) and
those below 0 count in neither.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence

import numpy as np
import torch

from nanochat.data.tokenfile import TokenFile
from nanochat.evaluation.figure import Figure
from nanochat.model.transformer import Transformer
from nanochat.runtime.distributed import World

Batch = tuple[np.ndarray, np.ndarray]  # inputs and targets (R, T), int64


@torch.inference_mode()
def bits_per_byte(
    model: Transformer,
    batches: Iterable[Batch],
    *,
    byte_lengths: Sequence[int],
    world: World,
    tick: Callable[[], None] = lambda: None,
) -> Figure:
    """Bits per byte over the batches of all ranks; every rank gives its own. `tick` is called after each.

    `n` is the number of targets that counted. The standard error takes rows as independent: that of a ratio of
    sums, sqrt(sum((bits_row - value * bytes_row)^2)) / bytes.
    """
    lengths = torch.tensor(byte_lengths, device=model.device)
    sums = torch.zeros(6, dtype=torch.float64)  # bits, bytes, targets; bits^2, bits * bytes, bytes^2 over rows
    for inputs, targets in batches:
        expected = torch.from_numpy(targets).to(model.device)  # (R, T)
        nats = model(torch.from_numpy(inputs).to(model.device), expected, reduction="none")  # (R, T)
        sizes = torch.where(expected >= 0, lengths[expected.clamp(min=0)], 0)  # (R, T)
        counted = sizes > 0
        bits = (nats.float() * counted).cpu().double().sum(dim=1) / math.log(2)  # (R,)
        bytes_ = sizes.cpu().double().sum(dim=1)  # (R,)
        sums += torch.stack(
            [
                bits.sum(), bytes_.sum(), counted.sum().cpu().double(),
                bits @ bits, bits @ bytes_, bytes_ @ bytes_,
            ]
        )  # fmt: skip
        tick()
    bits, total, targets, bits2, both, bytes2 = world.sum(*sums.tolist())
    if total == 0:
        return Figure(math.nan, 0, math.nan)
    value = bits / total
    spread = max(0.0, bits2 - 2 * value * both + value**2 * bytes2)
    return Figure(value, int(targets), math.sqrt(spread) / total)


def text_batches(file: TokenFile, *, length: int, tokens: int, batch_size: int, world: World) -> Iterator[Batch]:
    """Rows of `length` for this rank, its part of the first `tokens` tokens of a file (or all of it)."""
    rows = min(tokens, len(file) - 1) // length
    mine = range(rows)[world.part(rows)]
    for start in range(mine.start, mine.stop, batch_size):
        stop = min(start + batch_size, mine.stop)
        stream = file.tokens[start * length : stop * length + 1].astype(np.int64)
        yield stream[:-1].reshape(-1, length), stream[1:].reshape(-1, length)
