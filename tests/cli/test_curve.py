"""Curves as text."""

from __future__ import annotations

from nanochat.cli.curve import BLOCKS, sparkline


def test_the_first_steps_leave_height_to_the_others() -> None:
    drawn = sparkline([(step, 10 / step) for step in range(1, 101)], width=100)
    assert list(drawn) == sorted(drawn, reverse=True) and set(drawn) == set(BLOCKS)
    assert drawn.count(BLOCKS[0]) < 60


def test_a_peak_is_seen() -> None:
    assert sparkline([(step, 2.0 if step == 50 else 1.0) for step in range(1, 101)], width=100).strip("▁") == "█"
