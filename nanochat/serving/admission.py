"""Who is taken, and when the others should come back: a bounded queue, and behind it those who were sent away.

    admission = Admission(slots=8, queue=64)
    admission.enter(visitor, 1, now, patience=60.0)     # raises Overloaded, with the seconds after which there is room
    admission.left(now, held=2.5)                       # one is over, which had a slot for 2.5 seconds

Taken are as many as can be expected to get a slot within their patience, and no more than `capacity` at once. Any other
request is told when those before it will be served, at the measured pace, and there is room again. That is reserved for
it, before any that come for the first time. They may enter beside it as long as there is room for all reservations, and
always while it is calm: slots never wait for those who do not come back. The time told aims at the middle between calm
and full, for what happens differs from what was expected.

The time is given from outside, and one thread at a time may be inside.
"""

from __future__ import annotations

import math

from nanochat.serving.pace import Pace
from nanochat.serving.reservations import Reservations, Visitor

LONGEST = 3600  # seconds that anyone is told to wait
ENDING = 5  # seconds, where the server is about to end: by then another one is there


class Overloaded(Exception):
    """As many requests as are allowed run and wait already, or the server is about to end; `seconds` is when to come
    back."""

    def __init__(self, seconds: int = ENDING) -> None:
        super().__init__()
        self.seconds = seconds


class Admission:
    """The queue's length, and who may enter it; see the module's docstring."""

    def __init__(self, *, slots: int, queue: int) -> None:
        self.capacity = slots + queue
        self.open = 0  # that run or wait
        self._slots = slots
        self._pace = Pace(slots)
        self._reservations = Reservations()

    def enter(self, visitor: Visitor, places: int, now: float, *, patience: float) -> None:
        """Take a request for so many samples, or raise Overloaded."""
        most = self._most(now, patience)
        if self._reservations.use(visitor, now):
            calm, before = self.open <= self._calm(most), self.open
        else:
            calm, before = self.open + places <= self._calm(most), self.open + self._reservations.places
        if not calm and (before >= most or before + places > self.capacity):
            raise Overloaded(self.promise(visitor, places, now, patience=patience))
        self.open += places
        if self.open > self._slots:
            self._pace.waits(now)

    def promise(self, visitor: Visitor, places: int, now: float, *, patience: float) -> int:
        """The whole seconds after which a request that is sent away will be let in."""
        most = self._most(now, patience)
        calm = self._calm(most)
        # Those who are told the same second come together, and the queue has to have room for them.
        interval = max(self._pace.interval(now), 1 / max(1, most - calm))
        aim = min((calm + most) / 2, most - 1 / interval)
        ahead = max(0.0, self.open - aim + self._reservations.ahead(visitor, places))
        # By so much the sum of so many intervals differs from what is expected of it, and their mean from the real one.
        seconds = interval * (ahead + math.sqrt(ahead + ahead**2 / (1 + self._pace.measured)))
        told = min(max(1, math.ceil(seconds)), LONGEST)
        self._reservations.give(visitor, places, due=now + told)
        return told

    def left(self, now: float, *, held: float | None = None) -> None:
        """Count one less; `held` is for how many seconds it had a slot, None where it had none."""
        waiting = self.open > self._slots
        self.open -= 1
        if held is not None:
            self._pace.freed(now, waiting=waiting, held=held)
        elif self.open <= self._slots:
            self._pace.rests()

    def _most(self, now: float, patience: float) -> int:
        """How many may run and wait so that the last of them is begun in time; always twice as many as have a slot."""
        interval = self._pace.interval(now)
        if not self._pace.measured or patience >= self.capacity * interval:
            return self.capacity
        return min(self.capacity, max(2 * self._slots, self._slots + math.floor(patience / interval)))

    def _calm(self, most: int) -> int:
        """How many may run and wait so that all slots are busy, and there is room for those who come back."""
        return min(2 * self._slots, (self._slots + most) // 2)
