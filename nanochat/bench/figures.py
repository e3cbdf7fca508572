"""Figures of several rounds: the median with the least and the greatest, and ratios taken round by round."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from statistics import median
from typing import Any


@dataclass(frozen=True, slots=True)
class Spread:
    """Median, least and greatest of several rounds."""

    median: float
    low: float
    high: float
    rounds: int

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        return cls(median(values), min(values), max(values), len(values))


@dataclass(frozen=True, slots=True)
class Measured:
    """One of those that took turns: what it said in each round, and where a step's time went."""

    name: str
    rounds: Sequence[Mapping[str, float]]
    parts: Mapping[str, float] = field(default_factory=dict)  # seconds of its start
    costs: Sequence[Mapping[str, Any]] = ()

    def spread(self, name: str) -> Spread:
        return Spread.of([given[name] for given in self.rounds])

    def rate(self, over: str, under: str = "seconds") -> Spread:
        """One figure by another, such as tokens a second."""
        return Spread.of([given[over] / given[under] for given in self.rounds])

    def to_dict(self) -> dict[str, Any]:
        """For programs: a spread of every figure."""
        names = sorted(set().union(*self.rounds)) if self.rounds else []
        return {
            "name": self.name,
            "figures": {name: asdict(self.spread(name)) for name in names},
            "parts": dict(self.parts),
            "costs": list(self.costs),
        }


def times_faster(first: Measured, second: Measured, over: str = "tokens", under: str = "seconds") -> Spread:
    """By how much the rate of `first` is above that of `second`, round by round: both saw the same load."""
    pairs = zip(first.rounds, second.rounds, strict=True)
    return Spread.of([(a[over] / a[under]) / (b[over] / b[under]) for a, b in pairs])
