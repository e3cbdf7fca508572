"""Causal attention in bf16 on a CPU, by blocks of rows: half of the time of PyTorch's kernel, forward and backward.

    y = blocked(q, k, v, window)    # as `nanochat.model.attention.sdpa`, bf16

A block is multiplied with the keys that it sees alone. Scores and sums are fp32: oneDNN has products of fp32 matrices
that it multiplies as bf16, which loses nothing of scores, for they are made of bf16. The softmax is kept in bf16 for
backward, half of B * H * T^2 numbers, which LONGEST bounds. Backward follows FlashAttention (arXiv 2205.14135).

It is an operator of PyTorch's, which torch.compile takes as it is. B rows, T positions, H heads, hd head size; N is
B * H, R the rows of a block, S the keys that they see.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from nanochat.model.attention import gradients_like

ROWS = 128  # of a block
LONGEST = 1024  # positions in training; beyond them PyTorch's kernel takes less memory


def is_supported(compute_dtype: torch.dtype) -> bool:
    """Whether this CPU and this PyTorch multiply so."""
    mkldnn = torch.backends.mkldnn
    return compute_dtype == torch.bfloat16 and mkldnn.is_available() and hasattr(mkldnn, "matmul")


def blocked(q: Tensor, k: Tensor, v: Tensor, window: int | None) -> Tensor:
    """q (B, T, H, hd), k and v (B, T, H_kv, hd), bf16 -> (B, T, H, hd)."""
    shared = q.size(2) // k.size(2)
    if shared > 1:
        k, v = (x.repeat_interleave(shared, dim=2) for x in (k, v))
    keep = torch.is_grad_enabled()
    return torch.ops.nanochat.blocked_attention(q, k, v, q.size(1) if window is None else window, keep)[0]


def forward(q: Tensor, k: Tensor, v: Tensor, window: int, keep: bool) -> tuple[Tensor, Tensor]:
    """(B, T, H, hd) each -> the same, and the softmax of all blocks, one after the other, if it is to be kept."""
    b, t, h, hd = q.shape
    q, k, v = flat(q), flat(k).float(), flat(v).float()
    y, kept = torch.empty_like(q), q.new_empty(size(b * h, t, window) if keep else 0)
    pieces = iter(split(kept, b * h, t, window)) if keep else None
    with bf16_products():
        for rows, keys in blocks(t, window):
            scores = torch.bmm(q[:, rows].float(), k[:, keys].mT).mul_(1 / math.sqrt(hd))  # (N, R, S)
            scores[..., edge(rows, keys, window)].masked_fill_(hidden(rows, keys, window), -math.inf)
            weights = scores.sub_(scores.amax(-1, keepdim=True)).exp_()  # the largest is 1, which bf16 holds exactly
            share = weights.sum(-1, keepdim=True).reciprocal_()
            y[:, rows] = torch.bmm(weights, v[:, keys]).mul_(share)
            if pieces is not None:
                next(pieces).copy_(weights.mul_(share))
    return unflat(y, b), kept


def backward(
    to_y: Tensor, q: Tensor, k: Tensor, v: Tensor, y: Tensor, kept: Tensor, window: int
) -> tuple[Tensor, Tensor, Tensor]:
    """The gradients of q, k and v, from that of y and from what forward kept."""
    b, t, h, hd = q.shape
    q, k, v, y, to_y = flat(q), flat(k), flat(v).float(), flat(y), flat(to_y)
    to_q, to_k, to_v = torch.empty_like(q), torch.zeros_like(v), torch.zeros_like(v)
    mean = (to_y.float() * y).sum(-1, keepdim=True)  # (N, T, 1): of the weights' gradients, by the weights
    with bf16_products():
        for (rows, keys), weights in zip(blocks(t, window), split(kept, b * h, t, window), strict=True):
            to_scores = torch.bmm(to_y[:, rows].float(), v[:, keys].mT).sub_(mean[:, rows]).mul_(weights)
            to_scores = to_scores.mul_(1 / math.sqrt(hd)).to(q.dtype)  # (N, R, S)
            to_q[:, rows] = torch.bmm(to_scores, k[:, keys])
            to_k[:, keys] += torch.bmm(to_scores.mT, q[:, rows])
            to_v[:, keys] += torch.bmm(weights.mT, to_y[:, rows])
    return unflat(to_q, b), unflat(to_k.to(q.dtype), b), unflat(to_v.to(q.dtype), b)


def blocks(length: int, window: int) -> Iterator[tuple[slice, slice]]:
    """Rows, and the keys that any of them sees."""
    for first in range(0, length, ROWS):
        end = min(length, first + ROWS)
        yield slice(first, end), slice(max(0, first - window + 1), end)


def edge(rows: slice, keys: slice, window: int) -> slice:
    """Where among a block's keys those begin that some rows do not see: all, or but for a window its own positions."""
    return slice(0 if rows.stop - keys.start > window else rows.start - keys.start, None)


def hidden(rows: slice, keys: slice, window: int) -> Tensor:
    """(R, keys at the edge): which of them a row does not see."""
    positions = torch.arange(keys.start, keys.stop)[edge(rows, keys, window)]
    distance = torch.arange(rows.start, rows.stop)[:, None] - positions
    return (distance < 0) | (distance >= window)


def shapes(count: int, length: int, window: int) -> list[tuple[int, int, int]]:
    """Of each block's weights: (N, R, S)."""
    return [(count, rows.stop - rows.start, keys.stop - keys.start) for rows, keys in blocks(length, window)]


def size(count: int, length: int, window: int) -> int:
    """The number of all blocks' weights."""
    return sum(map(math.prod, shapes(count, length, window)))


def split(kept: Tensor, count: int, length: int, window: int) -> list[Tensor]:
    """The weights of each block in what is kept of all."""
    each = shapes(count, length, window)
    return [piece.view(shape) for piece, shape in zip(kept.split([*map(math.prod, each)]), each, strict=True)]


def flat(x: Tensor) -> Tensor:
    """(B, T, H, hd) -> (N, T, hd)."""
    return x.transpose(1, 2).flatten(0, 1)


def unflat(x: Tensor, b: int) -> Tensor:
    """(N, T, hd) -> (B, T, H, hd)."""
    return x.unflatten(0, (b, -1)).transpose(1, 2).contiguous()


@contextmanager
def bf16_products() -> Iterator[None]:
    """Inside, oneDNN multiplies fp32 matrices as bf16 ones, with fp32 results; for the whole process."""
    settings: Any = torch.backends.mkldnn.matmul  # pyright: ignore[reportAttributeAccessIssue]
    before = settings.fp32_precision
    settings.fp32_precision = "bf16"
    try:
        yield
    finally:
        settings.fp32_precision = before


def _keep(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    q, k, v, ctx.window, _ = inputs
    ctx.save_for_backward(q, k, v, *output)


def _backward(ctx: Any, to_y: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
    gradients = torch.ops.nanochat.blocked_attention_backward(to_y, *ctx.saved_tensors, ctx.window)
    return (*gradients, None, None)


def _like_forward(q: Tensor, k: Tensor, v: Tensor, window: int, keep: bool) -> tuple[Tensor, Tensor]:
    b, t, h, _ = q.shape
    return torch.empty_like(q, memory_format=torch.contiguous_format), q.new_empty(
        size(b * h, t, window) if keep else 0
    )


# `torch.library.custom_op` is the same, and imports the compiler, which takes a second.
_OPERATORS = torch.library.Library("nanochat", "DEF")
_OPERATORS.define("blocked_attention(Tensor q, Tensor k, Tensor v, int window, bool keep) -> (Tensor, Tensor)")
_OPERATORS.define(
    "blocked_attention_backward(Tensor to_y, Tensor q, Tensor k, Tensor v, Tensor y, Tensor kept, int window)"
    " -> (Tensor, Tensor, Tensor)"
)
_OPERATORS.impl("blocked_attention", forward, "CPU")
_OPERATORS.impl("blocked_attention_backward", backward, "CPU")
torch.library.register_fake("nanochat::blocked_attention", _like_forward, lib=_OPERATORS)
torch.library.register_fake("nanochat::blocked_attention_backward", gradients_like, lib=_OPERATORS)
torch.library.register_autograd("nanochat::blocked_attention", _backward, setup_context=_keep, lib=_OPERATORS)
