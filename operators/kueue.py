"""Kueue's Workload of a job: whether it is admitted, and why not. Kueue's client has no models, so this is one.

workload = workload_of(job, [read_workload(body) for body in bodies])
status["queue"] = queue_state(workload)
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from operators.kube_client import Object, Resource
from operators.objects import Job

WORKLOADS = Resource("kueue.x-k8s.io/v1beta1", "Workload", "workloads")
QUEUE, PRIORITY = "kueue.x-k8s.io/queue-name", "kueue.x-k8s.io/priority-class"  # labels of a job
STATES = ("Finished", "Admitted", "Evicted", "QuotaReserved")  # conditions; the first that holds is the state


@dataclass(frozen=True, slots=True)
class Workload:
    """A Workload."""

    name: str
    queue: str
    owners: frozenset[str]  # uids
    state: str  # one of STATES, or Pending
    message: str


def read_workload(body: Object) -> Workload:
    """A Workload as the API server gives it."""
    meta, conditions = body["metadata"], (body.get("status") or {}).get("conditions") or ()
    holding = {item["type"]: item.get("message", "") for item in conditions if item["status"] == "True"}
    state = next((name for name in STATES if name in holding), "Pending")
    pending = next((item["message"] for item in conditions if item["type"] == "QuotaReserved"), "not looked at yet")
    return Workload(
        name=meta["name"],
        queue=body["spec"].get("queueName", ""),
        owners=frozenset(owner["uid"] for owner in meta.get("ownerReferences", ())),
        state=state,
        message=holding.get(state, pending),
    )


def workload_of(job: Job | None, workloads: Iterable[Workload]) -> Workload | None:
    """The Workload of a job."""
    return next((item for item in workloads if job is not None and job.meta.uid in item.owners), None)


def queue_state(workload: Workload | None) -> dict[str, str] | None:
    """The status's word on a Workload: its queue, its state and why."""
    if workload is None:
        return None
    return {
        "name": workload.queue, "workload": workload.name, "state": workload.state, "message": workload.message,
    }  # fmt: skip
