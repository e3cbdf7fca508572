"""Two evaluations, item by item."""

from __future__ import annotations

from statistics import stdev

import pytest

from nanochat.evaluation.comparison import compare
from nanochat.evaluation.items import Item
from nanochat.spec.errors import UserError


def items(task: str, verdicts: list[list[bool]], *, baseline: float = 0.0, question: str = "q") -> list[Item]:
    return [
        Item.of(task, index, prompt=f"{question}{index}", answers=["a"], verdicts=each, baseline=baseline)
        for index, each in enumerate(verdicts)
    ]


RIGHT, WRONG = [True], [False]
FIRST = [*items("sums", [RIGHT, WRONG, WRONG, RIGHT, [True, False]]), *items("letters", [RIGHT, RIGHT], baseline=0.25)]
SECOND = [*items("sums", [RIGHT, RIGHT, WRONG, WRONG, RIGHT]), *items("letters", [WRONG, RIGHT], baseline=0.25)]


def test_differences_are_paired() -> None:
    found = compare(FIRST, SECOND)
    sums, letters = found.tasks["sums"], found.tasks["letters"]
    assert (sums.first, sums.second, sums.only_first, sums.only_second) == (0.5, 0.6, 1, 2)
    assert sums.difference.value == pytest.approx(0.1) and sums.difference.n == 5
    assert sums.difference.stderr == pytest.approx(stdev([0, 1, 0, -1, 0.5]) / 5**0.5)
    assert letters.difference.stderr == pytest.approx(stdev([-1, 0]) / 2**0.5)
    first, second, difference = found.mean(found.tasks)
    assert first == pytest.approx((0.5 + 1.0) / 2) and second == pytest.approx((0.6 + 0.25 / 0.75) / 2)
    assert difference.value == pytest.approx(second - first)
    errors = [sums.difference.stderr, letters.difference.stderr / 0.75]
    assert difference.stderr == pytest.approx(sum(error**2 for error in errors) ** 0.5 / 2)
    assert [(a.task, a.index) for a, _ in found.changed] == [("sums", 1), ("sums", 3), ("sums", 4), ("letters", 0)]


def test_the_same_evaluation_differs_by_nothing() -> None:
    found = compare(FIRST, FIRST)
    assert all((task.difference.value, task.difference.stderr) == (0, 0) for task in found.tasks.values())
    assert not found.changed and (found.single, found.other_questions) == (0, 0)


def test_what_is_no_pair_is_counted_and_left_out() -> None:
    other = items("sums", [RIGHT, RIGHT], question="another ")
    found = compare([*FIRST, *items("more", [RIGHT] * 3)], [*other, *SECOND[2:]])
    assert found.tasks.keys() == {"sums", "letters"} and found.tasks["sums"].difference.n == 3
    assert (found.other_questions, found.single) == (2, 3)
    with pytest.raises(UserError, match="no item in common"):
        compare(FIRST[:2], other)
