"""Pipelines that make artifacts, and what jobs and pods tell of those that are not reconciled: not yet, or no more.

evidence = Evidence(index, clock)
who, making = evidence.read(namespace, uid)
evidence.sentence(who, asker)             # "waits for job ... of pipeline ..., which was deleted, to end"
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Hashable, Iterator, Sequence
from dataclasses import dataclass

from nanochat.parse.json_text import read_json
from nanochat.storage.records import RECORD
from operators.attempts import JobAttempt
from operators.index import Index, Owned
from operators.kube_error import Object
from operators.objects import Job, Pod
from operators.observation import is_over

ANY = "*"  # in place of keys that nobody tells: pods whose job is gone may make anything that their namespace needs


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

    def name_for(self, asker: Claimant) -> str:
        """The name, with its namespace where that is another than the asker's."""
        return self.name if self.namespace == asker.namespace else f"{self.namespace}/{self.name}"

    def shares_with(self, other: Claimant) -> bool:
        """Whether the two use one store, and may wait for each other: across namespaces only by the same profile."""
        same_store = self.root == other.root or not (self.root and other.root)
        return same_store and (self.namespace == other.namespace or self.profile == other.profile != "")


@dataclass(frozen=True, slots=True)
class Want:
    """Keys that one attempt would make. `place` is its queue and what it asks for there, None without a queue."""

    keys: frozenset[str]
    place: Hashable = None


class Evidence:
    """The index, asked for what its jobs and pods make."""

    def __init__(self, index: Index, clock: Callable[[], float]) -> None:
        """`clock` gives the date that the pods' times are compared with."""
        self._index, self._clock = index, clock

    def all(self) -> set[tuple[str, str]]:
        """Namespace and uid of each pipeline that has jobs or pods."""
        metas = [item.meta for item in (*self._index.jobs.all(), *self._index.pods.all())]
        return {(meta.namespace, meta.owner) for meta in metas}

    def read(self, namespace: str, uid: str) -> tuple[Claimant, frozenset[str]]:
        """A pipeline of which only the index tells, and the keys that it makes, or may make."""
        owned = self._left(namespace, uid)
        objects: Sequence[Job | Pod] = (*owned.jobs.values(), *owned.pods)
        name = next((item.meta.pipeline for item in objects), "")
        known = frozenset(key for job in self._living(owned) for key in _keys(job))
        known |= {ANY} if self._bereft(owned) else set()
        found = self._index.pipeline(namespace, name)
        if found is None or found.meta.uid != uid:
            return Claimant(uid, namespace, name), known
        body = found.body
        status = body.get("status") or {}
        stages = {_stage_of(job, name, uid) for job in self._bereft(owned)}
        told = [stage.get("keys") or {} for stage in status.get("stages") or () if stage["name"] in stages]
        who = Claimant.of(body, root=(status.get("profile") or {}).get("root", ""), profile=found.profile)
        return who, known.union(*(keys.values() for keys in told))

    def makes(self, who: Claimant, made: Collection[str]) -> frozenset[str]:
        """The keys that its jobs make now; where pods are left whose job is gone, those that it `made` before too."""
        owned = self._left(who.namespace, who.uid)
        keys = frozenset(key for job in self._living(owned) for key in _keys(job))
        return keys.union(made) if self._bereft(owned) else keys

    def sentence(self, who: Claimant, asker: Claimant) -> str:
        """Who makes or comes first, for the status of one that waits."""
        name, found = who.name_for(asker), self._index.pipeline(who.namespace, who.name)
        if found is not None and found.meta.uid == who.uid:
            return f"waits for pipeline {name}, which makes it"
        job = next(self._living(self._left(who.namespace, who.uid)), None)
        if job is None:
            return f"waits for the pods of pipeline {name}, which was deleted, to end"
        kind, where = self._index.jobs.resource.kind.lower(), f"{job.meta.name} -n {who.namespace}"
        if job.meta.deleting or job.owners:
            return f"waits for job {job.meta.name} of pipeline {name}, which was deleted, to end"
        return (
            f"waits for job {job.meta.name}, which makes it and whose pipeline was deleted without it: let it end by "
            f"itself, or by `kubectl delete {kind} {where}` at once"
        )

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


def _stage_of(job: str, name: str, uid: str) -> str:
    """The stage in the name of a pipeline's job."""
    return job.removeprefix(f"{name}-{uid[:4]}-").rpartition("-")[0]


def _keys(job: Job) -> frozenset[str]:
    """The keys of the artifacts that a job makes; none where its annotation makes no sense."""
    try:
        return frozenset(JobAttempt.from_dict(read_json(job.attempt, limit=RECORD) | {"job": job.meta.name}).keys)
    except (ValueError, TypeError):
        return frozenset()
