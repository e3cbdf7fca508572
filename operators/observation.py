"""The outcome of an attempt, from its job and pods. Pure functions over the values of `operators.objects`.

    observed = observe(record, job, pods, now, queues)
    record = updated(record, observed, now)

Of several pods that failed one is the cause. A failure of its own comes first; then a pod that was taken away (deleted,
evicted, its node lost); peers that lost a collective, and pods that the training operator removed because another one
had failed, are consequences.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from nanochat.parse.json_text import read_json
from nanochat.pipeline.outcomes import EXIT_DISK_FULL, EXIT_STOPPED, Outcome, Reason, last_lines
from nanochat.storage.records import RECORD
from operators.attempts import JobAttempt
from operators.kueue import Queues
from operators.objects import Job, Pod
from operators.sentences import End, Wait, Waiting

LOST_SECONDS = 15.0  # after which a pod that should have ended is on a node that is lost
TAKEN_REASONS = ("Evicted", "NodeLost", "Terminated", "NodeShutdown", "Preempting")
STARTING_REASONS = ("", "ContainerCreating", "PodInitializing")
CONTAINER_WAITS = {
    "CreateContainerConfigError": Wait.CONFIG,
    "InvalidImageName": Wait.IMAGE_NAME,
    "ErrImageNeverPull": Wait.IMAGE_NAME,
    "ErrImagePull": Wait.IMAGE,
    "ImagePullBackOff": Wait.IMAGE,
}  # by why a container waits; else Wait.CONTAINER


@dataclass(frozen=True, slots=True)
class AttemptObservation:
    """An attempt as its objects show it."""

    waiting: Waiting | None = None  # why not all of its pods run
    about: str = ""  # uid of the job or pod whose Events may say more about that
    outcome: Outcome | None = None  # how it ended; None while it goes on
    clear: bool = False  # nothing of it can still run
    pods: Mapping[str, str] = field(default_factory=dict)  # replica index -> uid, of the present launch
    job_started: str = ""  # the job's startTime
    placement: Mapping[str, str] = field(default_factory=dict)  # replica index -> node, of the present launch
    placed: int = 0  # pods that nodes have taken up

    @property
    def is_stuck(self) -> bool:
        """Whether not all of its pods are admitted, and on a node that starts them."""
        return self.waiting is not None and self.waiting.wait not in (Wait.ADMITTED, Wait.STARTING)


def observe(record: JobAttempt, job: Job | None, pods: Sequence[Pod], now: float, queues: Queues) -> AttemptObservation:
    """The state of an attempt, from its job, the job's pods and Kueue's word on it."""
    clear = (job is None or job.ended) and all(is_over(pod, now) for pod in pods)
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
        waiting = queues.waiting(job) if job.queue else None
        outcome = None if waiting else End.JOB_SUSPENDED.outcome(time=now)
        return AttemptObservation(
            waiting=waiting, outcome=outcome, clear=clear, pods={}, job_started="", placement=placement
        )
    same = not record.job_started or record.job_started == job.started
    before = record.pods if same else {}
    present = {pod.index: pod.meta.uid for pod in pods if not pod.meta.deleting}
    known = {*present.values(), *before.values()}
    former = [pod for pod in pods if pod.meta.uid not in known]
    if former and job.queue:
        # The training operator takes what still ends of a launch that Kueue stopped for a failure of the next one.
        outcome = End.RESTARTED.outcome(time=now, pod=_name(former[0]))
    else:
        outcome = _outcome(record, job, pods, before, now)
    waiting, about = (None, "") if outcome else _waiting(record, job, pods)
    return AttemptObservation(
        waiting=waiting,
        about=about,
        outcome=outcome,
        clear=clear,
        pods={**before, **present},
        job_started=job.started,
        placement={**(record.placement if same else {}), **placement},
        placed=placed(pods),
    )


def placed(pods: Iterable[Pod]) -> int:
    """The number of pods that run on a node or are being started by it: one that is bound to a node which has just been
    lost is not."""
    running = [pod for pod in pods if pod.node and not pod.meta.deleting and not pod.unreachable]
    return sum(pod.phase == "Running" or (pod.phase == "Pending" and bool(pod.waiting)) for pod in running)


def updated(record: JobAttempt, observed: AttemptObservation, now: float) -> JobAttempt:
    """The record with what was observed of the pods."""
    runs = not observed.waiting and observed.outcome is None
    launches = dict.fromkeys((*record.launches, *(record.launch_of(uid) for uid in observed.pods.values())))
    master = observed.pods.get("0")
    held = min(1.0, observed.placed / max(1, record.nodes)) if observed.waiting else 0.0
    return replace(
        record.holding(held, now),
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
    failed = [o for o in ended if o.reason is not Reason.SUCCEEDED]
    first = min((o.time for o in failed), default=now + 1)
    # Pods that are gone altogether went before those that are about to go, unless they were cleaned up after a failure.
    there = {pod.meta.uid for pod in pods}
    gone = [_former_name(record, index) for index, uid in sorted(before.items()) if uid not in there]
    if gone and not failed:
        return End.POD_DELETED.outcome(time=now, pod=gone[0]) if len(gone) == 1 else End.PODS_GONE.outcome(time=now)
    taken = [outcome for pod in pods if (outcome := _taken(pod)) is not None and outcome.time <= first]
    if taken:
        return min(taken, key=lambda o: o.time)
    if job.meta.generation > record.generation and not job.queue:
        return End.JOB_CHANGED.outcome(time=now)
    if not all(is_over(pod, now) for pod in pods):
        return None
    if failed:
        silent = [pod for pod in pods if not pod.ended]
        if silent:  # it was to end and nobody says that it did: its peers lost it with its node
            return End.NODE_LOST.outcome(time=now, pod=_name(silent[0]), node=silent[0].node)
        if gone:
            return End.POD_DELETED.outcome(time=now, pod=gone[0])
        order = {Reason.PREEMPTED: 1}
        return min(failed, key=lambda o: (order.get(o.reason, 0), o.time))
    if job.failed:
        return End.PODS_GONE.outcome(time=now) if record.pods and not pods else End.NO_WORD.outcome(why=job.message)
    return None


def lost_node(pods: Sequence[Pod], now: float) -> Outcome | None:
    """The outcome of a silent attempt where a node of its pods is silent too."""
    found = [pod for pod in pods if pod.unreachable]
    return End.NODE_LOST.outcome(time=now, pod=_name(found[0]), node=found[0].node) if found else None


def _pod_outcome(pod: Pod, processes: int) -> Outcome | None:
    """How a pod's container ended, by its own word if it left one; None while it runs or where nothing tells."""
    found = _exit_outcome(pod)
    if found is None or found.rank is not None or not pod.index.isdecimal():
        return found
    return replace(found, rank=int(pod.index) * processes)


def _exit_outcome(pod: Pod) -> Outcome | None:
    """The same, without the rank that the pod stands for."""
    end, name = pod.exit, _name(pod)
    killed = end is None or (end.code == 137 and end.reason != "OOMKilled")
    if pod.state.reason in TAKEN_REASONS or (pod.disrupted is not None and killed):  # `_taken` tells of it
        return None
    if end is None:
        if pod.phase == "Failed" and not pod.meta.deleting:
            return End.POD_REJECTED.outcome(time=pod.since, pod=name, node=pod.node, why=pod.state.text)
        return None
    if end.reason == "OOMKilled":
        return End.MEMORY.outcome(time=end.time, pod=name)
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
        return End.DISK_FULL.outcome(time=end.time, pod=name)
    if end.code == 137:
        return End.KILLED.outcome(time=end.time, pod=name)
    # Without a word of its own the message is the end of the container's log, by terminationMessagePolicy.
    if why := last_lines(end.message or end.reason):
        return End.EXIT_SAYS.outcome(time=end.time, pod=name, code=end.code, why=why)
    return End.EXIT.outcome(time=end.time, pod=name, code=end.code)


def _taken(pod: Pod) -> Outcome | None:
    """The outcome where a pod was evicted, deleted, or lost its node."""
    if pod.state.reason in TAKEN_REASONS:
        return End.POD_TAKEN.outcome(pod=_name(pod), why=pod.state.text)
    if pod.disrupted is not None:
        return End.POD_TAKEN.outcome(time=pod.disrupted.time, pod=_name(pod), why=pod.disrupted.text)
    if pod.meta.deleting:
        return End.POD_DELETED.outcome(time=pod.meta.due - pod.meta.grace, pod=_name(pod))
    return None


def is_over(pod: Pod, now: float) -> bool:
    """Whether nothing in a pod runs any more: it ended, or should have long ago, on a node that is lost."""
    return pod.ended or (pod.meta.deleting and now > pod.meta.due + LOST_SECONDS)


def _name(pod: Pod) -> str:
    """A pod for people, with its node."""
    return f"pod {pod.meta.name} on {pod.node}" if pod.node else f"pod {pod.meta.name}"


def _former_name(record: JobAttempt, index: str) -> str:
    """The same of one that is gone."""
    node = record.placement.get(index)
    return f"pod {index} of {record.job} on {node}" if node else f"pod {index} of {record.job}"


# ---- the beginning ----------------------------------------------------------------------------------------------


def _waiting(record: JobAttempt, job: Job, pods: Sequence[Pod]) -> tuple[Waiting | None, str]:
    """Why not all pods run yet, None where they do; and the uid of the object whose Events may say more."""
    if len(pods) < record.nodes:
        return (Wait.PODS if job.taken_up or pods else Wait.OPERATOR).of(), job.meta.uid
    for pod in sorted(pods, key=lambda pod: pod.index):
        if pod.phase != "Pending":
            continue
        name = f"pod {pod.meta.name}"
        if pod.unschedulable is not None:
            return Wait.UNSCHEDULABLE.of(why=pod.unschedulable.text), ""
        for waiting in pod.waiting:
            if waiting.reason not in STARTING_REASONS:
                wait = CONTAINER_WAITS.get(waiting.reason, Wait.CONTAINER)
                return wait.of(pod=name, kind=waiting.reason, why=waiting.text), ""
        if not pod.node:
            return Wait.SCHEDULER.of(), ""
        return Wait.STARTING.of(pod=name, node=pod.node), pod.meta.uid
    return None, ""
