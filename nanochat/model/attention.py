"""Causal attention over whole rows, by PyTorch's kernels: what a model attends with unless training chose better.

    y = sdpa(q, k, v, window)    # q (B, T, H, hd), k and v (B, T, H_kv, hd) -> (B, T, H, hd)

A position sees itself and those before it, with a window the newest so many of them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

Attend = Callable[[Tensor, Tensor, Tensor, int | None], Tensor]


def sdpa(q: Tensor, k: Tensor, v: Tensor, window: int | None) -> Tensor:
    """The kernel that PyTorch chooses; a window that hides nothing is none."""
    length = q.size(1)
    short = window is not None and window < length
    return masked_sdpa(q, k, v, visible(length, window, q.device) if short else None)


def masked_sdpa(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
    """q (B, T, H, hd), k and v (B, S, H_kv, hd), mask (T, S) or (B, 1, T, S) -> (B, T, H, hd).

    Without a mask it is causal and S = T.
    """
    return F.scaled_dot_product_attention(
        q.transpose(1, 2),
        k.transpose(1, 2),
        v.transpose(1, 2),
        attn_mask=mask,
        is_causal=mask is None,
        enable_gqa=k.size(2) != q.size(2),
    ).transpose(1, 2)


def gradients_like(to_y: Tensor, q: Tensor, k: Tensor, v: Tensor, *_: Any) -> tuple[Tensor, ...]:
    """Room for the gradients of q, k and v: what a kernel's backward gives, as far as torch.compile has to know it."""
    return tuple(torch.empty_like(x, memory_format=torch.contiguous_format) for x in (q, k, v))


def visible(length: int, window: int | None, device: torch.device) -> Tensor:
    """(length, length): whether the row's position sees the column's."""
    positions = torch.arange(length, device=device)
    distance = positions[:, None] - positions
    seen = distance >= 0
    return seen if window is None else seen & (distance < window)
