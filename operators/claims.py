"""Which pipeline makes an artifact that several need: one at a time, and one that can.

    claims = Claims(index, changed=wake)
    claims.learn()                                # after each listing of everything
    waits = claims.take(pipeline, want, now)      # before a job is created: {} where the keys are this pipeline's now
    claims.settle(pipeline, making, wants)        # after each reconciliation

Whoever has an attempt that may still run makes its artifacts, whatever its age. Of a pipeline that is reconciled its
records tell which those are; of one that was not reconciled yet (after a restart), cannot be, or is gone, its jobs and
pods do. So neither a restart, nor a store that was away, nor a suspend lets a second one start.

Of those that wait, and could start at once, the oldest goes first. One whose attempt does not get to run yields to the
next: its job is deleted, and it goes behind those that were not tried since. How long an attempt is waited for doubles
each time that its pipeline yields, so that two which both cannot run do not take turns for ever.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from operators.claimants import ANY, Claimant, Evidence, Want
from operators.index import Index

YIELD_SECONDS = 45.0  # that an attempt may not run while another pipeline waits for what it makes, the first time
MOST_SECONDS = 3600.0  # the same, however often that pipeline was tried in vain
TURN_SECONDS = 10.0  # in which a pipeline starts when it is its turn, before the next one may


@dataclass(slots=True)
class _Entry:
    """A pipeline that makes something, or waits for another that does."""

    who: Claimant
    making: frozenset[str] = frozenset()  # of attempts that may still run
    granted: frozenset[str] = frozenset()  # of attempts that it has just begun, until it settles
    wants: Sequence[Want] = ()  # it waits for them, and would start at once
    settled: bool = False  # it is reconciled; else its jobs and pods tell what it makes
    vain: int = 0  # how often it yielded since it ran last
    turn: int = 0  # when it yielded last: a larger one is later
    offered: float | None = None  # since when it is its turn
    keys: frozenset[str] = field(default_factory=frozenset)  # under which it is found

    @property
    def rank(self) -> tuple[int, str, str]:
        return self.turn, self.who.created, self.who.uid


class Claims:
    """All that is made and waited for; safe to use from several threads."""

    def __init__(
        self,
        index: Index,
        changed: Callable[[str, str], None] = lambda namespace, name: None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        """`changed` is told namespace and name of each pipeline that may start now; `clock` gives the date that the
        pods' times are compared with."""
        self._evidence, self._changed = Evidence(index, clock), changed
        self._lock = threading.Lock()
        self._entries: dict[str, _Entry] = {}  # by uid; what makes and wants nothing is not here
        self._by_key: dict[str, set[str]] = {}  # key -> uids
        self._turns = 0

    # ---- what reconciliations say -------------------------------------------------------------------------------

    def learn(self) -> None:
        """Take in what pipelines make that are not reconciled yet or no more, from their jobs and pods."""
        with self._lock:
            for namespace, uid in self._evidence.all():
                entry = self._entries.get(uid)
                if entry is None:
                    who, making = self._evidence.read(namespace, uid)
                    self._put(_Entry(who, making=making))
                elif not entry.settled:
                    self._put(entry)

    def take(self, who: Claimant, want: Want, now: float) -> Mapping[str, str]:
        """Make these keys this pipeline's, unless another makes one of them or comes first: then the sentence of why,
        by key, and nothing is taken. `now` is in seconds by a clock that nobody sets."""
        woken: list[Claimant] = []
        with self._lock:
            own = self._own(who)
            own.making -= want.keys  # an attempt of it that made them is over
            others = [entry for entry in self._with(want.keys) if entry is not own and entry.who.shares_with(who)]
            waits = {
                key: self._evidence.sentence(entry.who, who)
                for entry in others
                for key in self._made_of(want, entry, who)
            }
            first = None if waits else self._first(own, want, others, now)
            if first is not None:
                entry, keys = first
                waits = dict.fromkeys(keys, self._evidence.sentence(entry.who, who))
                woken.append(entry.who)
            if not waits:
                own.granted |= want.keys
                self._put(own)
        self._wake(woken)
        return waits

    def settle(
        self, who: Claimant, making: Collection[str] = (), wants: Sequence[Want] = (), *, runs: bool = False
    ) -> None:
        """Say which keys a pipeline makes after a reconciliation, all that it took and started included, for which it
        waits, and whether an attempt of it runs."""
        with self._lock:
            own = self._own(who)
            freed = self._makes(own).difference(making)
            own.making, own.granted, own.wants = frozenset(making), frozenset(), tuple(wants)
            own.settled, own.offered = True, None
            if runs:
                own.vain = own.turn = 0
            self._put(own)
            woken = self._waiting(who, freed)
        self._wake(woken)

    def refuse(self, uid: str, keys: Collection[str]) -> None:
        """Free again what was taken: the API server has refused its job."""
        with self._lock:
            own = self._entries.get(uid)
            if own is None:
                return
            own.granted = own.granted.difference(keys)
            self._put(own)
            woken = self._waiting(own.who, keys)
        self._wake(woken)

    def drop(self, uid: str) -> None:
        """A pipeline is gone, or goes: from now on its jobs and pods tell what it makes."""
        with self._lock:
            own = self._entries.get(uid)
            if own is None:
                return
            own.making, own.granted, own.wants, own.settled = own.making | own.granted, frozenset(), (), False
            woken = self._waiting(own.who, own.making)
            self._put(own)
        self._wake(woken)

    def yield_to(self, who: Claimant, want: Want, waited: float) -> str:
        """The pipeline for which an attempt has to make room that has not run for `waited` seconds, or ''.

        Where it waits for admission, `want.place` says where: another that asks for the same there gains nothing.
        """
        with self._lock:
            own = self._own(who)
            others = [entry for entry in self._with(want.keys) if entry is not own and entry.who.shares_with(who)]
            for entry in sorted(others, key=lambda entry: entry.rank):
                patience = min(YIELD_SECONDS * 2**entry.vain, MOST_SECONDS)
                if waited >= patience and any(
                    theirs.keys & want.keys
                    and (want.place is None or theirs.place != want.place)
                    and self._is_free(theirs, entry, but=own)
                    for theirs in entry.wants
                ):
                    self._turns += 1
                    own.vain, own.turn = own.vain + 1, self._turns
                    return entry.who.name_for(who)
        return ""

    # ---- the table ----------------------------------------------------------------------------------------------

    def _own(self, who: Claimant) -> _Entry:
        own = self._entries.get(who.uid) or _Entry(who)
        if own.who.generation != who.generation:  # what was declared in vain may be right now
            own.vain = own.turn = 0
        own.who = who
        return own

    def _put(self, entry: _Entry) -> None:
        """Keep an entry under all its keys; where it has none, not at all."""
        uid = entry.who.uid
        keys = self._makes(entry).union(*(want.keys for want in entry.wants))
        for key in entry.keys - keys:
            self._by_key[key].discard(uid)
            if not self._by_key[key]:
                del self._by_key[key]
        for key in keys - entry.keys:
            self._by_key.setdefault(key, set()).add(uid)
        entry.keys = keys
        if keys:
            self._entries[uid] = entry
        else:
            self._entries.pop(uid, None)

    def _with(self, keys: Iterable[str]) -> list[_Entry]:
        """The entries that make or want one of these keys."""
        uids = {uid for key in (*keys, ANY) for uid in self._by_key.get(key, ())}
        return [self._entries[uid] for uid in uids]

    def _first(
        self, own: _Entry, want: Want, others: Iterable[_Entry], now: float
    ) -> tuple[_Entry, frozenset[str]] | None:
        """The entry that is to start before this one, and the keys that both want."""
        for entry in sorted(others, key=lambda entry: entry.rank):
            for theirs in entry.wants:
                common = theirs.keys & want.keys
                if not common or entry.rank > own.rank or not self._is_free(theirs, entry):
                    continue
                entry.offered = now if entry.offered is None else entry.offered
                if now - entry.offered <= TURN_SECONDS:
                    return entry, common
                entry.wants = ()  # it does not come; its next reconciliation says anew what it wants
                self._put(entry)
                break
        return None

    def _is_free(self, want: Want, entry: _Entry, *, but: _Entry | None = None) -> bool:
        """Whether nobody but these two makes any of what an entry wants."""
        return not any(
            other.who.shares_with(entry.who) and self._made_of(want, other, entry.who)
            for other in self._with(want.keys)
            if other is not entry and other is not but
        )

    def _waiting(self, who: Claimant, keys: Collection[str]) -> list[Claimant]:
        """The others that want one of these keys."""
        return [
            entry.who
            for entry in self._with(keys)
            if entry.who.uid != who.uid and any(not want.keys.isdisjoint(keys) for want in entry.wants)
        ]

    def _wake(self, those: Iterable[Claimant]) -> None:
        for who in those:
            self._changed(who.namespace, who.name)

    def _makes(self, entry: _Entry) -> frozenset[str]:
        """The keys that an entry's attempts make now."""
        if entry.settled:
            return entry.making | entry.granted
        return entry.granted | self._evidence.makes(entry.who, entry.making)

    def _made_of(self, want: Want, entry: _Entry, asker: Claimant) -> frozenset[str]:
        """The keys of a want that an entry makes now, or may make."""
        keys = self._makes(entry)
        return want.keys if ANY in keys and entry.who.namespace == asker.namespace else want.keys & keys
