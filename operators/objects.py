"""The controller's view of jobs and pods: small frozen values, read from the client libraries' models.

    pod = read_pod(body, job_label="...", index_label="...")

The index holds thousands of them, so they keep no more than observation reads. Times are in seconds since 1970.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Any

from kubernetes.client import V1Pod

from nanochat.spec.chatpipeline import PIPELINE, UID
from operators.kube_error import Object
from operators.kube_models import from_json


@dataclass(frozen=True, slots=True)
class Meta:
    """The metadata of an object."""

    namespace: str
    name: str
    uid: str
    version: int  # resourceVersion: of two states of an object, the higher is the newer
    pipeline: str = ""  # name and uid of the pipeline that it is labelled with
    owner: str = ""
    generation: int = 0
    deleting: bool = False
    due: float = 0.0  # when it is to be gone, grace included, if it is deleted
    grace: int = 0  # seconds


@dataclass(frozen=True, slots=True)
class Job:
    """A job that runs an attempt."""

    meta: Meta
    owners: frozenset[str]  # uids of its ownerReferences
    attempt: str  # annotation: what the attempt's record begins with, as JSON
    queue: str = ""  # Kueue's LocalQueue that it is in: Kueue may stop it and start it again
    suspended: bool = False
    taken_up: bool = True  # by the training operator, which has written a status
    started: str = ""  # RFC 3339; each start has another
    succeeded: bool = False
    failed: bool = False
    message: str = ""  # why it failed

    @property
    def ended(self) -> bool:
        return self.succeeded or self.failed


@dataclass(frozen=True, slots=True)
class Exit:
    """How a container ended."""

    code: int
    time: float
    reason: str = ""
    message: str = ""


@dataclass(frozen=True, slots=True)
class Condition:
    """A condition of an object, or why a container waits."""

    reason: str
    message: str
    time: float = 0.0

    @property
    def text(self) -> str:
        """The condition's message, or its reason where it has none."""
        return self.message or self.reason


@dataclass(frozen=True, slots=True)
class Pod:
    """A pod of a job. Whose it is, its owner says: labels can be written by anybody who may change pods."""

    meta: Meta
    job: str
    index: str  # "0" is the master's
    maker: str = ""  # uid of its controlling owner
    node: str = ""
    phase: str = ""
    since: float = 0.0  # when it was started on its node, or created
    state: Condition = Condition("", "")  # reason and message of the whole pod: Evicted, NodeLost, ...
    disrupted: Condition | None = None  # DisruptionTarget
    unschedulable: Condition | None = None  # PodScheduled is False
    waiting: tuple[Condition, ...] = ()  # of its containers
    exit: Exit | None = None  # of the first that ended
    unreachable: bool = False  # its node does not answer

    @property
    def ended(self) -> bool:
        return self.phase in ("Succeeded", "Failed")


def read_meta(meta: Any) -> Meta:
    """The metadata of an object, from a V1ObjectMeta."""
    labels = meta.labels or {}
    return Meta(
        namespace=meta.namespace,
        name=meta.name,
        uid=meta.uid,
        version=int(meta.resource_version),
        pipeline=labels.get(PIPELINE, ""),
        owner=labels.get(UID, ""),
        generation=meta.generation or 0,
        deleting=meta.deletion_timestamp is not None,
        due=seconds(meta.deletion_timestamp),
        grace=meta.deletion_grace_period_seconds or 0,
    )


def read_pod(body: Object, *, job_label: str, index_label: str) -> Pod:
    """A pod as the API server gives it; the labels name its job and its index there."""
    # The containers' declarations are most of a pod, and nothing reads them.
    model = from_json(V1Pod, {**body, "spec": {**body["spec"], "containers": [], "initContainers": None}})
    status, meta, labels = model.status, model.metadata, model.metadata.labels or {}
    states = [item.state for item in status.container_statuses or () if item.state is not None]
    exits = [state.terminated for state in states if state.terminated is not None]
    conditions = {item.type: item for item in status.conditions or ()}

    def holds(kind: str, value: str) -> bool:
        return kind in conditions and conditions[kind].status == value

    disrupted, scheduled = conditions.get("DisruptionTarget"), conditions.get("PodScheduled")
    return Pod(
        meta=read_meta(meta),
        job=labels.get(job_label, ""),
        index=labels.get(index_label, "0"),
        maker=next((owner.uid for owner in meta.owner_references or () if owner.controller), ""),
        node=model.spec.node_name or "",
        phase=status.phase or "",
        since=seconds(status.start_time or meta.creation_timestamp),
        state=_condition(status),
        disrupted=_condition(disrupted) if disrupted is not None and disrupted.status == "True" else None,
        unschedulable=_condition(scheduled) if scheduled is not None and scheduled.status == "False" else None,
        waiting=tuple(_condition(state.waiting) for state in states if state.waiting is not None),
        exit=Exit(
            code=exits[0].exit_code,
            time=seconds(exits[0].finished_at),
            reason=exits[0].reason or "",
            message=exits[0].message or "",
        )
        if exits
        else None,
        # The stages' pods have no probes: that one runs and is not ready is said for its node.
        unreachable=status.phase == "Running" and holds("ContainersReady", "True") and holds("Ready", "False"),
    )


def _condition(found: Any) -> Condition:
    """Reason and message of a condition, a status, or a container's state."""
    time = seconds(getattr(found, "last_transition_time", None))
    return Condition(reason=found.reason or "", message=found.message or "", time=time)


def seconds(time: datetime | None) -> float:
    """Seconds since 1970; 0 where there is no time."""
    return time.timestamp() if time is not None else 0.0
