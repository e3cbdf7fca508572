"""Work on each number between a layer's products: norms, rotary positions, the MLP's square.

x = pointwise.norm(x)       # PLAIN: by PyTorch, torch.compile fuses it; or `nanochat.model.fused_pointwise.FUSED`
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

EPSILON = torch.finfo(torch.float32).eps  # of the norms, in every compute dtype


def norm(x: Tensor) -> Tensor:
    """RMS norm over the last dimension, without weights."""
    return F.rms_norm(x, (x.size(-1),), eps=EPSILON)


def rotate(x: Tensor, rotary: Tensor) -> Tensor:
    """Rotary positions (arXiv 2104.09864), first half of a head with its second half, in fp32.

    x (B, T, H, hd), rotary (2, 1 or B, T, 1, hd/2) -> (B, T, H, hd)
    """
    cos, sin = rotary[0], rotary[1]
    first, second = x.float().chunk(2, dim=-1)
    return torch.cat((first * cos + second * sin, second * cos - first * sin), dim=-1)


def turn(x: Tensor, rotary: Tensor) -> Tensor:
    """Queries or keys (B, T, H, hd), rotated and normed."""
    return norm(rotate(x, rotary)).to(x.dtype)


def square(x: Tensor) -> Tensor:
    """The square of what is above 0."""
    return F.relu(x).square()


@dataclass(frozen=True, slots=True)
class Pointwise:
    """One way to compute all three."""

    norm: Callable[[Tensor], Tensor]
    turn: Callable[[Tensor, Tensor], Tensor]
    square: Callable[[Tensor], Tensor]


PLAIN = Pointwise(norm, turn, square)
