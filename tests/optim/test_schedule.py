from __future__ import annotations

from functools import partial

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nanochat.optim.schedule import decay_scale, lr_scale, muon_momentum


def test_up_constant_down() -> None:
    scale = partial(lr_scale, steps=10, warmup_ratio=0.2, warmdown_ratio=0.4, final_fraction=0.0)
    assert [scale(step) for step in range(10)] == [0.5, 1, 1, 1, 1, 1, 1, 0.75, 0.5, 0.25]


def test_down_all_the_way_as_in_sft() -> None:
    scale = partial(lr_scale, steps=4, warmup_ratio=0.0, warmdown_ratio=1.0, final_fraction=0.0)
    assert [scale(step) for step in range(4)] == [1, 0.75, 0.5, 0.25]


@given(
    steps=st.integers(1, 500),
    up=st.floats(0, 0.5),
    down=st.floats(0, 0.5),
    final=st.floats(0, 1),
)
def test_always_a_share(steps: int, up: float, down: float, final: float) -> None:
    for step in range(steps):
        scale = lr_scale(step, steps=steps, warmup_ratio=up, warmdown_ratio=down, final_fraction=final)
        assert 0 < scale <= 1 + 1e-12


@pytest.mark.parametrize(("step", "expected"), [(0, 0.85), (150, 0.90), (300, 0.95), (10_000, 0.95)])
def test_momentum_ramp(step: int, expected: float) -> None:
    assert muon_momentum(step) == pytest.approx(expected)


def test_no_ramp_is_the_last_momentum() -> None:
    assert muon_momentum(0, ramp=0) == 0.95


def test_decay_falls_to_nothing() -> None:
    scales = [decay_scale(step, steps=4) for step in range(5)]
    assert scales == pytest.approx([1, 0.8535534, 0.5, 0.1464466, 0])
