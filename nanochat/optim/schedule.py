"""Learning rate, Muon's momentum and decay by step. Pure functions; imports no torch.

optimizer.step(
    lr_scale(step, steps=steps, warmup_ratio=0.0, warmdown_ratio=0.2, final_fraction=0.0),
    muon_momentum(step, ramp=300),
    clip,
)
"""

from __future__ import annotations

import math

FIRST_MOMENTUM = 0.85
LAST_MOMENTUM = 0.95


def lr_scale(step: int, *, steps: int, warmup_ratio: float, warmdown_ratio: float, final_fraction: float) -> float:
    """The part of the full rate at step 0 .. steps - 1: linear up, constant, linear down to final_fraction.

    The way up ends at the full rate and the way down begins with it; final_fraction would be reached at `steps`
    itself, so that the last step still moves.
    """
    warmup, warmdown = round(warmup_ratio * steps), round(warmdown_ratio * steps)
    if step < warmup:
        return (step + 1) / warmup
    left = steps - step
    if left >= warmdown:
        return 1.0
    return final_fraction + (1.0 - final_fraction) * max(0, left) / warmdown


def muon_momentum(step: int, *, ramp: int = 300) -> float:
    """0.85 at step 0, 0.95 from step `ramp` on, linear between; ramp 0 is 0.95 throughout."""
    if step >= ramp:
        return LAST_MOMENTUM
    return FIRST_MOMENTUM + (LAST_MOMENTUM - FIRST_MOMENTUM) * step / ramp


def decay_scale(step: int, *, steps: int) -> float:
    """The part of the full decay at step 0 .. steps - 1: half a cosine, from 1 down to 0 at `steps` itself."""
    return 0.5 * (1.0 + math.cos(math.pi * step / steps))
