from __future__ import annotations

import json
import math
from typing import Any

import pytest

from nanochat.spec.errors import Diverged
from nanochat.training.guards import SpikeGuard, Trend

GUESSING = 6.0


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
    guard.check_norm(20, 0.5)
    guard.trend.add(9.0)
    copy.restore(json.loads(json.dumps(guard.state())))
    assert copy.state() == guard.state()
    assert copy.threshold() == guard.threshold()


def test_a_state_of_a_version_before_is_taken_up() -> None:
    guard = SpikeGuard(guessing=GUESSING)
    guard.restore({"calm": [3.0] * 60, "suspect": 2})
    assert guard.suspect == 2 and len(guard.calm) == 60
    guard.check(61, 3.0)
    assert guard.threshold() == 3.5
    guard.restore({})
    assert guard.state() == SpikeGuard(guessing=GUESSING).state()


def test_a_slow_climb_does_not_take_its_bound_along() -> None:
    """From 4.5 to 30 nats in steps that are each less than the margin."""
    guard = SpikeGuard(guessing=GUESSING)
    for step in range(100):
        guard.check(step, 4.5 + 0.02 * (step % 5))
    with pytest.raises(
        Diverged, match=r"above 5\.0\d\d for 20 steps, up to step 1\d\d, and is 5\.\d+; before it was 4\."
    ):
        for step in range(100, 400):
            guard.check(step, 4.5 + (step - 100) * 0.01)


def test_a_climb_before_there_is_a_past_is_seen_by_what_guessing_costs() -> None:
    guard = SpikeGuard(guessing=GUESSING)
    guard.check(0, GUESSING)
    with pytest.raises(
        Diverged, match=r"above 6\.500 for 100 steps, up to step 100, .*guessing every token costs 6\.000"
    ):
        for step in range(1, 200):
            guard.check(step, 19.0 + step % 7)


def test_a_loss_that_overshoots_at_the_beginning_may_come_back() -> None:
    guard = SpikeGuard(guessing=GUESSING)
    for step, loss in enumerate([6.0, *[15.0] * 50, *[5.0] * 10]):
        guard.check(step, loss)
        assert bool(guard.suspect) == (loss == 15.0)
    assert guard.finish(5.0) == ""


def test_a_stage_may_begin_above_guessing() -> None:
    guard = SpikeGuard(guessing=GUESSING)
    for step in range(150):
        guard.check(step, 8.0 - 0.02 * step)
        assert not guard.suspect
    guard.finish(5.0)


@pytest.mark.parametrize(
    ("losses", "final", "rl"),
    [
        ([6.0], 19.0, False),  # one step, which ruined the weights
        ([6.0, 5.9, 19.0, 15.0], 5.0, False),
        ([6.0, 5.9, 5.0], math.inf, False),
        ([6.0, 5.9, 5.0], math.nan, False),
        ([6.0, *[6.3] * 30], 6.3, False),
        ([8.0, 8.5, 9.0], 9.0, False),  # it began above guessing, and did not fall
        ([8.0, *[7.0] * 30], 7.0, False),  # it fell, and had the steps to fall below
        ([5.0, *[5.5] * 5], 30.0, True),
        ([7.0, *[7.0] * 30], 8.1, True),
        ([5.0, *[5.2] * 30], 6.6, False),
    ],
)
def test_nothing_ends_above_guessing(losses: list[float], final: float, rl: bool) -> None:
    guard = SpikeGuard(guessing=GUESSING, margin=math.inf if rl else 0.5)
    for step, loss in enumerate(losses):
        guard.check(step, loss)
    with pytest.raises(Diverged, match=r"guessing every token costs 6\.000|under the final weights is (inf|nan)"):
        guard.finish(final)


@pytest.mark.parametrize(
    ("losses", "rl"),
    [
        ([6.0], False),
        ([8.0, 7.5, 7.2], False),
        ([5.8, 6.2], False),  # a step or two of fine-tuning, of few tokens
        ([*[5.5] * 30, 6.4], False),  # so is the last
        ([7.0, *[7.2] * 30], True),
        ([], False),
    ],
)
def test_what_was_not_better_before_may_end_so(losses: list[float], rl: bool) -> None:
    guard = SpikeGuard(guessing=GUESSING, margin=math.inf if rl else 0.5)
    for step, loss in enumerate(losses):
        guard.check(step, loss)
    guard.finish(losses[-1] if losses else -math.inf)


def test_weights_that_the_last_step_ruined_are_no_checkpoint() -> None:
    guard = SpikeGuard(guessing=GUESSING)
    guard.check(0, 6.0)
    assert guard.is_sound(6.2) and not guard.is_sound(6.6) and not guard.is_sound(math.nan)


@pytest.mark.parametrize("norm", [0.0, 0.25])
def test_a_gradient_norm_that_stays_the_same_is_seen(norm: float) -> None:
    guard = SpikeGuard()
    guard.check_norm(1, 0.3)
    with pytest.raises(Diverged, match=rf"exactly {norm:.3g} for 20 steps, up to step 21"):
        for step in range(2, 30):
            guard.check_norm(step, norm)


def trend_of(values: list[float], **options: Any) -> Trend:
    trend = Trend(**options)
    for value in values:
        trend.add(value)
    return trend


@pytest.mark.parametrize(
    "values",
    [
        [6.0] * 50,
        [6.0 - 0.0001 * step for step in range(50)],  # less than a hundredth
        [1.2 + 0.3 * (step % 5) for step in range(50)],
        [1.0 + 0.1 * step for step in range(50)],
        [6.0, 6.0],
    ],
)
def test_a_loss_that_does_not_fall_is_said_with_its_figures(values: list[float]) -> None:
    remark = trend_of(values).remark()
    assert remark.startswith("It has learned next to nothing: the mean loss is")
    assert f"{sum(values[:20]) / len(values[:20]):.4g} in its first" in remark or len(values) == 2
    assert "matrixLr" in remark


@pytest.mark.parametrize("values", [[], [6.0], [6.0, 5.9], [6.0 - 0.01 * step for step in range(50)]])
def test_a_loss_that_falls_needs_no_remark(values: list[float]) -> None:
    assert trend_of(values).remark() == ""


def test_rewards_are_to_rise() -> None:
    assert trend_of([0.1 + 0.01 * step for step in range(50)], rises=True).remark() == ""
    assert "the mean reward is 0 in its first 20 steps and 0 in its last 20" in (
        trend_of([0.0] * 50, name="reward", rises=True).remark()
    )
