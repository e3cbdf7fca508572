"""Muon's update for a stack of matrices of one shape: momentum, then the nearest orthogonal matrix.

After Keller Jordan, https://kellerjordan.github.io/posts/muon. Stacked, each of its products is one batched call.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

NEWTON_SCHULZ_STEPS = 5
A, B, C = 3.4445, -4.7750, 2.0315  # of x -> a x + b x^3 + c x^5 on the singular values
EPSILON = 1e-7


def orthogonalise(matrices: Tensor, dtype: torch.dtype) -> Tensor:
    """(n, rows, cols) -> the same shape with singular values drawn to about 1, computed in dtype.

    The result is U S' V^T with S' between 0.7 and 1.2, which serves as well as U V^T.
    """
    tall = matrices.size(-2) > matrices.size(-1)
    x = matrices.mT if tall else matrices  # the products below are square in the shorter side
    x = (x / (torch.linalg.matrix_norm(x, keepdim=True) + EPSILON)).to(dtype)
    for _ in range(NEWTON_SCHULZ_STEPS):
        gram = x @ x.mT
        polynomial = torch.baddbmm(gram, gram, gram, beta=B, alpha=C)  # b G + c G^2
        x = torch.baddbmm(x, polynomial, x, beta=A)  # a x + (b G + c G^2) x
    return (x.mT if tall else x).to(matrices.dtype)


def muon_update(
    matrices: Tensor, gradients: Tensor, momenta: Tensor, *, lr: float, momentum: float, dtype: torch.dtype
) -> None:
    """One step in place, all (n, rows, cols): mean momentum, Nesterov, orthogonalised, scaled by shape."""
    momenta.lerp_(gradients, 1.0 - momentum)
    direction = orthogonalise(gradients.lerp(momenta, momentum), dtype)
    matrices.sub_(direction, alpha=lr * math.sqrt(max(1.0, matrices.size(-2) / matrices.size(-1))))
