"""Crowds at a server's door, by a made-up clock: the real admission, and slots that answer as long as they are told.

hall = Hall(slots=8, queue=64, seconds=lambda: 2.0)
hall.come(Guest("key", 1, retries=5), at=0.0)
hall.run()                          # until all have been answered or have given up
"""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import count

from nanochat.serving.admission import Admission, Overloaded
from nanochat.serving.reservations import Visitor


@dataclass(eq=False, slots=True)
class Guest:
    """Someone who asks, and comes back so many times when he is told, a little late."""

    client: str
    request: int
    retries: int = 0
    late: float = 0.02  # seconds
    places: int = 1
    first: float = 0.0  # when he came first
    told: list[int] = field(default_factory=list)  # seconds to wait, each time that he was sent away
    taken: float | None = None  # when he was let in
    begun: float | None = None  # when he got a slot


class Hall:
    """A server of so many slots, in which an answer takes `seconds()`."""

    def __init__(self, *, slots: int, queue: int, seconds: Callable[[], float], patience: float = 60.0) -> None:
        self.admission = Admission(slots=slots, queue=queue)
        self.guests: list[Guest] = []
        self.now = 0.0
        self.idle = 0.0  # seconds of slots
        self.longest = 0  # that ran and waited at once
        self._seconds, self._patience = seconds, patience
        self._free, self._waiting = slots, deque[Guest]()
        self._events: list[tuple[float, int, Callable[[], None]]] = []
        self._number = count()

    def come(self, guest: Guest, *, at: float) -> None:
        guest.first = at
        self.guests.append(guest)
        self._at(at, lambda: self._ask(guest))

    def run(self, until: float = float("inf")) -> None:
        while self._events and self._events[0][0] <= until:
            when, _, act = heapq.heappop(self._events)
            self.idle += self._free * (when - self.now)
            self.now = when
            act()

    def came_back(self) -> tuple[int, int]:
        """How often guests came back, and how often they were taken then."""
        times = sum(min(len(guest.told), guest.retries) for guest in self.guests)
        return times, sum(guest.taken is not None and bool(guest.told) for guest in self.guests)

    def _at(self, when: float, act: Callable[[], None]) -> None:
        heapq.heappush(self._events, (when, next(self._number), act))

    def _ask(self, guest: Guest) -> None:
        visitor = Visitor(guest.client, guest.request)
        try:
            self.admission.enter(visitor, guest.places, self.now, patience=self._patience)
        except Overloaded as refused:
            guest.told.append(refused.seconds)
            if len(guest.told) <= guest.retries:
                self._at(self.now + refused.seconds + guest.late, lambda: self._ask(guest))
            return
        guest.taken = self.now
        self.longest = max(self.longest, self.admission.open)
        self._waiting.extend([guest] * guest.places)
        self._begin()

    def _begin(self) -> None:
        while self._free and self._waiting:
            guest, seconds = self._waiting.popleft(), self._seconds()
            guest.begun = self.now if guest.begun is None else guest.begun
            self._free -= 1
            self._at(self.now + seconds, lambda seconds=seconds: self._end(seconds))

    def _end(self, held: float) -> None:
        self._free += 1
        self.admission.left(self.now, held=held)
        self._begin()
