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


def proportion(right: float, n: float, squares: float | None = None) -> Figure:
    """The mean of `n` values whose sum is `right`; its error is that of a binomial, sqrt(p (1 - p) / n).

    Values that are not only 0 and 1 need the sum of their `squares`: sqrt((squares / n - p^2) / n).
    """
    if not n:
        return Figure(0.0, 0, 0.0)
    p = right / n
    variance = p * (1 - p) if squares is None else max(0.0, squares / n - p * p)
    return Figure(p, int(n), math.sqrt(variance / n))


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
