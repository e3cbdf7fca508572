"""The room that was promised to requests which were sent away, and when each of them may come back.

    reservations = Reservations()
    reservations.ahead(visitor, 1)               # how many places go before it, its own one included
    reservations.give(visitor, 1, due=now + 12)
    reservations.use(visitor, now + 12.3)        # True: it was promised room, and is here

A request that comes back is known by who asks and by what: nothing beside `Retry-After` is asked of clients. It may be
late by GRACE seconds. The reservations of one client make another's request wait for no more places than that one has
itself: whoever is sent away a thousand times makes nobody's time longer but his own. Of a client that does not come
back they count less and less.
"""

from __future__ import annotations

from bisect import insort
from dataclasses import dataclass, field
from typing import NamedTuple

GRACE = 10.0  # seconds after its time in which a request may still come back
MOST = 4096  # reservations; above it the client that has most of them loses one
MEMORY = 8  # of a client's last reservations, by which is judged how many it comes back with


class Visitor(NamedTuple):
    """A request, as far as the queue has to know it again: whose it is, and which."""

    client: str
    request: int


class Reservation(NamedTuple):
    """The right to be let in."""

    due: float
    places: int  # how many samples the request is for


@dataclass(slots=True)
class _Client:
    reservations: dict[int, list[Reservation]] = field(default_factory=dict)  # by request, the first due first
    places: int = 0
    comes: float = 1.0  # the share of its reservations that are used, of late

    def seen(self, *, came: bool) -> None:
        self.comes += (came - self.comes) / MEMORY


class Reservations:
    """All of them; see the module's docstring."""

    def __init__(self) -> None:
        self.places = 0  # of all reservations that are not void
        self._count = 0
        self._clients: dict[str, _Client] = {}
        self._swept = 0.0

    def ahead(self, visitor: Visitor, places: int) -> float:
        """How many places are to be given before such a request is in, as far as those before it come back."""
        own = self._clients.get(visitor.client)
        mine = places + (own.places if own else 0)
        others = (client for client in self._clients.values() if client is not own)
        before = sum(client.comes * min(client.places, mine) for client in others)
        return before + places + (own.comes * own.places if own else 0.0)

    def give(self, visitor: Visitor, places: int, *, due: float) -> None:
        """Promise room for so many samples."""
        client = self._clients.setdefault(visitor.client, _Client())
        insort(client.reservations.setdefault(visitor.request, []), Reservation(due, places))
        client.places += places
        self.places += places
        self._count += 1
        if self._count > MOST:
            name, largest = max(self._clients.items(), key=lambda item: item[1].places)
            self._drop(Visitor(name, next(reversed(largest.reservations))), -1)

    def use(self, visitor: Visitor, now: float) -> bool:
        """Whether the request has a reservation that has fallen due, which is then used."""
        self._sweep(now)
        client = self._clients.get(visitor.client)
        held = client.reservations.get(visitor.request) if client else None
        if client is None or not held or held[0].due > now:
            return False
        client.seen(came=True)
        self._drop(visitor, 0)
        return True

    def _sweep(self, now: float) -> None:
        """Drop what is void, once a second."""
        if not self._count or now < self._swept + 1.0:
            return
        self._swept = now
        for name, client in list(self._clients.items()):
            for request, held in list(client.reservations.items()):
                for _ in [reservation for reservation in held if reservation.due + GRACE < now]:
                    client.seen(came=False)
                    self._drop(Visitor(name, request), 0)

    def _drop(self, visitor: Visitor, which: int) -> None:
        client = self._clients[visitor.client]
        held = client.reservations[visitor.request]
        reservation = held.pop(which)
        self._count -= 1
        self.places -= reservation.places
        client.places -= reservation.places
        if not held:
            del client.reservations[visitor.request]
        if not client.reservations:
            del self._clients[visitor.client]
