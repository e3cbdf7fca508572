"""Muon's update for a stack of matrices of one shape: momentum, then the nearest orthogonal matrix, and decay.

After Keller Jordan, https://kellerjordan.github.io/posts/muon. Stacked, each of its products is one batched call. Two
polynomials make a matrix orthogonal: Newton-Schulz's, and the better one of Polar Express (arXiv 2505.16932).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class Polynomials:
    """Rounds of x -> a x + b x^3 + c x^5 on the singular values, of a matrix whose norm is at most 1 / slack."""

    rounds: tuple[tuple[float, float, float], ...]
    slack: float = 1.0


POLYNOMIALS: Mapping[str, Polynomials] = {
    "newton-schulz": Polynomials(((3.4445, -4.7750, 2.0315),) * 5),
    "polar-express": Polynomials(
        (
            (8.1566, -22.4833, 15.8788),
            (4.0429, -2.8089, 0.5000),
            (3.8917, -2.7725, 0.5061),
            (3.2858, -2.3681, 0.4645),
            (2.3465, -1.7098, 0.4232),
        ),
        slack=1.01,
    ),
}
EPSILON = 1e-7


def orthogonalise(matrices: Tensor, dtype: torch.dtype, method: str = "newton-schulz") -> Tensor:
    """(n, rows, cols) -> the same shape with singular values drawn to about 1, computed in dtype.

    The result is U S' V^T with S' between 0.7 and 1.2, which serves as well as U V^T. `method` is one of POLYNOMIALS.
    """
    polynomials = POLYNOMIALS[method]
    tall = matrices.size(-2) > matrices.size(-1)
    x = matrices.mT if tall else matrices  # the products below are square in the shorter side
    x = (x / (polynomials.slack * torch.linalg.matrix_norm(x, keepdim=True) + EPSILON)).to(dtype)
    for a, b, c in polynomials.rounds:
        gram = x @ x.mT
        polynomial = torch.baddbmm(gram, gram, gram, beta=b, alpha=c)  # b G + c G^2
        x = torch.baddbmm(x, polynomial, x, beta=a)  # a x + (b G + c G^2) x
    return (x.mT if tall else x).to(matrices.dtype)


def muon_update(
    matrices: Tensor,
    gradients: Tensor,
    momenta: Tensor,
    *,
    lr: float,
    momentum: float,
    dtype: torch.dtype,
    method: str = "newton-schulz",
    decay: float = 0.0,
) -> None:
    """One step in place, all (n, rows, cols): mean momentum, Nesterov, orthogonalised, scaled by shape.

    Decay is cautious (arXiv 2510.12402): it shrinks only the weights that the step moves towards 0, and none beyond it.
    """
    momenta.lerp_(gradients, 1.0 - momentum)
    direction = orthogonalise(gradients.lerp(momenta, momentum), dtype, method)
    if decay:
        matrices.sub_(torch.where(direction * matrices >= 0, matrices, 0.0), alpha=min(1.0, lr * decay))
    matrices.sub_(direction, alpha=lr * math.sqrt(max(1.0, matrices.size(-2) / matrices.size(-1))))
