"""Kueue's Workload of a job: whether it is admitted, and why not. Kueue's client has no models, so this is one.

queues = Queues(installed=True, workloads=[read_workload(body) for body in bodies])
queues.waiting(job)                       # why a job that Kueue holds is not started
status["queue"] = queue_state(queues.of(job))
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from operators.kube_client import Resource
from operators.kube_error import Object
from operators.objects import Job
from operators.sentences import Wait, Waiting

WORKLOADS = Resource("kueue.x-k8s.io/v1beta1", "Workload", "workloads")
LOCAL_QUEUES = Resource("kueue.x-k8s.io/v1beta1", "LocalQueue", "localqueues")
JOB_UID = "kueue.x-k8s.io/job-uid"  # label of a Workload
QUEUE, PRIORITY = "kueue.x-k8s.io/queue-name", "kueue.x-k8s.io/priority-class"  # labels of a job
# Conditions; the first that holds is the state. What is evicted stays admitted until its pods have ended.
STATES = ("Finished", "Evicted", "Admitted", "QuotaReserved")


@dataclass(frozen=True, slots=True)
class Workload:
    """A Workload."""

    name: str
    queue: str
    owners: frozenset[str]  # uids
    state: str  # one of STATES, or Pending
    message: str
    cause: str = ""  # reason of the state
    since: str = ""  # RFC 3339
    active: bool = True


def read_workload(body: Object) -> Workload:
    """A Workload as the API server gives it."""
    meta, conditions = body["metadata"], (body.get("status") or {}).get("conditions") or ()
    holding = {item["type"]: item for item in conditions if item["status"] == "True"}
    state = next((name for name in STATES if name in holding), "Pending")
    reserved = next((item for item in conditions if item["type"] == "QuotaReserved"), {})
    told = holding.get(state, reserved)
    return Workload(
        name=meta["name"],
        queue=body["spec"].get("queueName", ""),
        owners=frozenset(owner["uid"] for owner in meta.get("ownerReferences", ())),
        state=state,
        message=told.get("message", "") if told else "not looked at yet",
        cause=told.get("reason", ""),
        since=told.get("lastTransitionTime", ""),
        active=body["spec"].get("active", True),
    )


@dataclass(frozen=True, slots=True)
class Queues:
    """Kueue's word on the jobs of a namespace."""

    installed: bool = False
    workloads: Sequence[Workload] = ()

    def of(self, job: Job | None) -> Workload | None:
        """The Workload of a job."""
        return next((item for item in self.workloads if job is not None and job.meta.uid in item.owners), None)

    def waiting(self, job: Job) -> Waiting:
        """Why a job in a queue is not started."""
        workload = self.of(job)
        if not self.installed:
            return Wait.NO_KUEUE.of(queue=job.queue)
        if workload is None:
            return Wait.NO_WORKLOAD.of()
        if not workload.active:
            return Wait.DEACTIVATED.of(name=workload.name, why=workload.message)
        if workload.state == "Evicted":
            return Wait.EVICTED.of(since=workload.since, cause=workload.cause, why=workload.message)
        if workload.state == "Admitted":
            return Wait.ADMITTED.of()
        return Wait.QUEUE.of(queue=job.queue, why=workload.message)


def queue_state(workload: Workload | None) -> dict[str, str] | None:
    """The status's word on a Workload: its queue, its state and why."""
    if workload is None:
        return None
    return {
        "name": workload.queue, "workload": workload.name, "state": workload.state, "message": workload.message,
    }  # fmt: skip
