"""Attention of new tokens to a key-value cache, written for what a CPU does well, or left to PyTorch's kernel.

    attend = attention_to(span, cache, slots=[0, 3], positions=positions, ends=[5, 9])
    y = attend(q, k, v)     # q (B, T, H, hd) against a layer's k and v (slots, stored, H_kv, hd) -> (B, T, H, hd)

On a CPU each row is multiplied with the entries that it sees and no more, whatever the other rows see. In bf16 that
takes a fifth of the time of PyTorch's kernel for one token, and half of it for a chunk of a prompt. Scores, softmax
and sums are fp32.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from nanochat.model.attention import masked_sdpa
from nanochat.model.blocked_attention import bf16_products, is_supported
from nanochat.model.cache import BUCKET, KVCache, Span, side_by_side

FEW = 16  # tokens up to which products of fp32 take no longer than those as bf16


class CachedAttend(Protocol):
    """One layer's attention; entries of the new tokens are in the cache already."""

    def __call__(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor: ...


def attention_to(
    span: Span, cache: KVCache, *, slots: Sequence[int], positions: Tensor, ends: Sequence[int]
) -> CachedAttend:
    """The attention of layers with this span, for tokens at `positions` (B, T) of the rows' sequences, which are `ends`
    (B,) long with them; an idle row's end is 0."""
    one = positions.size(1) == 1
    if positions.device.type == "cpu" and (one or is_supported(cache.k[0].dtype)):
        seen = [min(end, span.size) for end in ends]
        if span.window < max(ends):
            return ByRows(slots, seen, ~span.mask(positions, max(ends)), [0] * len(seen))
        # Of what came before, all is seen by all.
        return ByRows(slots, seen, None if one else ~span.mask(positions, max(ends)), positions[:, 0].tolist())
    attended = min(cache.length, -(-max(ends) // BUCKET) * BUCKET)
    return Together(side_by_side(slots), span.mask(positions, attended))


@dataclass(frozen=True, slots=True)
class ByRows:
    """One row after the other, each with as many of its slot's entries as it sees."""

    slots: Sequence[int]
    seen: Sequence[int]
    hidden: Tensor | None  # (B, 1, T, entries): what a position does not see; None: it sees all
    first: Sequence[int]  # entry of each row that may be hidden

    def __call__(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        y = torch.zeros_like(q)
        scaled = q.float() * q.size(-1) ** -0.5
        many = q.size(1) > FEW and q.dtype == torch.bfloat16
        with bf16_products() if many else nullcontext():
            for row, (slot, seen) in enumerate(zip(self.slots, self.seen, strict=True)):
                if seen:
                    hidden = None if self.hidden is None else self.hidden[row, 0, :, self.first[row] : seen]
                    y[row] = attend_row(scaled[row], k[slot, :seen].float(), v[slot, :seen].float(), hidden)
        return y


def attend_row(q: Tensor, k: Tensor, v: Tensor, hidden: Tensor | None) -> Tensor:
    """q (T, H, hd), scaled, k and v (S, H_kv, hd), fp32 -> (T, H, hd); hidden (T, n) is about the last n entries."""
    t, h, hd = q.shape
    q = q.unflatten(1, (k.size(1), -1)).permute(1, 2, 0, 3).reshape(k.size(1), -1, hd)  # (H_kv, H/H_kv * T, hd)
    scores = torch.bmm(q, k.permute(1, 2, 0))  # (H_kv, H/H_kv * T, S)
    if hidden is not None:
        scores.view(h, t, -1)[..., -hidden.size(-1) :].masked_fill_(hidden, -math.inf)
    return torch.bmm(torch.softmax(scores, dim=-1), v.transpose(0, 1)).view(h, t, hd).transpose(0, 1)


@dataclass(frozen=True, slots=True)
class Together:
    """All rows at once by PyTorch's kernel, slots side by side without a copy; what is beyond a row's own end has
    weight exactly 0."""

    stretches: Sequence[tuple[slice, slice]]  # rows, and their slots
    mask: Tensor  # (B, 1, T, attended)

    def __call__(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        attended = self.mask.size(-1)
        found = [
            masked_sdpa(q[rows], k[slots, :attended], v[slots, :attended], self.mask[rows])
            for rows, slots in self.stretches
        ]
        return found[0] if len(found) == 1 else torch.cat(found)
