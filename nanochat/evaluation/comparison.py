"""Two evaluations, item by item: how far the one is above the other, with the standard error of paired differences.

    found = compare(read_items(a / ITEMS), read_items(b / ITEMS))
    found.tasks["gsm8k"].difference          # Figure(value=0.031, n=1319, stderr=0.009)

Items are pairs where task, place and question are the same. Most of what makes one item harder than another is the same
for both models and goes out of the difference, so that its error is smaller than those of the two scores would say.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass

from nanochat.evaluation.figure import Figure, mean
from nanochat.evaluation.items import Item
from nanochat.spec.errors import UserError


@dataclass(frozen=True, slots=True)
class TaskComparison:
    """One task's scores over the items that both have, and how often only one of the two is right."""

    first: float
    second: float
    difference: Figure  # second less first
    only_first: int
    only_second: int
    baseline: float

    @classmethod
    def of(cls, pairs: Sequence[tuple[Item, Item]]) -> TaskComparison:
        """From pairs of items, of which there is at least one; a single one has no error to tell."""
        count = len(pairs)
        apart = [second.right - first.right for first, second in pairs]
        value = sum(apart) / count
        variance = sum((each - value) ** 2 for each in apart) / (count - 1) if count > 1 else math.nan
        return cls(
            sum(first.right for first, _ in pairs) / count,
            sum(second.right for _, second in pairs) / count,
            Figure(value, count, math.sqrt(variance / count)),
            sum(each < 0 for each in apart),
            sum(each > 0 for each in apart),
            pairs[0][0].baseline,
        )

    @property
    def above_guessing(self) -> tuple[float, float, Figure]:
        """Both scores and their difference on the scale on which guessing is 0 and all right 1."""
        scale = 1 - self.baseline
        of = self.difference
        return (
            (self.first - self.baseline) / scale,
            (self.second - self.baseline) / scale,
            Figure(of.value / scale, of.n, of.stderr / scale),
        )


@dataclass(frozen=True, slots=True)
class Comparison:
    """All tasks that both have, and what could not be compared."""

    tasks: Mapping[str, TaskComparison]
    changed: Sequence[tuple[Item, Item]]  # pairs of another verdict
    other_questions: int  # places at which the two were asked something else
    single: int  # items that only one of the two has

    def mean(self, names: Collection[str]) -> tuple[float, float, Figure]:
        """Means over some tasks of how far they are above guessing, as CORE and ChatCORE are."""
        firsts, seconds, differences = zip(*(self.tasks[name].above_guessing for name in names), strict=True)
        return sum(firsts) / len(firsts), sum(seconds) / len(seconds), mean(differences)


def compare(first: Iterable[Item], second: Iterable[Item]) -> Comparison:
    """Pair the items of two evaluations; UserError where they have none in common."""
    known = {(item.task, item.index): item for item in first}
    pairs: dict[str, list[tuple[Item, Item]]] = {}
    asked_other = alone = 0
    for item in second:
        partner = known.pop((item.task, item.index), None)
        if partner is None:
            alone += 1
        elif partner.digest != item.digest:
            asked_other += 1
        else:
            pairs.setdefault(item.task, []).append((partner, item))
    if not pairs:
        raise UserError("the two evaluations have no item in common: measure both on the same tasks and data")
    return Comparison(
        {task: TaskComparison.of(of_task) for task, of_task in pairs.items()},
        [(a, b) for of_task in pairs.values() for a, b in of_task if a.right != b.right],
        asked_other,
        alone + len(known),
    )
