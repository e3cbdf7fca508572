"""The key-value cache: slots of one sequence each, which `Transformer.extend` reads and writes.

    cache = KVCache(model.config, slots=8, length=1024, device=device, dtype=model.compute_dtype)
    model.extend(prompt, start=torch.tensor([0]), slots=[3], cache=cache)

A slot needs no clearing: a sequence only ever attends to the positions that it has written itself. A layer with a
short window keeps a ring of no more than the window and CHUNK positions.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from nanochat.model.sizes import ModelConfig

BUCKET = 64  # a multiple of so many positions is attended to, for the rounding of sums depends on their length
CHUNK = 256  # tokens of a sequence that are computed at once; where layers have rings, at most so many


@dataclass(frozen=True, slots=True)
class Span:
    """How a layer keeps a sequence: position p is in entry p mod size, and is seen by itself and the next ones."""

    size: int
    window: int  # how many positions one sees, its own included
    stored: int  # entries that there are; an idle row writes to the last one

    @classmethod
    def of(cls, window: int | None, length: int) -> Span:
        """All `length` positions, or a ring where a window needs fewer, and an entry of no position for idle rows."""
        if window is None:
            return cls(size=length, window=length, stored=length)
        ring = -(-(window + CHUNK - 1) // BUCKET) * BUCKET
        size, idle = (ring, 1) if ring < length else (length, 0)
        return cls(size=size, window=window, stored=size + idle)

    def entries(self, positions: Tensor) -> Tensor:
        """Entries of positions (B, T)."""
        return torch.where(positions < 0, -1, positions % self.size)

    def mask(self, positions: Tensor, attended: int) -> Tensor:
        """Which of the first entries each position sees, once its own are written: (B, 1, T, attended or size).

        What is no position sees as the row's last one does: nothing at all would be NaN, which spreads.
        """
        last = positions.amax(dim=1, keepdim=True).clamp(min=0)  # (B, 1)
        positions = torch.where(positions < 0, last, positions)
        entries = torch.arange(min(self.size, attended), device=positions.device)
        held = last - (last - entries) % self.size  # (B, entries): the newest position that is in each, or below 0
        distance = positions[..., None] - held[:, None]  # (B, T, entries)
        return ((distance >= 0) & (distance < self.window) & (held >= 0)[:, None])[:, None]


class KVCache:
    """Keys and values of each layer, (slots, stored, H_kv, hd), and the tokens where the model smears."""

    def __init__(
        self, config: ModelConfig, *, slots: int, length: int, device: torch.device | str, dtype: torch.dtype
    ) -> None:
        self.spans = tuple(Span.of(config.window(layer), length) for layer in range(config.depth))
        shapes = [(slots, span.stored, config.kv_heads, config.head_dim) for span in self.spans]
        # Zeros, not empty: masked positions have weight 0, and 0 * NaN would not be 0.
        self.k = [torch.zeros(shape, device=device, dtype=dtype) for shape in shapes]
        self.v = [torch.zeros(shape, device=device, dtype=dtype) for shape in shapes]
        self.ids = torch.zeros((slots, length if config.smear else 0), device=device, dtype=torch.int64)
        self.slots = slots
        self.length = length
        # With rings: how many tokens can be computed at once, and by how many a slot may have gone on beyond a prefix
        # that is taken over from it, before it has overwritten what the next token sees.
        self.reach = CHUNK if any(span.size < length for span in self.spans) else math.inf

    def check_room(self, end: int, tokens: int) -> None:
        """ValueError unless `tokens` tokens that end before position `end` can be computed at once."""
        if end > self.length:
            raise ValueError(f"position {end - 1} is beyond the cache's {self.length} positions")
        if tokens > self.reach:
            raise ValueError(
                f"{tokens} tokens are more than the {self.reach} that short windows let be computed at once"
            )

    def copy_slot(self, source: int, target: int, length: int) -> None:
        """Copy the first `length` positions of a slot: the shared prefix of several samples."""
        for span, *tensors in zip(self.spans, self.k, self.v, strict=True):
            kept = length if span.size == self.length else span.size
            for tensor in tensors:
                tensor[target, :kept] = tensor[source, :kept]
        self.ids[target, :length] = self.ids[source, :length]


def side_by_side(slots: Sequence[int]) -> list[tuple[slice, slice]]:
    """(rows, slots) of each stretch of rows whose slots follow one another."""
    begins = [row for row, slot in enumerate(slots) if row == 0 or slot != slots[row - 1] + 1]
    ends = [*begins[1:], len(slots)]
    return [
        (slice(begin, end), slice(slots[begin], slots[begin] + end - begin))
        for begin, end in zip(begins, ends, strict=True)
    ]
