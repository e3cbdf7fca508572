"""How often progress alone is written, by a clock of the test's own."""

from __future__ import annotations

from itertools import pairwise

from operators.rate_limits import (
    IDLE_SECONDS,
    PROGRESS_BURST,
    PROGRESS_RATE,
    PROGRESS_SECONDS,
    Bucket,
    ProgressLimit,
)

LOOK = 5.0  # seconds between the looks of one pipeline


class Pipelines:
    """Pipelines that run, and when each wrote its progress."""

    def __init__(self, count: int) -> None:
        self.now = 1000.0
        self.limit = ProgressLimit(lambda: self.now)
        self.wrote: dict[str, list[float]] = {f"uid-{number}": [] for number in range(count)}

    def run(self, seconds: float) -> None:
        """All look one after the other, evenly over each round."""
        for _ in range(int(seconds / LOOK)):
            for uid, times in self.wrote.items():
                self.now += LOOK / len(self.wrote)
                if self.limit.take(uid):
                    times.append(self.now)

    def gaps(self) -> list[float]:
        """Seconds between two writes of the same pipeline."""
        return [after - before for times in self.wrote.values() for before, after in pairwise(times)]


def test_one_pipeline_writes_its_progress_at_once_and_then_now_and_then() -> None:
    alone = Pipelines(1)
    alone.run(3600)
    assert alone.wrote["uid-0"][0] == 1000.0 + LOOK
    assert set(alone.gaps()) == {PROGRESS_SECONDS} and len(alone.wrote["uid-0"]) == 360


def test_a_thousand_keep_to_the_rate_and_take_turns() -> None:
    many = Pipelines(1000)
    many.run(3600)
    times = sorted(time for times in many.wrote.values() for time in times)
    assert 0.9 * PROGRESS_RATE * 3600 < len(times) <= PROGRESS_RATE * 3600 + PROGRESS_BURST
    for first, last in zip(times, times[int(PROGRESS_RATE * 10 + PROGRESS_BURST) :], strict=False):
        assert last - first >= 10.0 - 1e-6, "in no ten seconds more than the rate and the burst"
    turn = 1000 / PROGRESS_RATE
    assert min(many.gaps()) >= turn and max(many.gaps()) < 1.5 * turn
    assert min(len(times) for times in many.wrote.values()) >= 3600 / turn / 1.5


def test_those_that_run_no_more_take_no_turn() -> None:
    pipelines = Pipelines(1000)
    pipelines.run(300)
    pipelines.wrote = {"uid-0": []}
    pipelines.run(10 * IDLE_SECONDS)
    assert set(pipelines.gaps()[-10:]) == {PROGRESS_SECONDS} and len(pipelines.limit._asked) == 1


def test_a_clock_that_is_set_back_takes_nothing_away() -> None:
    bucket = Bucket(burst=2, refill=1, tokens=2, at=10_000.0)
    assert [bucket.take(now) for now in (6_400.0, 6_400.0, 6_400.0, 6_401.0)] == [True, True, False, True]
