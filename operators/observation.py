"""The outcome of an attempt, from its job and pods. Pure functions over the values of `operators.objects`.

    observed = observe(record, job, pods, now, workload)
    record = updated(record, observed, now)

Of several pods that failed one is the cause. A failure of its own comes first; then a pod that was taken away (deleted,
evicted, its node lost); peers that lost a collective, and pods that the training operator removed because another one
had failed, are consequences.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from nanochat.parse.json_text import read_json
from nanochat.pipeline.outcomes import EXIT_DISK_FULL, EXIT_STOPPED, Outcome, Reason
from nanochat.storage.records import RECORD
from operators.attempts import JobAttempt
from operators.kueue import Workload
from operators.objects import Job, Pod

CONFIG_SECONDS = 30.0  # that a pod may lack a Secret or have a bad image name before it is the user's error
PULL_SECONDS = 300.0  # that an image may take to be pulled after it failed once
LOST_SECONDS = 15.0  # after which a pod that should have ended is on a node that is lost
TAKEN_REASONS = ("Evicted", "NodeLost", "Terminated", "NodeShutdown", "Preempting")
CONFIG_REASONS = ("CreateContainerConfigError", "CreateContainerError", "InvalidImageName", "ErrImageNeverPull")
PULL_REASONS = ("ErrImagePull", "ImagePullBackOff")
STARTING_REASONS = ("", "ContainerCreating", "PodInitializing")


@dataclass(frozen=True, slots=True)
class AttemptObservation:
    """An attempt as its objects show it."""

    waiting: str = ""  # why not all of its pods run
    outcome: Outcome | None = None  # how it ended; None while it goes on
    clear: bool = False  # nothing of it can still run
    pods: Mapping[str, str] = field(default_factory=dict)  # replica index -> uid, of the present launch
    job_started: str = ""  # the job's startTime
    placement: Mapping[str, str] = field(default_factory=dict)  # replica index -> node, of the present launch


def observe(
    record: JobAttempt, job: Job | None, pods: Sequence[Pod], now: float, workload: Workload | None
) -> AttemptObservation:
    """The state of an attempt, from its job, the job's pods and Kueue's Workload for it."""
    clear = (job is None or job.ended) and all(_over(pod, now) for pod in pods)
    placement = {pod.index: pod.node for pod in pods if pod.node}
    if job is None:
        outcome = Outcome(Reason.PREEMPTED, "the job was deleted", time=now)
        return AttemptObservation(
            outcome=outcome, clear=clear, pods=record.pods, job_started=record.job_started, placement=record.placement
        )
    if job.suspended:
        waiting = f"waits for admission: {workload.message}" if workload else "waits for admission by Kueue"
        return AttemptObservation(waiting=waiting, clear=clear, pods={}, job_started="", placement=placement)
    same = not record.job_started or record.job_started == job.started
    before = record.pods if same else {}
    present = {pod.index: pod.meta.uid for pod in pods if not pod.meta.deleting}
    known = {*present.values(), *before.values()}
    former = [pod for pod in pods if pod.meta.uid not in known]
    if former and job.queued:
        # The training operator takes what still ends of a launch that Kueue stopped for a failure of the next one.
        message = f"Kueue started it again before the pod of node {former[0].index} had ended"
        outcome = Outcome(Reason.PREEMPTED, message, time=now)
    else:
        outcome = _outcome(record, job, pods, before, now)
    return AttemptObservation(
        waiting="" if outcome else _waiting(record, pods),
        outcome=outcome,
        clear=clear,
        pods={**before, **present},
        job_started=job.started,
        placement={**(record.placement if same else {}), **placement},
    )


def updated(record: JobAttempt, observed: AttemptObservation, now: float) -> JobAttempt:
    """The record with what was observed of the pods."""
    runs = not observed.waiting and observed.outcome is None
    launches = dict.fromkeys((*record.launches, *(record.launch_of(uid) for uid in observed.pods.values())))
    master = observed.pods.get("0")
    return replace(
        record,
        pods=dict(observed.pods),
        job_started=observed.job_started,
        placement=dict(observed.placement),
        hosts=tuple(sorted({*record.hosts, *observed.placement.values()})),
        launches=tuple(launches),
        launch=record.launch_of(master) if master else record.launch,
        running_since=(record.running_since or now) if runs else None,
        used=record.used if runs else record.ran(now),
    )


def has_news(record: JobAttempt, observed: AttemptObservation, now: float) -> bool:
    """Whether an observation changes anything about an attempt."""
    return bool(record.decided or observed.outcome) or updated(record, observed, now) != record


# ---- the end ----------------------------------------------------------------------------------------------------


def _outcome(
    record: JobAttempt, job: Job, pods: Sequence[Pod], before: Mapping[str, str], now: float
) -> Outcome | None:
    if job.succeeded:
        return Outcome(Reason.SUCCEEDED, time=now)
    ended = [outcome for pod in pods if (outcome := _pod_outcome(pod, record.processes)) is not None]
    own = [o for o in ended if o.reason not in (Reason.SUCCEEDED, Reason.PREEMPTED) and not o.peer_lost]
    if own:
        return min(own, key=lambda o: o.time)
    first = min((o.time for o in ended if o.reason is not Reason.SUCCEEDED), default=now + 1)
    # Pods that are gone altogether went before those that are about to go.
    there = {pod.meta.uid for pod in pods}
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
    if job.meta.generation > record.generation and not job.queued:
        return Outcome(Reason.PREEMPTED, "somebody else changed the job", time=now)
    lost = [o for o in ended if o.reason is not Reason.SUCCEEDED]
    living = [pod for pod in pods if not _over(pod, now)]
    if lost and not living:
        silent = [pod for pod in pods if not pod.ended]
        if silent:  # it was to end and nobody says that it did: its peers lost it with its node
            message = f"the pod of node {silent[0].index} was lost with {silent[0].node}"
            return Outcome(Reason.PREEMPTED, message, time=now)
        order = {Reason.PREEMPTED: 1}
        return min(lost, key=lambda o: (order.get(o.reason, 0), o.time))
    if job.failed and not pods:
        if record.pods:
            return Outcome(Reason.PREEMPTED, "the pods are gone", time=now)
        return Outcome(Reason.ERROR, f"the job was refused: {job.message}", time=now)
    return None


def _pod_outcome(pod: Pod, processes: int) -> Outcome | None:
    """How a pod's container ended, by its own word if it left one; None while it runs or where nothing tells."""
    found = _exit_outcome(pod)
    if found is None or found.rank is not None or not pod.index.isdecimal():
        return found
    return replace(found, rank=int(pod.index) * processes)


def _exit_outcome(pod: Pod) -> Outcome | None:
    end = pod.exit
    if end is None or pod.state.reason == "Evicted":  # `_taken` tells of an eviction
        return None
    if end.reason == "OOMKilled":
        return Outcome(Reason.OUT_OF_MEMORY, "the pod's memory is used up", time=end.time, host=True)
    try:
        words = read_json(end.message or "", limit=RECORD)
        return Outcome.from_dict(words | {"time": words.get("time") or end.time})
    except (ValueError, TypeError, AttributeError):
        pass  # it was killed before it could say a word, or this is not its word
    if end.code == 0:
        return Outcome(Reason.SUCCEEDED, time=end.time)
    if end.code == EXIT_STOPPED:
        return Outcome(Reason.PREEMPTED, "stopped", time=end.time)
    if end.code == EXIT_DISK_FULL:
        message = "the node's disk is full: give the pod more ephemeral storage"
        return Outcome(Reason.USER_ERROR, message, time=end.time)
    if end.code == 137:
        return Outcome(Reason.INFRASTRUCTURE, "the pod was killed by SIGKILL", time=end.time)
    said = (end.message or end.reason).strip()
    return Outcome(
        Reason.ERROR, f"exit code {end.code}{': ' + said[-500:] if said else ''}; see the log", time=end.time
    )


def _taken(pod: Pod) -> Outcome | None:
    """The outcome where a pod was evicted, deleted, or lost its node."""
    name = f"the pod of node {pod.index}"
    if pod.state.reason in TAKEN_REASONS:
        return Outcome(Reason.PREEMPTED, f"{name} was taken away: {pod.state.text}"[:500])
    if pod.disrupted is not None:
        message = f"{name} was taken away: {pod.disrupted.text}"[:500]
        return Outcome(Reason.PREEMPTED, message, time=pod.disrupted.time)
    if pod.meta.deleting:
        return Outcome(Reason.PREEMPTED, f"{name} was deleted", time=pod.meta.due - pod.meta.grace)
    return None


def _stuck(pod: Pod, now: float) -> Outcome | None:
    """The outcome of a pod that will never start as it is."""
    for waiting in pod.waiting:
        if waiting.reason in CONFIG_REASONS and now - pod.since > CONFIG_SECONDS:
            return Outcome(Reason.USER_ERROR, f"the pod cannot start: {waiting.text}"[:500], time=now)
        if waiting.reason in PULL_REASONS and now - pod.since > PULL_SECONDS:
            return Outcome(Reason.INFRASTRUCTURE, f"the image cannot be pulled: {waiting.text}"[:500], time=now)
    return None


def _over(pod: Pod, now: float) -> bool:
    """Whether nothing in a pod runs any more: it ended, or should have long ago, on a node that is lost."""
    return pod.ended or (pod.meta.deleting and now > pod.meta.due + LOST_SECONDS)


# ---- the beginning ----------------------------------------------------------------------------------------------


def _waiting(record: JobAttempt, pods: Sequence[Pod]) -> str:
    """Why not all pods run yet; '' where they do."""
    if len(pods) < record.nodes:
        return "waits for its pods to be created"
    for pod in sorted(pods, key=lambda pod: pod.index):
        if pod.phase != "Pending":
            continue
        if pod.unschedulable is not None:
            return f"cannot be scheduled: {pod.unschedulable.text}"
        for waiting in pod.waiting:
            if waiting.reason not in STARTING_REASONS:
                return f"{waiting.reason}: {waiting.message}"
        return f"starts on {pod.node}" if pod.node else "waits for the scheduler"
    return ""
