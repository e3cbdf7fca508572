"""What was promised to requests that were sent away: when each of them may come back, and finds room.

    tickets = Tickets()
    tickets.ahead(visitor, 1)               # how many places go before it, its own one included
    tickets.give(visitor, 1, due=now + 12)
    tickets.use(visitor, now + 12.3)        # True: it was promised room, and is here

A request that comes back is known by who asks and by what: nothing beside `Retry-After` is asked of clients. A ticket
is void GRACE seconds after it has fallen due. The tickets of one client make another's request wait for no more places
than that one has itself: whoever is sent away a thousand times makes nobody's time longer but his own. Of a client that
does not come back they count less and less.
"""

from __future__ import annotations

from bisect import insort
from dataclasses import dataclass, field
from typing import NamedTuple

GRACE = 10.0  # seconds after its time in which a request may still come back
MOST = 4096  # tickets; above it the client that has most of them loses one
MEMORY = 8  # of a client's last tickets, by which is judged how many it comes back with


class Visitor(NamedTuple):
    """A request, as far as the queue has to know it again: whose it is, and which."""

    client: str
    request: int


class Ticket(NamedTuple):
    """The right to be let in."""

    due: float
    places: int  # how many samples the request is for


@dataclass(slots=True)
class _Client:
    tickets: dict[int, list[Ticket]] = field(default_factory=dict)  # by request, the first due first
    places: int = 0
    comes: float = 1.0  # the share of its tickets that are used, of late

    def seen(self, *, came: bool) -> None:
        self.comes += (came - self.comes) / MEMORY


class Tickets:
    """All of them; see the module's docstring."""

    def __init__(self) -> None:
        self.places = 0  # of all tickets that are not void
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
        insort(client.tickets.setdefault(visitor.request, []), Ticket(due, places))
        client.places += places
        self.places += places
        self._count += 1
        if self._count > MOST:
            name, largest = max(self._clients.items(), key=lambda item: item[1].places)
            self._drop(Visitor(name, next(reversed(largest.tickets))), -1)

    def use(self, visitor: Visitor, now: float) -> bool:
        """Whether the request has a ticket that has fallen due, which is then used."""
        self._sweep(now)
        client = self._clients.get(visitor.client)
        held = client.tickets.get(visitor.request) if client else None
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
            for request, held in list(client.tickets.items()):
                for _ in [ticket for ticket in held if ticket.due + GRACE < now]:
                    client.seen(came=False)
                    self._drop(Visitor(name, request), 0)

    def _drop(self, visitor: Visitor, which: int) -> None:
        client = self._clients[visitor.client]
        held = client.tickets[visitor.request]
        ticket = held.pop(which)
        self._count -= 1
        self.places -= ticket.places
        client.places -= ticket.places
        if not held:
            del client.tickets[visitor.request]
        if not client.tickets:
            del self._clients[visitor.client]
