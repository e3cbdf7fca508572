"""How fast slots become free, and who is refused for it."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import Any

import pytest

from nanochat.inference import Engine, Event, Sampling
from nanochat.model.transformer import Transformer
from nanochat.serving.admission import Overloaded
from nanochat.serving.pace import FIRST_GUESS, MEASURED, Pace
from nanochat.serving.reservations import Visitor
from nanochat.serving.service import EngineService
from nanochat.tokenizer import Tokenizer

SHORT = Sampling(max_tokens=1, min_tokens=1)


def test_times_count_in_which_someone_waits() -> None:
    pace = Pace(slots=1)
    pace.freed(10.0, waiting=False, held=0.0)
    assert pace.interval(400.0) == FIRST_GUESS and not pace.measured
    pace.waits(500.0)
    pace.waits(501.0)  # another one
    pace.freed(504.0, waiting=True, held=4.0)
    pace.freed(506.0, waiting=False, held=2.0)
    pace.waits(9000.0)
    pace.freed(9003.0, waiting=True, held=3.0)
    assert pace.interval(9003.0) == 3.0 and pace.measured == 3
    assert pace.interval(9005.0) == 3.0 and pace.interval(9019.0) == (9 + 16) / 4, "nobody has left for longer"
    pace.rests()
    pace.freed(20_000.0, waiting=False, held=3.0)
    assert pace.interval(20_000.0) == 3.0


def test_before_anything_is_measured_it_goes_by_how_long_a_slot_was_held() -> None:
    pace = Pace(slots=4)
    assert pace.interval(0.0) == FIRST_GUESS / 4
    pace.freed(3.0, waiting=False, held=2.0)
    assert pace.interval(3.0) == 0.5 and not pace.measured


def test_those_that_leave_together_count_each_and_what_is_long_ago_does_not() -> None:
    pace = Pace(slots=4)
    pace.waits(0.0)
    for round in range(1, 6):
        for number in range(4):
            pace.freed(round * 8.0, waiting=True, held=8.0)
            assert pace.interval(round * 8.0) == pytest.approx(
                2.0 if round == 1 else 8 * round / (4 * round - 3 + number)
            )
    for step in range(MEASURED + 1):
        pace.freed(100 + step * 0.5, waiting=True, held=8.0)
    assert pace.interval(100 + MEASURED * 0.5) == 0.5


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
    def submit(number: int, patience: float) -> None:
        service.submit([([1, 2, 3], [SHORT])], lambda _index, _what: None, Visitor("a", number), patience=patience)

    for number in range(4):
        submit(number, 0.0)  # how fast they leave is not known yet
    HeldEngine.let.release(3)
    until(lambda: service.open == 1)
    submit(4, 0.0)  # as many as there are slots may always wait
    with pytest.raises(Overloaded) as refused:
        submit(5, 0.0)
    assert refused.value.seconds >= 1
    HeldEngine.let.release(1)
    until(lambda: service.open == 1)
    with pytest.raises(Overloaded):  # for the place is promised
        submit(6, 0.0)
    until(lambda: _enters(submit, 5, 0.0))
    assert service.open == 2
    HeldEngine.let.release(2)
    until(lambda: service.open == 0)


def test_no_more_are_taken_than_there_is_room_for(service: EngineService, until: Any) -> None:
    def submit(number: int) -> None:
        service.submit([([1, 2, 3], [SHORT])], lambda _index, _what: None, Visitor("a", number), patience=1e9)

    for number in range(5):
        submit(number)
    with pytest.raises(Overloaded):
        submit(5)
    HeldEngine.let.release(5)
    until(lambda: service.open == 0)
    submit(6)  # slots never wait for those who do not come back
    assert service.open == 1


def _enters(submit: Any, number: int, patience: float) -> bool:
    try:
        submit(number, patience)
    except Overloaded:
        return False
    return True
