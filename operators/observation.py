"""What jobs and pods say of an attempt. Pure functions over objects as the API server gives them.

    seen = observe(record, job, pods, now)

Of several pods that failed one is the cause. A failure of its own comes first; then a pod that was taken away (deleted,
evicted, its node lost); peers that lost a collective, and pods that the training operator removed because another one
had failed, are consequences.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from nanochat.pipeline.outcomes import EXIT_DISK_FULL, EXIT_STOPPED, Outcome, Reason
from operators.attempts import Record

Object = Mapping[str, Any]

CONFIG_SECONDS = 30.0  # that a pod may lack a Secret or have a bad image name before it is the user's error
PULL_SECONDS = 300.0  # that an image may take to be pulled after it failed once
LOST_SECONDS = 15.0  # after which a pod that should have ended is on a node that is lost
JOB_NAME, INDEX = "training.kubeflow.org/job-name", "training.kubeflow.org/replica-index"
CONFIG_REASONS = ("CreateContainerConfigError", "CreateContainerError", "InvalidImageName", "ErrImageNeverPull")
PULL_REASONS = ("ErrImagePull", "ImagePullBackOff")
QUEUE = "kueue.x-k8s.io/queue-name"


@dataclass(frozen=True, slots=True)
class AttemptObservation:
    """An attempt as its objects show it."""

    waiting: str = ""  # why not all of its pods run
    outcome: Outcome | None = None  # how it ended; None while it goes on
    clear: bool = False  # nothing of it can still run
    pods: Mapping[str, str] = field(default_factory=dict)  # replica index -> uid, of the present launch
    job_started: str = ""  # the job's startTime
    hosts: tuple[str, ...] = ()


def observe(
    record: Record, job: Object | None, pods: Sequence[Object], now: float, workload: Object | None
) -> AttemptObservation:
    """What an attempt comes to, from its job, the job's pods and Kueue's Workload for it."""
    clear = (job is None or is_finished(job)) and all(_over(pod, now) for pod in pods)
    hosts = tuple(sorted({pod["spec"]["nodeName"] for pod in pods if pod["spec"].get("nodeName")}))
    if job is None:
        outcome = Outcome(Reason.PREEMPTED, "the job was deleted", time=now)
        return AttemptObservation(
            outcome=outcome, clear=clear, pods=record.pods, job_started=record.job_started, hosts=hosts
        )
    started = str(job.get("status", {}).get("startTime") or "")
    if job["spec"].get("runPolicy", {}).get("suspend"):
        state = queue_state(workload)
        waiting = f"waits for admission: {state['message']}" if state else "waits for admission by Kueue"
        return AttemptObservation(waiting=waiting, clear=clear, pods={}, job_started="", hosts=hosts)
    same = not record.job_started or record.job_started == started
    before = record.pods if same else {}
    present = {_index(pod): pod["metadata"]["uid"] for pod in pods if not pod["metadata"].get("deletionTimestamp")}
    known = {*present.values(), *before.values()}
    former = [pod for pod in pods if pod["metadata"]["uid"] not in known]
    if former and QUEUE in job["metadata"].get("labels", {}):
        # The training operator takes what still ends of a launch that Kueue stopped for a failure of the next one.
        message = f"Kueue started it again before the pod of node {_index(former[0])} had ended"
        outcome = Outcome(Reason.PREEMPTED, message, time=now)
    else:
        outcome = _outcome(record, job, pods, before, now)
    return AttemptObservation(
        waiting="" if outcome else _waiting(record, pods),
        outcome=outcome,
        clear=clear,
        pods={**before, **present},
        job_started=started,
        hosts=hosts,
    )


def is_finished(job: Object) -> bool:
    """Whether a job has ended, one way or the other."""
    return _condition(job, "Succeeded") is not None or _condition(job, "Failed") is not None


def job_of(pod: Object) -> str:
    """The name of the job that a pod belongs to."""
    return pod["metadata"].get("labels", {}).get(JOB_NAME, "")


def workload_of(job: Object | None, workloads: Iterable[Object]) -> Object | None:
    """Kueue's Workload for a job."""
    uid = job["metadata"]["uid"] if job else None
    return next((w for w in workloads if any(o["uid"] == uid for o in w["metadata"].get("ownerReferences", ()))), None)


def queue_state(workload: Object | None) -> dict[str, str] | None:
    """What Kueue says of a Workload: its queue, Pending, Admitted, Evicted or Finished, and why."""
    if workload is None:
        return None
    found = {"name": workload["spec"].get("queueName", ""), "workload": workload["metadata"]["name"]}
    for state in ("Finished", "Admitted", "Evicted", "QuotaReserved"):
        condition = _condition(workload, state)
        if condition is not None:
            return found | {"state": state, "message": condition.get("message", "")}
    message = next((c["message"] for c in _conditions(workload) if c["type"] == "QuotaReserved"), "not looked at yet")
    return found | {"state": "Pending", "message": message}


# ---- the end ----------------------------------------------------------------------------------------------------


def _outcome(
    record: Record,
    job: Object,
    pods: Sequence[Object],
    before: Mapping[str, str],
    now: float,
) -> Outcome | None:
    if _condition(job, "Succeeded"):
        return Outcome(Reason.SUCCEEDED, time=now)
    ended = [outcome for pod in pods if (outcome := _pod_outcome(pod)) is not None]
    own = [o for o in ended if o.reason not in (Reason.SUCCEEDED, Reason.PREEMPTED) and not o.peer_lost]
    if own:
        return min(own, key=lambda o: o.time)
    first = min((o.time for o in ended if o.reason is not Reason.SUCCEEDED), default=now + 1)
    # Pods that are gone altogether went before those that are about to go.
    there = {pod["metadata"]["uid"] for pod in pods}
    gone = [index for index, uid in sorted(before.items()) if uid not in there]
    if gone:
        which = f"pod of node {gone[0]} was" if len(gone) == 1 else f"pods of nodes {', '.join(gone)} were"
        return Outcome(Reason.PREEMPTED, f"the {which} deleted", time=now)
    taken = [outcome for pod in pods if (outcome := _taken(pod)) is not None and outcome.time <= first]
    if taken:
        return min(taken, key=lambda o: o.time)
    stuck = [outcome for pod in pods if (outcome := _stuck(pod, now)) is not None]
    if stuck:
        return stuck[0]
    if job["metadata"].get("generation", 0) > record.generation and QUEUE not in job["metadata"].get("labels", {}):
        return Outcome(Reason.PREEMPTED, "somebody else changed the job", time=now)
    lost = [o for o in ended if o.reason is not Reason.SUCCEEDED]
    living = [pod for pod in pods if not _over(pod, now)]
    if lost and not living:
        silent = [pod for pod in pods if pod.get("status", {}).get("phase") not in ("Succeeded", "Failed")]
        if silent:  # it was to end and nobody says that it did: its peers lost it with its node
            node = silent[0]["spec"].get("nodeName", "")
            return Outcome(Reason.PREEMPTED, f"the pod of node {_index(silent[0])} was lost with {node}", time=now)
        order = {Reason.PREEMPTED: 1}
        return min(lost, key=lambda o: (order.get(o.reason, 0), o.time))
    failed = _condition(job, "Failed")
    if failed and not pods:
        if record.pods:
            return Outcome(Reason.PREEMPTED, "the pods are gone", time=now)
        return Outcome(Reason.ERROR, f"the job was refused: {failed.get('message', '')}", time=now)
    return None


def _pod_outcome(pod: Object) -> Outcome | None:
    """How a pod's container ended, by its own word if it left one; None while it runs or where nothing tells."""
    status = pod.get("status", {})
    state = next((c["state"]["terminated"] for c in _containers(pod) if c.get("state", {}).get("terminated")), None)
    if state is None:
        return None
    code, time = state.get("exitCode", 0), _time(state.get("finishedAt"))
    if status.get("reason") == "Evicted":
        return None  # `_taken` tells
    if state.get("reason") == "OOMKilled":
        return Outcome(Reason.OUT_OF_MEMORY, "the pod's memory is used up", time=time, host=True)
    try:
        words = json.loads(state.get("message") or "")
        return Outcome.from_dict(words | {"time": words.get("time") or time})
    except (ValueError, KeyError, TypeError, AttributeError):
        pass  # it was killed before it could say a word, or this is not its word
    if code == 0:
        return Outcome(Reason.SUCCEEDED, time=time)
    if code == EXIT_STOPPED:
        return Outcome(Reason.PREEMPTED, "stopped", time=time)
    if code == EXIT_DISK_FULL:
        return Outcome(Reason.USER_ERROR, "the node's disk is full: give the pod more ephemeral storage", time=time)
    if code == 137:
        return Outcome(Reason.INFRASTRUCTURE, "the pod was killed by SIGKILL", time=time)
    said = (state.get("message") or state.get("reason") or "").strip()
    return Outcome(Reason.ERROR, f"exit code {code}{': ' + said[-500:] if said else ''}; see the log", time=time)


def _taken(pod: Object) -> Outcome | None:
    """The outcome where a pod was evicted, deleted, or lost its node."""
    status, meta = pod.get("status", {}), pod["metadata"]
    disrupted = _condition(pod, "DisruptionTarget")
    name = f"the pod of node {_index(pod)}"
    if status.get("reason") in ("Evicted", "NodeLost", "Terminated", "NodeShutdown", "Preempting"):
        why = status.get("message") or status["reason"]
        return Outcome(Reason.PREEMPTED, f"{name} was taken away: {why}"[:500])
    if disrupted is not None:
        why = disrupted.get("message") or disrupted.get("reason", "")
        return Outcome(
            Reason.PREEMPTED, f"{name} was taken away: {why}"[:500], time=_time(disrupted.get("lastTransitionTime"))
        )
    if meta.get("deletionTimestamp"):
        asked = _time(meta["deletionTimestamp"]) - meta.get("deletionGracePeriodSeconds", 0)
        return Outcome(Reason.PREEMPTED, f"{name} was deleted", time=asked)
    return None


def _stuck(pod: Object, now: float) -> Outcome | None:
    """The outcome of a pod that will never start as it is."""
    since = now - _time(pod.get("status", {}).get("startTime") or pod["metadata"]["creationTimestamp"])
    for container in _containers(pod):
        waiting = container.get("state", {}).get("waiting") or {}
        reason, message = waiting.get("reason", ""), waiting.get("message", "")
        if reason in CONFIG_REASONS and since > CONFIG_SECONDS:
            return Outcome(Reason.USER_ERROR, f"the pod cannot start: {message or reason}"[:500], time=now)
        if reason in PULL_REASONS and since > PULL_SECONDS:
            return Outcome(Reason.INFRASTRUCTURE, f"the image cannot be pulled: {message or reason}"[:500], time=now)
    return None


def _over(pod: Object, now: float) -> bool:
    """Whether nothing in a pod runs any more: it ended, or should have long ago, on a node that is lost."""
    if pod.get("status", {}).get("phase") in ("Succeeded", "Failed"):
        return True
    due = pod["metadata"].get("deletionTimestamp")
    return due is not None and now > _time(due) + LOST_SECONDS


# ---- the beginning ----------------------------------------------------------------------------------------------


def _waiting(record: Record, pods: Sequence[Object]) -> str:
    """Why not all pods run yet; '' where they do."""
    if len(pods) < record.nodes:
        return "waits for its pods to be created"
    for pod in sorted(pods, key=_index):
        status = pod.get("status", {})
        if status.get("phase") != "Pending":
            continue
        scheduled = next((c for c in _conditions(pod) if c["type"] == "PodScheduled"), None)
        if scheduled is not None and scheduled["status"] == "False":
            return f"cannot be scheduled: {scheduled.get('message') or scheduled.get('reason', '')}"
        for container in _containers(pod):
            waiting = container.get("state", {}).get("waiting") or {}
            if waiting.get("reason") and waiting["reason"] not in ("ContainerCreating", "PodInitializing"):
                return f"{waiting['reason']}: {waiting.get('message', '')}"
        where = pod["spec"].get("nodeName")
        return f"starts on {where}" if where else "waits for the scheduler"
    return ""


# ---- small things -----------------------------------------------------------------------------------------------


def _index(pod: Object) -> str:
    return pod["metadata"].get("labels", {}).get(INDEX, "0")


def _containers(pod: Object) -> Sequence[Object]:
    return pod.get("status", {}).get("containerStatuses") or ()


def _conditions(thing: Object) -> Sequence[Object]:
    return thing.get("status", {}).get("conditions") or ()


def _condition(thing: Object, kind: str) -> Object | None:
    """A condition that holds."""
    return next((c for c in _conditions(thing) if c["type"] == kind and c["status"] == "True"), None)


def _time(text: Any) -> float:
    """Seconds since 1970 of an RFC 3339 time; 0 where there is none."""
    return datetime.fromisoformat(str(text)).timestamp() if text else 0.0
