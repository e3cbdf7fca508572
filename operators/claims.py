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
from collections.abc import Callable, Collection, Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from nanochat.parse.json_text import read_json
from nanochat.storage.records import RECORD
from operators.attempts import JobAttempt
from operators.index import Index, Owned
from operators.kube_client import Object
from operators.objects import Job, Pod
from operators.observation import is_over

YIELD_SECONDS = 45.0  # that an attempt may not run while another pipeline waits for what it makes, the first time
MOST_SECONDS = 3600.0  # the same, however often that pipeline was tried in vain
ANY = "*"  # in place of keys that nobody tells: pods whose job is gone may make anything that their namespace needs
TURN_SECONDS = 10.0  # in which a pipeline starts when it is its turn, before the next one may


@dataclass(frozen=True, slots=True)
class Claimant:
    """A pipeline that makes artifacts."""

    uid: str
    namespace: str
    name: str
    created: str = ""  # creationTimestamp (RFC 3339, UTC)
    generation: int = 0
    root: str = ""  # its store; '' where that is not known
    profile: str = ""  # name of its store profile

    @classmethod
    def of(cls, found: Object, *, root: str, profile: str) -> Claimant:
        """The claimant of a ChatPipeline."""
        meta = found["metadata"]
        return cls(
            uid=meta["uid"],
            namespace=meta["namespace"],
            name=meta["name"],
            created=meta["creationTimestamp"],
            generation=meta["generation"],
            root=root,
            profile=profile,
        )

    def shares_with(self, other: Claimant) -> bool:
        """Whether the two use one store, and may wait for each other: across namespaces only by the same profile."""
        same_store = self.root == other.root or not (self.root and other.root)
        return same_store and (self.namespace == other.namespace or self.profile == other.profile != "")


@dataclass(frozen=True, slots=True)
class Want:
    """Keys that one attempt would make. `place` is its queue and what it asks for there, None without a queue."""

    keys: frozenset[str]
    place: Hashable = None


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
        self._index, self._changed, self._clock = index, changed, clock
        self._lock = threading.Lock()
        self._entries: dict[str, _Entry] = {}  # by uid; what makes and wants nothing is not here
        self._by_key: dict[str, set[str]] = {}  # key -> uids
        self._turns = 0

    # ---- what reconciliations say -------------------------------------------------------------------------------

    def learn(self) -> None:
        """Take in what pipelines make that are not reconciled yet or no more, from their jobs and pods."""
        with self._lock:
            metas = [item.meta for item in (*self._index.jobs.all(), *self._index.pods.all())]
            for namespace, uid in {(meta.namespace, meta.owner) for meta in metas}:
                entry = self._entries.get(uid)
                if entry is None:
                    self._put(self._unknown(namespace, uid))
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
            waits = {key: self._sentence(entry, who) for entry in others for key in self._made_of(want, entry, who)}
            first = None if waits else self._first(own, want, others, now)
            if first is not None:
                entry, keys = first
                waits = dict.fromkeys(keys, self._sentence(entry, who))
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
                    return _name(entry.who, who)
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

    # ---- what jobs and pods tell --------------------------------------------------------------------------------

    def _makes(self, entry: _Entry) -> frozenset[str]:
        """The keys that an entry's attempts make now."""
        if entry.settled:
            return entry.making | entry.granted
        owned = self._left(entry.who.namespace, entry.who.uid)
        keys = entry.granted.union(*(_keys(job) for job in self._living(owned)))
        return keys | entry.making if self._bereft(owned) else keys

    def _made_of(self, want: Want, entry: _Entry, asker: Claimant) -> frozenset[str]:
        """The keys of a want that an entry makes now, or may make."""
        keys = self._makes(entry)
        return want.keys if ANY in keys and entry.who.namespace == asker.namespace else want.keys & keys

    def _left(self, namespace: str, uid: str) -> Owned:
        """The jobs and pods with a pipeline's label: a job that lost its owner is left too."""
        jobs, pods = self._index.jobs.of(namespace, uid), self._index.pods.of(namespace, uid)
        return Owned({job.meta.name: job for job in jobs}, tuple(pods))

    def _living(self, owned: Owned) -> Iterator[Job]:
        """The jobs of which something may still run."""
        pods = {pod.job for pod in owned.pods if not is_over(pod, self._clock())}
        return (job for job in owned.jobs.values() if not job.ended or job.meta.name in pods)

    def _bereft(self, owned: Owned) -> set[str]:
        """The names of jobs that are gone while their pods may still run. Whoever labels a pod of his own is none:
        garbage collection takes what names an owner that is not there."""
        pods = (pod for pod in owned.pods if pod.maker and pod.job not in owned.jobs)
        return {pod.job for pod in pods if not is_over(pod, self._clock())}

    def _unknown(self, namespace: str, uid: str) -> _Entry:
        """The entry of a pipeline of which only the index tells."""
        owned = self._left(namespace, uid)
        objects: Sequence[Job | Pod] = (*owned.jobs.values(), *owned.pods)
        name = next((item.meta.pipeline for item in objects), "")
        known = frozenset(key for job in self._living(owned) for key in _keys(job))
        known |= {ANY} if self._bereft(owned) else set()
        found = self._index.pipeline(namespace, name)
        if found is None or found.meta.uid != uid:
            return _Entry(Claimant(uid, namespace, name), making=known)
        body = found.body
        status = body.get("status") or {}
        stages = {_stage_of(job, name, uid) for job in self._bereft(owned)}
        told = [stage.get("keys") or {} for stage in status.get("stages") or () if stage["name"] in stages]
        who = Claimant.of(body, root=(status.get("profile") or {}).get("root", ""), profile=found.profile)
        return _Entry(who, making=known.union(*(keys.values() for keys in told)))

    def _sentence(self, entry: _Entry, asker: Claimant) -> str:
        """Who makes or comes first, for the status of one that waits."""
        who = entry.who
        found = self._index.pipeline(who.namespace, who.name)
        if found is not None and found.meta.uid == who.uid:
            return f"waits for pipeline {_name(who, asker)}, which makes it"
        owned = self._left(who.namespace, who.uid)
        job = next(self._living(owned), None)
        if job is None:
            return f"waits for the pods of pipeline {_name(who, asker)}, which was deleted, to end"
        kind, where = self._index.jobs.resource.kind.lower(), f"{job.meta.name} -n {who.namespace}"
        if job.meta.deleting or job.owners:
            return f"waits for job {job.meta.name} of pipeline {_name(who, asker)}, which was deleted, to end"
        return (
            f"waits for job {job.meta.name}, which makes it and whose pipeline was deleted without it: let it end by "
            f"itself, or by `kubectl delete {kind} {where}` at once"
        )


def _name(who: Claimant, asker: Claimant) -> str:
    """The name of a pipeline, with its namespace where that is another than the asker's."""
    return who.name if who.namespace == asker.namespace else f"{who.namespace}/{who.name}"


def _stage_of(job: str, name: str, uid: str) -> str:
    """The stage in the name of a pipeline's job."""
    return job.removeprefix(f"{name}-{uid[:4]}-").rpartition("-")[0]


def _keys(job: Job) -> frozenset[str]:
    """The keys of the artifacts that a job makes; none where its annotation makes no sense."""
    try:
        return frozenset(JobAttempt.from_dict(read_json(job.attempt, limit=RECORD) | {"job": job.meta.name}).keys)
    except (ValueError, TypeError):
        return frozenset()
