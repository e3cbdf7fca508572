"""The progress of launches: what is reported is there, whole, and its time is the last sign of life."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest

from nanochat.spec.errors import StorageError
from nanochat.storage import Store
from nanochat.tracking.progress import Progress, read_progress

RUN = "runs/default.demo/0123456789ab"
FOLDER = f"{RUN}/progress/base"
PATH = f"{FOLDER}/01-a.json"


class Clock:
    """Time that a test sets."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def progress(store: Any, clock: Clock, launch: str = "01-a", **options: Any) -> Progress:
    return Progress(store, FOLDER, stage="base", launch=launch, interval=1e9, clock=clock, passed=clock, **options)


def test_it_comes_back(store: Store) -> None:
    clock = Clock()
    bar = progress(store, clock)
    bar.update(phase="training", step=0, total=100)
    clock.now += 10
    bar.update(step=20, rates={"tokens/s": 9800.5}, losses={"loss": 3.25})
    bar.close()
    state = read_progress(store, FOLDER, "01-a")
    assert state is not None and state == bar.state
    assert (state.stage, state.launch, state.phase) == ("base", "01-a", "training")
    assert (state.step, state.total, state.time) == (20, 100, 1010.0)
    assert state.eta == pytest.approx(40.0)
    assert state.rates == {"tokens/s": 9800.5} and state.losses == {"loss": 3.25}


def test_two_launches_share_nothing(store: Store) -> None:
    first, second = progress(store, Clock()), progress(store, Clock(), "01-b")
    second.update(phase="training", step=60)
    second.close()
    first.update(phase="training", step=12)  # it was to end and still writes
    first.close()
    steps = [state.step for launch in ("01-a", "01-b") if (state := read_progress(store, FOLDER, launch))]
    assert steps == [12, 60]
    assert read_progress(store, FOLDER, "02-a") is None


def test_the_file_of_a_version_before_is_its_launchs_alone(store: Store) -> None:
    store.write_json(f"{FOLDER}.json", {"stage": "base", "launch": "01-a", "step": 3})
    state = read_progress(store, FOLDER, "01-a")
    assert state is not None and state.step == 3
    assert read_progress(store, FOLDER, "01-b") is None


def test_without_news_its_time_stands_still(store: Store) -> None:
    clock = Clock()
    bar = progress(store, clock)
    bar.update(phase="loading")
    bar.write()
    clock.now += 100
    bar.write()
    state = read_progress(store, FOLDER, "01-a")
    assert state is not None and state.time == 1000.0
    bar.close()


def test_a_new_phase_begins_anew(store: Store) -> None:
    clock = Clock()
    bar = progress(store, clock)
    bar.update(phase="training", step=99, total=100)
    bar.update(phase="saving")
    assert (bar.state.step, bar.state.total, bar.state.eta) == (0, None, None)
    bar.close()


def test_a_pause_has_no_rates_and_no_estimate(store: Store) -> None:
    clock = Clock()
    bar = progress(store, clock)

    def step(at: int) -> None:
        clock.now += 1
        bar.update(phase="training", step=at, total=100, rates={"tokens/s": 9.0}, losses={"loss": 2.0})

    step(1), step(2)
    assert bar.state.eta == pytest.approx(98)
    for task in (1, 2):
        clock.now += 1000
        bar.update(pause=f"measuring CORE, task {task} of 2")
        bar.update()  # a sign of life changes nothing
        bar.write()
        state = read_progress(store, FOLDER, "01-a")
        assert state is not None and state.pause == f"measuring CORE, task {task} of 2"
        assert (state.step, state.total, dict(state.rates), state.eta) == (2, 100, {}, None)
        assert state.losses == {"loss": 2.0}
    bar.update(pause="")
    assert (bar.state.pause, dict(bar.state.rates), bar.state.eta) == ("", {}, None)
    step(3), step(4)
    assert bar.state.eta == pytest.approx(96), "what was measured meanwhile counts as no step"
    bar.close()


def test_the_estimate_follows_the_last_minutes(store: Store) -> None:
    clock = Clock()
    bar = progress(store, clock)
    bar.update(phase="training", step=0, total=1000)
    for step in range(1, 101):  # ten minutes at 6 s a step (with a compilation, say), then 1 s a step
        clock.now += 6
        bar.update(step=step)
    for step in range(101, 301):
        clock.now += 1
        bar.update(step=step)
    assert bar.state.eta == pytest.approx(700.0, rel=0.1)
    bar.close()


def test_values_that_are_not_finite_are_left_out(store: Store) -> None:
    bar = progress(store, Clock())
    bar.update(losses={"loss": math.nan, "other": 1.0})
    bar.close()
    json.loads(store.read(PATH, 1 << 20), parse_constant=lambda name: pytest.fail(name))
    state = read_progress(store, FOLDER, "01-a")
    assert state is not None and state.losses == {"other": 1.0}


def test_only_rank_zero_writes(store: Store) -> None:
    bar = progress(store, Clock(), enabled=False)
    bar.update(phase="training", step=1)
    bar.close()
    assert read_progress(store, FOLDER, "01-a") is None


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"{}", b'{"stage": 1'])
def test_what_cannot_be_read_is_none(store: Store, content: bytes) -> None:
    store.write(PATH, content)
    assert read_progress(store, FOLDER, "01-a") is None


def test_a_store_that_refuses_stops_nothing(caplog: pytest.LogCaptureFixture) -> None:
    class Refusing:
        def write_json(self, path: str, value: Any) -> None:
            raise StorageError("no")

    bar = progress(Refusing(), Clock())
    for step in range(3):
        bar.update(step=step)
        bar.write()
    bar.close()
    assert len(caplog.records) == 1
