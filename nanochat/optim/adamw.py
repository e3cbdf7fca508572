"""AdamW's update for rows of a table (arXiv 1711.05101)."""

from __future__ import annotations

import math

from torch import Tensor


def adamw_update(
    rows: Tensor,
    gradients: Tensor,
    means: Tensor,
    squares: Tensor,
    *,
    step: int,
    lr: float,
    betas: tuple[float, float],
    epsilon: float,
    weight_decay: float,
) -> None:
    """One step in place, all of one shape; `step` counts from 1.

    w <- (1 - lr decay) w - lr m' / (sqrt(v') + epsilon)
    m' = m / (1 - beta1^step), v' = v / (1 - beta2^step)
    """
    means.lerp_(gradients, 1.0 - betas[0])
    squares.lerp_(gradients.square(), 1.0 - betas[1])
    denominator = squares.sqrt().div_(math.sqrt(1.0 - betas[1] ** step)).add_(epsilon)
    rows.mul_(1.0 - lr * weight_decay)
    rows.addcdiv_(means, denominator, value=-lr / (1.0 - betas[0] ** step))
