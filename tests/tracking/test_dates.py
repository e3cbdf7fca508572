"""Dates go on while the machine's clock is set, and journals stay in the order in which they were written."""

from __future__ import annotations

from typing import Any

import pytest

from nanochat.tracking.dates import Dates
from nanochat.tracking.journal import merge


class Machine:
    """A machine whose clock may be set, and which may sleep."""

    def __init__(self) -> None:
        self.date, self.passed = 1_000_000.0, 50.0

    def works(self, seconds: float) -> None:
        self.date += seconds
        self.passed += seconds


def test_dates_are_the_machines_while_nobody_sets_it_back() -> None:
    machine = Machine()
    dates = Dates(clock=lambda: machine.date, passed=lambda: machine.passed)
    for seconds in (0.0, 1.0, 3600.0):
        machine.works(seconds)
        assert dates() == machine.date
    machine.date += 7200  # it slept
    assert dates() == machine.date


def test_a_clock_that_is_set_back_leaves_the_dates_going_on() -> None:
    machine = Machine()
    dates = Dates(clock=lambda: machine.date, passed=lambda: machine.passed)
    machine.works(10)
    before = dates()
    machine.date -= 3600
    machine.works(5)
    assert dates() == pytest.approx(before + 5)
    machine.works(3700)
    assert dates() == pytest.approx(before + 3705)
    machine.date += 3600  # and set right again
    assert dates() == pytest.approx(before + 3705) and dates() == machine.date


def test_attempts_are_ordered_by_number_where_the_clock_was_set_back() -> None:
    def record(step: int, value: float, at: float) -> dict[str, Any]:
        return {"step": step, "time": at, "metrics": {"loss": value}}

    history = merge(
        {
            "02-a": [record(2, 20.0, 1000.0), {"event": "second", "step": 2, "time": 1001.0}],
            "01-b": [record(1, 1.0, 4600.0), record(2, 2.0, 4601.0), {"event": "first", "step": 2, "time": 4602.0}],
            "10-a": [record(3, 30.0, 2000.0)],
        }
    )
    assert history.launches == ("01-b", "02-a", "10-a")
    assert [(point.step, point.value) for point in history.metrics["loss"]] == [(1, 1.0), (2, 20.0), (3, 30.0)]
    assert [event.kind for event in history.events] == ["first", "second"]
