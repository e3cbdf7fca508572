"""Pipelines, jobs, pods and Workloads in memory: kopf's watches keep them up to date, and reconciliations read them.

    index = Index(kube, backend, changed=wake)
    index.pods.put(pod)                        # a watch's news
    index.resync("")                           # lists everything
    owned = index.owned(namespace, uid)        # from memory
    owned = index.read(namespace, uid)         # from the API server

Nothing is right only because the index is fresh:

- Watches of two kinds are not in step. A pod that Kueue removed may be gone here before its job is seen suspended, and
  would look deleted. So the index only tells that there is news; what is done about news, such as ending an attempt, is
  decided on `read`, which asks the API server for the pods first and for the jobs after them.
- Whoever writes reads its write: answers of the API server are put into the index. An older state never replaces a
  newer one, for the versions of one kind of object grow (KEP-5504), nor does it bring back an object that is gone, for
  the version in which it went is kept.
- To a watch by label an object that lost the label is gone. So whatever is missing of an attempt is asked for by its
  name too, before it counts as gone and before another is made.
- A watch that begins anew does not tell of what was deleted meanwhile. `resync` lists everything, takes out what the
  list has not and is no newer than it, and so repairs what a watch has missed. Nothing is reconciled before the first.
"""

from __future__ import annotations

import json
import sys
import threading
import time
import zlib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Generic, Protocol, TypeVar

from kubernetes.client import V1ObjectMeta

from nanochat.spec.chatpipeline import PIPELINE, UID
from nanochat.spec.pipeline import PipelineSpec
from operators.attempts import JobAttempt
from operators.job_backend import JobBackend
from operators.kube_client import PIPELINES, PODS, KubeClient, Listing, Resource
from operators.kube_error import KubeError, Object
from operators.kube_models import from_json
from operators.kueue import JOB_UID, WORKLOADS, Queues, Workload, read_workload
from operators.objects import Job, Meta, Pod, read_meta

DEFAULT_STORE = str(PipelineSpec.model_fields["store"].default)
MOST_PODS = 1024  # of an attempt: what the setting `nodes` allows
GONE_SECONDS = 600.0  # that the uid of a deleted object is kept: no answer is under way for so long


class Kept(Protocol):
    """Whatever has metadata."""

    @property
    def meta(self) -> Meta: ...


Value = TypeVar("Value", bound=Kept)


@dataclass(frozen=True, slots=True)
class PipelineObject:
    """A ChatPipeline as the API server gives it, but for `managedFields`; packed, for there may be a thousand."""

    meta: Meta
    created: str  # RFC 3339
    profile: str  # the store profile that it names
    packed: bytes

    @property
    def body(self) -> Object:
        """The object."""
        return json.loads(zlib.decompress(self.packed))


@dataclass(frozen=True, slots=True)
class WorkloadObject:
    """A Workload of Kueue. In its metadata `owner` is the uid of its job, and `pipeline` the job's name."""

    meta: Meta
    workload: Workload


@dataclass(frozen=True, slots=True)
class Owned:
    """The jobs that a pipeline owns, by name, and the pods that have its label."""

    jobs: Mapping[str, Job]
    pods: tuple[Pod, ...]

    def pods_of(self, record: JobAttempt) -> list[Pod]:
        """The pods that the job of an attempt made, also when it is gone, and those that lost their owner with it."""
        job = self.jobs.get(record.job)
        maker = job.meta.uid if job else record.job_uid
        known = set(record.pods.values())
        return [pod for pod in self.pods if (pod.maker == maker if pod.maker else pod.meta.uid in known)]


class Cache(Generic[Value]):
    """The objects of one kind, by namespace and owner; safe to use from several threads."""

    def __init__(
        self,
        resource: Resource,
        read: Callable[[Object], Value],
        changed: Callable[[str, str], None],
        *,
        label: str = "",
        optional: bool = False,
    ) -> None:
        """`changed` is told namespace and pipeline of every object that came, changed or went; all have the `label`. A
        cluster may well lack an `optional` kind."""
        self.resource, self.read, self.label, self._changed = resource, read, label, changed
        self.optional, self.served = optional, False  # whether the API server has such a kind, as it said last
        self._lock = threading.Lock()
        self._kept: dict[tuple[str, str], dict[str, Value]] = {}  # (namespace, owner's uid) -> by name
        self._owners: dict[str, str] = {}  # uid -> the owner under which an object is kept
        self._gone: dict[str, tuple[float, int]] = {}  # uid -> when it went, and the version in which it was gone

    def of(self, namespace: str, owner: str) -> list[Value]:
        """The objects of an owner."""
        with self._lock:
            return list(self._kept.get((namespace, owner), {}).values())

    def all(self) -> list[Value]:
        """All objects."""
        with self._lock:
            return [value for group in self._kept.values() for value in group.values()]

    def put(self, value: Value) -> None:
        """Take in a state of an object, unless a newer one is known."""
        meta = value.meta
        with self._lock:
            owner = self._owners.get(meta.uid, meta.owner)  # another one where somebody has changed its label
            known = self._kept.get((meta.namespace, owner), {}).get(meta.name)
            gone = self._gone.get(meta.uid, (0.0, -1))[1]
            if gone >= meta.version or (known is not None and known.meta.version >= meta.version):
                return
            if known is not None and (known.meta.uid, known.meta.owner) != (meta.uid, meta.owner):
                self._drop(known.meta)
            self._kept.setdefault((meta.namespace, meta.owner), {})[meta.name] = value
            self._owners[meta.uid] = meta.owner
        self._changed(meta.namespace, meta.pipeline)

    def remove(self, meta: Meta, version: int = 0) -> None:
        """An object is gone, in the `version` of a listing or in that of a watch's last word on it."""
        now, version = time.monotonic(), max(version, meta.version)
        with self._lock:
            known = self._kept.get((meta.namespace, meta.owner), {}).get(meta.name)
            if known is not None and known.meta.uid == meta.uid and known.meta.version > version:
                return
            self._gone = {uid: gone for uid, gone in self._gone.items() if now - gone[0] < GONE_SECONDS}
            self._gone[meta.uid] = now, version
            if known is None or known.meta.uid != meta.uid:
                return
            self._drop(known.meta)
        self._changed(meta.namespace, meta.pipeline)

    def _drop(self, meta: Meta) -> None:
        group = self._kept[meta.namespace, meta.owner]
        del group[meta.name]
        if not group:
            del self._kept[meta.namespace, meta.owner]
        self._owners.pop(meta.uid, None)

    def watched(self, event: str | None, body: Object) -> None:
        """Take in an event of a watch, an object and what became of it."""
        value = self.read(body)
        if event == "DELETED":
            self.remove(value.meta)
        else:
            self.put(value)

    def resync(self, kube: KubeClient, namespace: str, owner: str = "") -> list[Value]:
        """List all objects of a namespace and of an owner ('' is all)."""
        selector = f"{self.label}={owner}" if owner else self.label
        try:
            listing = kube.listing(self.resource, namespace, **({"labelSelector": selector} if selector else {}))
            self.served = True
        except KubeError as error:
            if not error.is_unserved:
                raise
            self.served = False
            listing = Listing([], sys.maxsize)  # where there is no such kind of object, there is none of it
        return self.replace(listing, namespace, owner)

    def replace(self, listing: Listing, namespace: str, owner: str = "") -> list[Value]:
        """Take in all objects of a namespace and of an owner ('' is all); returns them as they were listed."""
        with self._lock:
            groups = [
                group
                for (where, whose), group in self._kept.items()
                if namespace in ("", where) and owner in ("", whose)
            ]
            known = {value.meta.uid: value for group in groups for value in group.values()}
        listed = [self._known(body, known) for body in listing.items]
        for uid in known.keys() - {value.meta.uid for value in listed}:
            if known[uid].meta.version <= listing.version:
                self.remove(known[uid].meta, listing.version)
        for value in listed:
            self.put(value)
        return listed

    def _known(self, body: Object, known: Mapping[str, Value]) -> Value:
        """An object, read anew only where its state is not known."""
        found = known.get(body["metadata"]["uid"])
        return found if found and str(found.meta.version) == body["metadata"]["resourceVersion"] else self.read(body)


SomeCache = Cache[PipelineObject] | Cache[Job] | Cache[Pod] | Cache[WorkloadObject]


class Index:
    """The objects of all pipelines."""

    def __init__(self, kube: KubeClient, backend: JobBackend, changed: Callable[[str, str], None]) -> None:
        """`changed` is told namespace and name of a pipeline, from any thread, when anything about it is new."""
        self._kube, self._backend, self._tell = kube, backend, changed
        self.pipelines = Cache(PIPELINES, read_pipeline, changed)
        self.jobs = Cache(backend.resource, backend.read_job, changed, label=UID)
        self.pods = Cache(PODS, backend.read_pod, changed, label=UID)
        self.workloads = Cache(WORKLOADS, read_workload_object, self._queue_changed, label=JOB_UID, optional=True)
        self.caches: tuple[SomeCache, ...] = (self.pipelines, self.jobs, self.pods, self.workloads)

    def pipeline(self, namespace: str, name: str) -> PipelineObject | None:
        """A ChatPipeline; None where there is none."""
        return next(iter(self.pipelines.of(namespace, name)), None)

    def owned(self, namespace: str, uid: str) -> Owned:
        """The jobs and pods of a pipeline, as the watches told of them."""
        return _owned(uid, self.jobs.of(namespace, uid), self.pods.of(namespace, uid))

    def read(self, namespace: str, uid: str, attempts: Iterable[JobAttempt] = ()) -> Owned:
        """The jobs and pods of a pipeline now, with all that is left of these attempts. KubeError where the API server
        does not answer."""
        # Pods first: one that Kueue has removed is then seen with its job suspended.
        pods = self.pods.resync(self._kube, namespace, uid)
        jobs = {job.meta.name: job for job in self.jobs.resync(self._kube, namespace, uid)}
        known = {pod.meta.uid for pod in pods}
        for record in attempts:
            if record.job not in jobs and (job := self.job(namespace, uid, record.job)):
                jobs[record.job] = job
            for index in map(str, range(MOST_PODS)):  # counted here: in a record they may be anything
                pod_uid = record.pods.get(index)
                if pod_uid is None or pod_uid in known:
                    continue
                body = self._kube.get(PODS, namespace, self._backend.pod_name(record.job, index))
                if body is not None and body["metadata"]["uid"] == pod_uid:
                    pods.append(self.pods.read(body))
        return _owned(uid, jobs.values(), pods)

    def job(self, namespace: str, uid: str, name: str) -> Job | None:
        """A pipeline's job by its name, whatever its labels: what somebody took off is put back. None where there is
        none, KubeError where the API server does not answer."""
        body = self._kube.get(self.jobs.resource, namespace, name)
        owners = (body or {}).get("metadata", {}).get("ownerReferences") or ()
        owner = next((item["name"] for item in owners if item["uid"] == uid), None)
        if body is None or owner is None:
            return None
        job = self.jobs.read(body)
        if job.meta.owner != uid:
            job = self._backend.label(job, {PIPELINE: owner, UID: uid})
        if job is not None:
            self.jobs.put(job)
        return job

    def queues(self, namespace: str) -> Queues:
        """Kueue's word on the jobs of a namespace."""
        found = [item.workload for item in self.workloads.all() if item.meta.namespace == namespace]
        return Queues(self.workloads.served, found)

    def _queue_changed(self, namespace: str, name: str) -> None:
        """A Workload changed: the pipeline of its job is told, where the job is one of ours."""
        for job in self.jobs.all():
            if (job.meta.namespace, job.meta.name) == (namespace, name):
                self._tell(namespace, job.meta.pipeline)

    def resync(self, namespace: str) -> None:
        """List everything in a namespace, or in all ('')."""
        for cache in self.caches:
            cache.resync(self._kube, namespace)


def read_pipeline(body: Object) -> PipelineObject:
    """A ChatPipeline, which is its own owner."""
    bare = {name: value for name, value in body["metadata"].items() if name != "managedFields"}
    meta = read_meta(from_json(V1ObjectMeta, bare))
    profile = sys.intern(str((body.get("spec") or {}).get("store") or DEFAULT_STORE))
    packed = zlib.compress(json.dumps({**body, "metadata": bare}, separators=(",", ":")).encode(), 1)
    return PipelineObject(
        replace(meta, pipeline=meta.name, owner=meta.name), bare["creationTimestamp"], profile, packed
    )


def read_workload_object(body: Object) -> WorkloadObject:
    """A Workload, which belongs to its job."""
    owner = next(iter(body["metadata"].get("ownerReferences") or ()), {})
    meta = read_meta(from_json(V1ObjectMeta, body["metadata"]))
    meta = replace(meta, owner=owner.get("uid", ""), pipeline=owner.get("name", ""))
    return WorkloadObject(meta, read_workload(body))


def _owned(uid: str, jobs: Iterable[Job], pods: Iterable[Pod]) -> Owned:
    """Jobs and pods with the label of a pipeline; a job only where the pipeline owns it."""
    return Owned({job.meta.name: job for job in jobs if uid in job.owners}, tuple(pods))
