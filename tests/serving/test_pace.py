"""How long one more request would wait, and who is refused for it."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import Any

import pytest

from nanochat.inference import Engine, Event, Sampling
from nanochat.model.transformer import Transformer
from nanochat.serving.api import retry_after
from nanochat.serving.pace import MEASURED, Pace
from nanochat.serving.service import EngineService, Overloaded
from nanochat.tokenizer import Tokenizer

SHORT = Sampling(max_tokens=1, min_tokens=1)


def test_nothing_is_known_until_two_left_while_others_waited() -> None:
    pace = Pace()
    pace.freed(10.0, waiting=False)
    pace.freed(500.0, waiting=True)  # the time before says nothing: no one waited
    assert pace.seconds(1) is None
    pace.freed(504.0, waiting=True)
    pace.freed(506.0, waiting=False)
    pace.freed(9000.0, waiting=True)
    assert pace.seconds(1) == 3.0 and pace.seconds(4) == 12.0 and pace.seconds(0) == 0.0


def test_those_that_leave_together_count_each_and_what_is_long_ago_does_not() -> None:
    pace = Pace()
    for round in range(5):
        for _ in range(4):
            pace.freed(round * 8.0, waiting=True)
    assert pace.seconds(1) == pytest.approx(32 / 19)
    for step in range(MEASURED + 1):
        pace.freed(100 + step * 0.5, waiting=True)
    assert pace.seconds(1) == 0.5


@pytest.mark.parametrize(("seconds", "answer"), [(None, 2), (0.0, 1), (0.2, 1), (7.01, 8), (1e9, 3600)])
def test_when_to_try_again(seconds: float | None, answer: int) -> None:
    assert retry_after(seconds) == answer


class HeldEngine(Engine):
    """Makes a step each time that it is let."""

    let = threading.Semaphore(0)

    def step(self) -> list[Event]:
        self.let.acquire()
        return super().step()


@pytest.fixture
def service(model: Transformer, tokenizer: Tokenizer) -> Iterator[EngineService]:
    HeldEngine.let = threading.Semaphore(0)
    service = EngineService(HeldEngine(model, tokenizer, slots=1), queue=4)
    service.start()
    yield service
    HeldEngine.let.release(1000)
    service.stop()


def test_no_more_are_taken_than_can_be_expected_to_be_answered_in_time(service: EngineService, until: Any) -> None:
    def submit(patience: float) -> None:
        service.submit([([1, 2, 3], [SHORT])], lambda _index, _what: None, patience=patience)

    assert service.wait == 0.0
    for _ in range(4):
        submit(0.0)  # how fast they leave is not known yet
    assert service.wait is None
    HeldEngine.let.release(2)
    until(lambda: service.open == 2)
    assert service.wait is not None and service.wait > 0
    with pytest.raises(Overloaded) as refused:
        submit(0.0)
    assert refused.value.seconds == service.wait
    for _ in range(3):
        submit(1e9)
    with pytest.raises(Overloaded) as full:  # by number, however patient
        submit(1e9)
    assert full.value.seconds is not None and 0 < full.value.seconds < service.wait
    HeldEngine.let.release(4)
    until(lambda: service.open == 1)
    submit(0.0)  # as many as there are slots may always wait
    HeldEngine.let.release(2)
    until(lambda: service.open == 0)
    assert service.wait == 0.0
