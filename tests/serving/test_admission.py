"""Who is taken, and that those who come back when they are told are: crowds by a made-up clock."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable

import pytest
from crowds import Guest, Hall
from fastapi import Request
from starlette.types import Message

from nanochat.serving.admission import LONGEST, Admission, Overloaded
from nanochat.serving.reservations import GRACE, MOST, Reservations, Visitor
from nanochat.serving.visitors import visitor

SLOTS, QUEUE = 8, 64


def hall(draw: random.Random, *, mean: float = 2.0, steady: bool = False) -> Hall:
    def seconds() -> float:
        return mean if steady else draw.expovariate(1 / mean)

    return Hall(slots=SLOTS, queue=QUEUE, seconds=seconds)


def stream(draw: random.Random, crowd: Hall, count: int, *, rate: float, make: Callable[[int], Guest]) -> float:
    """Let so many guests come, at random times of this rate; the share of the slots that were busy meanwhile."""
    at = 0.0
    for number in range(count):
        at += draw.expovariate(rate)
        crowd.come(make(number), at=at)
    crowd.run(until=at)
    busy = 1 - crowd.idle / (SLOTS * at)
    crowd.run()
    return busy


@pytest.mark.parametrize("mean", [0.1, 2.0])
@pytest.mark.parametrize("clients", [1, 40])
@pytest.mark.parametrize("steady", [False, True])
def test_of_five_times_the_load_those_that_come_back_are_taken(mean: float, clients: int, steady: bool) -> None:
    draw = random.Random(1)
    crowd = hall(draw, mean=mean, steady=steady)

    def guest(number: int) -> Guest:
        return Guest(f"client {draw.randrange(clients)}", number, retries=5, late=draw.uniform(0.001, 0.3))

    busy = stream(draw, crowd, 600, rate=5 * SLOTS / mean, make=guest)
    assert busy >= 0.95
    back, taken = crowd.came_back()
    assert back > 400 and taken >= 0.9 * back
    assert all(guest.taken is not None for guest in crowd.guests)
    assert crowd.longest <= SLOTS + QUEUE
    served = sorted(guest.taken for guest in crowd.guests if guest.taken is not None)
    assert crowd.now - served[0] < 2 * 600 * mean / SLOTS, "slots stood idle meanwhile"


def test_whoever_asks_with_equal_words_is_told_apart_by_time() -> None:
    draw = random.Random(2)
    crowd = hall(draw)
    stream(draw, crowd, 600, rate=20.0, make=lambda _: Guest("one", 0, retries=5, late=0.005))
    back, taken = crowd.came_back()
    assert back > 400 and taken >= 0.9 * back


def test_a_crowd_at_once_is_spread_over_the_time_that_it_takes() -> None:
    draw = random.Random(3)
    crowd = hall(draw)
    stream(
        draw, crowd, 40, rate=8.0, make=lambda number: Guest("first", number, retries=5)
    )  # what a slot takes is known
    begun = crowd.now
    for number in range(400):
        crowd.come(Guest("crowd", number, retries=5), at=begun)
    crowd.run()
    back, taken = crowd.came_back()
    assert back >= 320 and taken >= 0.9 * back


def test_slots_do_not_wait_for_those_who_never_come_back_and_the_time_told_stays_short() -> None:
    draw = random.Random(4)
    crowd = hall(draw)
    assert stream(draw, crowd, 3000, rate=20.0, make=lambda number: Guest("one", number)) >= 0.97
    late = [told for guest in crowd.guests[1500:] for told in guest.told]
    assert len(late) > 1000 and max(late) < 60


def test_one_who_asks_without_end_makes_nobody_elses_time_longer() -> None:
    def told(flood: int) -> int:
        """The time of a guest who comes while another client has been sent away so often."""
        draw = random.Random(5)
        crowd = hall(draw)
        for number in range(SLOTS + QUEUE + flood):
            crowd.come(Guest("flood", number), at=0.0)
        crowd.come(Guest("other", 0), at=1.0)
        crowd.run(until=1.0)
        return crowd.guests[-1].told[0]

    alone, pressed = told(2), told(5000)
    assert pressed <= alone + 1


def test_beside_one_who_asks_without_end_others_are_taken_when_they_come_back() -> None:
    draw = random.Random(6)
    crowd = hall(draw)

    def guest(number: int) -> Guest:
        if number % 20:
            return Guest("flood", number, retries=2)
        return Guest(f"other {number}", number, retries=5, late=0.1)

    stream(draw, crowd, 4000, rate=40.0, make=guest)
    others = [guest for guest in crowd.guests if guest.client != "flood"]
    times = sum(len(guest.told) for guest in others)
    assert all(guest.taken is not None for guest in others)
    assert times > 100 and sum(bool(guest.told) for guest in others) >= 0.8 * times
    assert max(guest.taken - guest.first for guest in others if guest.taken is not None) < 90, "nobody starves"


def test_a_request_for_many_answers_is_let_in_too() -> None:
    draw = random.Random(7)
    crowd = hall(draw, mean=0.5)
    stream(
        draw, crowd, 1500, rate=3 * SLOTS / 0.5,
        make=lambda number: Guest("many", number, retries=4, places=QUEUE if number % 300 == 299 else 1),
    )  # fmt: skip
    assert all(guest.taken is not None for guest in crowd.guests if guest.places == QUEUE)


def test_who_comes_too_early_or_too_late_has_no_right() -> None:
    reservations, me = Reservations(), Visitor("me", 1)
    reservations.give(me, 1, due=10.0)
    assert not reservations.use(me, 9.9) and reservations.places == 1
    assert not reservations.use(Visitor("me", 2), 10.0) and not reservations.use(Visitor("you", 1), 10.0)
    assert reservations.use(me, 10.0) and not reservations.use(me, 10.0) and reservations.places == 0
    reservations.give(me, 3, due=20.0)
    assert not reservations.use(me, 20.0 + GRACE + 1.0) and reservations.places == 0


def test_a_clients_place_is_behind_its_own_and_its_equals() -> None:
    reservations = Reservations()
    for number in range(100):
        reservations.give(Visitor("flood", number), 1, due=500.0)
    assert reservations.ahead(Visitor("flood", 100), 1) == 101
    assert reservations.ahead(Visitor("other", 0), 1) == 2
    reservations.give(Visitor("other", 0), 2, due=500.0)
    assert reservations.ahead(Visitor("other", 1), 1) == 3 + 3 and reservations.ahead(Visitor("third", 0), 1) == 1 + 2


def test_reservations_have_a_bound_that_costs_those_who_have_most() -> None:
    reservations, few = Reservations(), [Visitor(f"client {number}", 0) for number in range(20)]
    for one in few:
        reservations.give(one, 1, due=1.0)
    for number in range(2 * MOST):
        reservations.give(Visitor("flood", number), 1, due=1.0)
    assert reservations.places == MOST
    assert all(reservations.use(one, 1.0) for one in few)
    assert reservations.use(Visitor("flood", 0), 1.0) and not reservations.use(Visitor("flood", 2 * MOST - 1), 1.0)


def test_what_is_told_is_in_whole_seconds_and_has_bounds() -> None:
    admission = Admission(slots=1, queue=1)
    told = []
    for number in range(5000):
        try:
            admission.enter(Visitor("a", number), 1, 0.0, patience=60.0)
        except Overloaded as refused:
            told.append(refused.seconds)
    assert admission.open == 2 and len(told) == 4998
    assert told == sorted(told) and min(told) >= 1 and max(told) == LONGEST


@pytest.mark.parametrize(
    ("address", "client"),
    [
        ("10.0.0.7", "10.0.0.7"),
        ("::ffff:10.0.0.7", "10.0.0.7"),
        ("2001:db8:1:2:aaaa::1", "2001:db8:1:2::/64"),
        ("2001:db8:1:2:ffff::2", "2001:db8:1:2::/64"),
        ("unix", "unix"),
    ],
)
def test_a_client_is_known_by_its_address(address: str, client: str) -> None:
    assert _visitor(b"a", address=address) == Visitor(client, hash(b"a"))
    assert _visitor(b"b", address=address) == Visitor(client, hash(b"b"))


def test_a_client_is_known_by_its_key_where_keys_are_asked_for() -> None:
    for written in ("Bearer one", "bearer  one "):
        assert _visitor(b"a", address="10.0.0.7", key=written) == Visitor("one", hash(b"a"))


def _visitor(body: bytes, *, address: str, key: str | None = None) -> Visitor:
    async def receive() -> Message:
        return {"type": "http.request", "body": body}

    headers = [] if key is None else [(b"authorization", key.encode())]
    request = Request({"type": "http", "headers": headers, "client": (address, 1)}, receive)
    return asyncio.run(visitor(request, by_key=key is not None))
