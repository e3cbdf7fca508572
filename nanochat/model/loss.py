"""The head's loss: soft-capped logits and their cross-entropy, a chunk of rows at a time, the gradient made on the way.

    total, losses = head_loss(hidden, weight, targets, factors)    # hidden (N, D), weight (V, D), targets, factors (N,)
    total.backward()                                               # () fp32: the sum of factor * loss

Logits exist for one chunk only and become their own gradient in place. So memory does not grow with the number of
rows, and backward has one factor left to multiply. A chunk has a fixed number of elements whatever the vocabulary: the
same rows give the same bits each time. N rows, D width, V vocabulary, C rows of a chunk.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

SOFTCAP = 15.0
IGNORED = -1  # a target that is not trained on

# Logits of a chunk, which a matrix product makes (64 MiB in bf16 on a CPU), and of a tile, on which element by element
# is worked at a time: 1 MiB in fp32 stays in a CPU core's cache, which makes it twice as fast. What is compiled for a
# CPU writes less in between, and takes more at a time.
CHUNK = {"cpu": 2**25, "cuda": 2**28}
TILE = {"cpu": 2**18, "cuda": 2**26}
COMPILED_TILE = TILE | {"cpu": 2**23}

Tile = Callable[[Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]


def softcap(logits: Tensor) -> Tensor:
    """Logits between -SOFTCAP and SOFTCAP, fp32."""
    return SOFTCAP * torch.tanh(logits.float() / SOFTCAP)


def cross_entropy_(logits: Tensor, targets: Tensor, factors: Tensor) -> tuple[Tensor, Tensor]:
    """logits (C, V) before the cap, targets (C,) from 0 on, factors (C,) fp32 -> cross-entropy and gradient (C,) fp32.

    The logits become the gradient of the sum of factor * cross-entropy, but for those of the targets: their gradient is
    the second result, for compiled code is slow at putting it there. 15 tanh(z/15) is 30 s - 15 and its slope
    4 (s - s^2) with s = sigmoid(2z/15), which takes a tenth of tanh's time. No target's probability underflows: it is
    e^-30 / V at least.
    """
    at = targets[:, None]  # (C, 1)
    s = logits.float().mul_(2 / SOFTCAP).sigmoid_()
    p = torch.softmax(s * (2 * SOFTCAP), dim=1)
    slope = torch.addcmul(s, s, s, value=-1)
    scale = 4 * factors[:, None]
    right = p.gather(1, at)
    gradient = (right - 1) * slope.gather(1, at) * scale
    logits.copy_(p.mul_(slope).mul_(scale))
    return -right.log().squeeze(1), gradient.squeeze(1)


class HeadLoss(torch.autograd.Function):
    """The autograd function behind `head_loss`, of which it makes one call."""

    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, targets: Tensor, factors: Tensor, tile: Tile, wanted: bool
    ) -> tuple[Tensor, Tensor]:
        """`wanted` says whether there will be a backward."""
        matrix = weight.to(hidden.dtype)
        count, vocabulary = len(hidden), len(weight)
        to_hidden = torch.empty_like(hidden) if wanted else None
        to_weight = torch.zeros_like(weight) if wanted else None
        losses, to_target = hidden.new_empty(2, count, dtype=torch.float32)
        kind = hidden.device.type if hidden.device.type in CHUNK else "cpu"
        tiles = TILE if tile is cross_entropy_ else COMPILED_TILE
        rows, tile_rows = (max(1, most[kind] // vocabulary) for most in (CHUNK, tiles))
        buffer = hidden.new_empty(min(rows, count), vocabulary)
        for first in range(0, count, rows):
            part = slice(first, first + rows)
            logits = torch.mm(hidden[part], matrix.t(), out=buffer[: len(hidden[part])])  # (C, V)
            columns = (logits, targets[part], factors[part], losses[part], to_target[part])
            for *given, loss, gradient in zip(*(each.split(tile_rows) for each in columns), strict=True):
                loss[:], gradient[:] = tile(*given)
            if to_hidden is not None and to_weight is not None:
                logits.scatter_(1, targets[part, None], to_target[part, None].to(logits.dtype))
                torch.mm(logits, matrix, out=to_hidden[part])
                to_weight += logits.t() @ hidden[part]
        ctx.save_for_backward(to_hidden, to_weight)
        ctx.mark_non_differentiable(losses)
        return (losses * factors).sum(), losses

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        """The gradients that forward made, times that of the sum."""
        to_hidden, to_weight = ctx.saved_tensors
        return to_hidden.mul_(gradients[0]), to_weight.mul_(gradients[0]), None, None, None, None


class Rows(torch.autograd.Function):
    """hidden (N, D) -> its rows `chosen` (n,), all different, so that none of their gradients has to be added up."""

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, chosen: Tensor) -> Tensor:
        ctx.save_for_backward(chosen)
        ctx.count = len(hidden)
        return hidden[chosen]

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        (chosen,), (gradient,) = ctx.saved_tensors, gradients
        return gradient.new_zeros(ctx.count, gradient.size(1)).index_copy_(0, chosen, gradient), None


def head_loss(
    hidden: Tensor, weight: Tensor, targets: Tensor, factors: Tensor | None = None, *, tile: Tile = cross_entropy_
) -> tuple[Tensor, Tensor]:
    """hidden (N, D), targets and factors (N,) -> the sum of factor * cross-entropy, and the cross-entropies (N,), fp32.

    Both are 0 where a target is IGNORED, and only the sum has a gradient. On a CPU no logits are made for such a row;
    a GPU would have to be waited for to know which they are.
    """
    wanted = torch.is_grad_enabled() and (hidden.requires_grad or weight.requires_grad)
    factors = torch.ones_like(targets, dtype=torch.float32) if factors is None else factors.float()
    kept = targets != IGNORED
    if hidden.device.type != "cpu" or bool(kept.all()):
        total, losses = HeadLoss.apply(hidden, weight, targets.clamp(min=0), factors * kept, tile, wanted)
        return total, losses.where(kept, 0.0)
    chosen = kept.nonzero().squeeze(1)
    total, some = HeadLoss.apply(Rows.apply(hidden, chosen), weight, targets[chosen], factors[chosen], tile, wanted)
    return total, torch.zeros_like(factors).index_copy(0, chosen, some)
