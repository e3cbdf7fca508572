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
from nanochat.pipeline.sentences import LONGEST, Said
from nanochat.storage.records import RECORD
from operators.attempts import JobAttempt
from operators.kueue import Workload
from operators.objects import Job, Pod
from operators.sentences import End, Wait

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

    waiting: Said | None = None  # why not all of its pods run
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
        return AttemptObservation(
            outcome=End.JOB_DELETED.outcome(time=now),
            clear=clear,
            pods=record.pods,
            job_started=record.job_started,
            placement=record.placement,
        )
    if job.suspended:
        waiting = Wait.QUEUE_SAYS.of(why=workload.message) if workload else Wait.QUEUE.of()
        return AttemptObservation(waiting=waiting, clear=clear, pods={}, job_started="", placement=placement)
    same = not record.job_started or record.job_started == job.started
    before = record.pods if same else {}
    present = {pod.index: pod.meta.uid for pod in pods if not pod.meta.deleting}
    known = {*present.values(), *before.values()}
    former = [pod for pod in pods if pod.meta.uid not in known]
    if former and job.queued:
        # The training operator takes what still ends of a launch that Kueue stopped for a failure of the next one.
        outcome = End.RESTARTED.outcome(time=now, index=former[0].index)
    else:
        outcome = _outcome(record, job, pods, before, now)
    return AttemptObservation(
        waiting=None if outcome else _waiting(record, pods),
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
        if len(gone) == 1:
            return End.POD_DELETED.outcome(time=now, index=gone[0])
        return End.PODS_DELETED.outcome(time=now, indices=", ".join(gone))
    taken = [outcome for pod in pods if (outcome := _taken(pod)) is not None and outcome.time <= first]
    if taken:
        return min(taken, key=lambda o: o.time)
    stuck = [outcome for pod in pods if (outcome := _stuck(pod, now)) is not None]
    if stuck:
        return stuck[0]
    if job.meta.generation > record.generation and not job.queued:
        return End.JOB_CHANGED.outcome(time=now)
    lost = [o for o in ended if o.reason is not Reason.SUCCEEDED]
    living = [pod for pod in pods if not _over(pod, now)]
    if lost and not living:
        silent = [pod for pod in pods if not pod.ended]
        if silent:  # it was to end and nobody says that it did: its peers lost it with its node
            return End.NODE_LOST.outcome(time=now, index=silent[0].index, node=silent[0].node)
        order = {Reason.PREEMPTED: 1}
        return min(lost, key=lambda o: (order.get(o.reason, 0), o.time))
    if job.failed and not pods:
        if record.pods:
            return End.PODS_GONE.outcome(time=now)
        return End.JOB_REFUSED.outcome(time=now, why=job.message)
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
        return End.MEMORY.outcome(time=end.time, host=True)
    try:
        words = read_json(end.message or "", limit=RECORD)
        return Outcome.from_dict(words | {"time": words.get("time") or end.time})
    except (ValueError, TypeError, AttributeError):
        pass  # it was killed before it could say a word, or this is not its word
    if end.code == 0:
        return Outcome(Reason.SUCCEEDED, time=end.time)
    if end.code == EXIT_STOPPED:
        return End.STOPPED.outcome(time=end.time)
    if end.code == EXIT_DISK_FULL:
        return End.DISK_FULL.outcome(time=end.time)
    if end.code == 137:
        return End.KILLED.outcome(time=end.time)
    if why := (end.message or end.reason).strip()[-LONGEST:]:
        return End.EXIT_SAYS.outcome(time=end.time, code=end.code, why=why)
    return End.EXIT.outcome(time=end.time, code=end.code)


def _taken(pod: Pod) -> Outcome | None:
    """The outcome where a pod was evicted, deleted, or lost its node."""
    if pod.state.reason in TAKEN_REASONS:
        return End.POD_TAKEN.outcome(index=pod.index, why=pod.state.text)
    if pod.disrupted is not None:
        return End.POD_TAKEN.outcome(time=pod.disrupted.time, index=pod.index, why=pod.disrupted.text)
    if pod.meta.deleting:
        return End.POD_DELETED.outcome(time=pod.meta.due - pod.meta.grace, index=pod.index)
    return None


def _stuck(pod: Pod, now: float) -> Outcome | None:
    """The outcome of a pod that will never start as it is."""
    for waiting in pod.waiting:
        if waiting.reason in CONFIG_REASONS and now - pod.since > CONFIG_SECONDS:
            return End.CANNOT_START.outcome(time=now, why=waiting.text)
        if waiting.reason in PULL_REASONS and now - pod.since > PULL_SECONDS:
            return End.NO_IMAGE.outcome(time=now, why=waiting.text)
    return None


def _over(pod: Pod, now: float) -> bool:
    """Whether nothing in a pod runs any more: it ended, or should have long ago, on a node that is lost."""
    return pod.ended or (pod.meta.deleting and now > pod.meta.due + LOST_SECONDS)


# ---- the beginning ----------------------------------------------------------------------------------------------


def _waiting(record: JobAttempt, pods: Sequence[Pod]) -> Said | None:
    """Why not all pods run yet; None where they do."""
    if len(pods) < record.nodes:
        return Wait.PODS.of()
    for pod in sorted(pods, key=lambda pod: pod.index):
        if pod.phase != "Pending":
            continue
        if pod.unschedulable is not None:
            return Wait.UNSCHEDULABLE.of(why=pod.unschedulable.text)
        for waiting in pod.waiting:
            if waiting.reason not in STARTING_REASONS:
                return Wait.CONTAINER.of(reason=waiting.reason, why=waiting.message)
        return Wait.STARTING.of(node=pod.node) if pod.node else Wait.SCHEDULER.of()
    return None
