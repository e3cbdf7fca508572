from __future__ import annotations

import math

import pytest

from nanochat.spec.errors import Diverged
from nanochat.training.guards import SpikeGuard


def calm_guard() -> SpikeGuard:
    guard = SpikeGuard(margin=0.5, patience=3, window=20)
    for step in range(20):
        guard.check(step, 3.0 + 0.01 * (step % 3))
    return guard


@pytest.mark.parametrize("loss", [math.nan, math.inf, -math.inf])
def test_a_loss_that_is_not_finite_is_divergence_at_once(loss: float) -> None:
    with pytest.raises(Diverged, match="step 7"):
        SpikeGuard().check(7, loss)


def test_a_gradient_that_is_not_finite_is_divergence_at_once() -> None:
    with pytest.raises(Diverged, match="gradient"):
        SpikeGuard().check_norm(7, math.nan)


def test_a_spike_that_passes_is_not_divergence() -> None:
    guard = calm_guard()
    for step in range(20):
        guard.check(step, 9.0)
        guard.check(step, 9.0)
        assert guard.suspect == 2
        guard.check(step, 3.0)
        assert guard.suspect == 0


def test_a_spike_that_stays_is_divergence() -> None:
    guard = calm_guard()
    guard.check(20, 9.0)
    guard.check(21, 9.0)
    with pytest.raises(Diverged, match="up to step 22"):
        guard.check(22, 9.0)


def test_falling_from_the_first_loss_is_no_spike() -> None:
    guard = SpikeGuard(patience=1, window=20)
    for step in range(200):
        guard.check(step, 10.0 * math.exp(-step / 20))


def test_no_margin_leaves_only_what_is_not_finite() -> None:
    guard = SpikeGuard(margin=math.inf, patience=1, window=4)
    for loss in (0.0, 0.0, 0.0, 0.0, 100.0, -100.0):
        guard.check(0, loss)


def test_the_state_goes_through_a_checkpoint() -> None:
    guard, copy = calm_guard(), SpikeGuard(margin=0.5, patience=3, window=20)
    guard.check(20, 9.0)
    copy.restore(guard.state())
    assert copy.state() == guard.state()
    assert copy.threshold() == guard.threshold()
