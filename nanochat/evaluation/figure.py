"""A measured number with what it was measured on and its standard error."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Figure:
    """`value` over `n` things, with the standard error of the value."""

    value: float
    n: int
    stderr: float

    def to_dict(self) -> dict[str, float | int]:
        return {"value": self.value, "n": self.n, "stderr": self.stderr}


def proportion(right: float, n: float) -> Figure:
    """The proportion of `n` that was right; its error is that of a binomial, sqrt(p (1 - p) / n)."""
    p = right / n if n else 0.0
    return Figure(p, int(n), math.sqrt(p * (1 - p) / n) if n else 0.0)


def centered(figure: Figure, baseline: float) -> Figure:
    """0 for guessing, 1 for all right: (p - baseline) / (1 - baseline)."""
    scale = 1 - baseline
    return Figure((figure.value - baseline) / scale, figure.n, figure.stderr / scale)


def mean(figures: Sequence[Figure]) -> Figure:
    """The plain mean of independent figures; its n is all of theirs."""
    count = len(figures)
    return Figure(
        sum(figure.value for figure in figures) / count,
        sum(figure.n for figure in figures),
        math.sqrt(sum(figure.stderr**2 for figure in figures)) / count,
    )
