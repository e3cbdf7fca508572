"""All sentences about attempts on a cluster: why one waits, for how long it may and what follows; how one ended.

    Wait.UNSCHEDULABLE.of(why=pod.unschedulable.text)                        # Waiting(reason, message, wait)
    End.JOB_DELETED.outcome(time=now)                                        # Outcome

docs/cluster.md lists them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from nanochat.pipeline.outcomes import Outcome, Reason
from nanochat.pipeline.sentences import Said, Sentence
from nanochat.spec.chatpipeline import TRAINING_OPERATOR
from nanochat.tracking.quantities import duration


@dataclass(frozen=True, slots=True)
class Waiting(Said):
    """A wait in one case."""

    wait: Wait
    values: Mapping[str, object]  # in the sentence's places

    @property
    def cause(self) -> str:
        """The message without what follows."""
        return Sentence.of(self.wait, **self.values).message

    def given_up(self, now: float) -> Outcome:
        """The outcome of an attempt that waited for as long as it may."""
        return Outcome(self.wait.then, f"{self.cause} (for {duration(self.wait.patience)})", time=now)


class Wait(Sentence):
    """Why not all pods of an attempt run.

    After `patience` seconds of one wait the attempt ends with the outcome `then`; what only the cluster's room or a
    queue decides, and what lasts until the training operator is there, may take as long as it takes.
    """

    patience: float | None
    then: Reason

    NO_KUEUE = (
        "KueueMissing", "spec.queue names {queue}, and the cluster has no Kueue: install it, or take spec.queue out",
        600, Reason.USER_ERROR,
    )  # fmt: skip
    NO_QUEUE = (
        "LocalQueueMissing", "there is no LocalQueue {queue}: create it, or correct spec.queue",
        600, Reason.USER_ERROR,
    )  # fmt: skip
    NO_WORKLOAD = (
        "WorkloadMissing", "waits for Kueue to take up its job: is Kueue's controller running, for PyTorchJobs too?",
        600, Reason.INFRASTRUCTURE,
    )  # fmt: skip
    QUEUE = "QueuePending", "waits for admission by Kueue: {why}"
    EVICTED = "Evicted", "Kueue evicted it at {since} ({cause}): {why}; it goes on when it is admitted again"
    DEACTIVATED = (
        "WorkloadDeactivated", "Kueue has deactivated its Workload {name}: {why}",
        600, Reason.INFRASTRUCTURE,
    )  # fmt: skip
    ADMITTED = "WorkloadAdmitted", "Kueue has admitted it and starts its job", 300, Reason.INFRASTRUCTURE
    NO_JOBS = (
        "JobKindMissing",
        "the cluster has no {kind}: install the Kubeflow training operator, and it goes on by itself: "
        f"{TRAINING_OPERATOR}",
    )  # fmt: skip
    NO_JOB = (
        "JobNotCreated",
        "its job cannot be created: {why}; it is tried until it can: does the training operator run? "
        f"This installs it: {TRAINING_OPERATOR}",
    )  # fmt: skip
    JOB_REFUSED = "JobRefused", "the API server refuses its job: {why}", 300, Reason.USER_ERROR
    OPERATOR = "JobNotTakenUp", "waits for the training operator to take up its job"
    NO_OPERATOR = (
        "TrainingOperatorMissing",
        "no training operator takes up its job: see that it runs, or install it, and it goes on by itself: "
        f"{TRAINING_OPERATOR}",
    )  # fmt: skip
    PODS = (
        "PodsMissing", "waits for the training operator to create its pods: is it running?",
        600, Reason.INFRASTRUCTURE,
    )  # fmt: skip
    PODS_REFUSED = "PodsRefused", "the API server refuses its pods: {why}", 180, Reason.INFRASTRUCTURE
    SCHEDULER = "Scheduling", "waits for the scheduler", 600, Reason.INFRASTRUCTURE
    UNSCHEDULABLE = "Unschedulable", "cannot be scheduled: {why}"
    CONFIG = (
        "CreateContainerConfigError", "{pod} cannot start: {why}: create what is missing, and it starts by itself",
        300, Reason.USER_ERROR,
    )  # fmt: skip
    IMAGE_NAME = "InvalidImageName", "{pod} cannot start: {why}: correct the image", 30, Reason.USER_ERROR
    IMAGE = "ImagePullBackOff", "the image of {pod} cannot be pulled: {why}", 300, Reason.INFRASTRUCTURE
    CONTAINER = "CreateContainerError", "{pod} cannot start: {kind}: {why}", 300, Reason.INFRASTRUCTURE
    MOUNT = "FailedMount", "{pod} cannot mount a volume on {node}: {why}", 300, Reason.INFRASTRUCTURE
    NODE = "FailedCreatePodSandBox", "{node} cannot start {pod}: {kind}: {why}", 300, Reason.INFRASTRUCTURE
    STARTING = "ContainerCreating", "{pod} starts on {node}", 1800, Reason.INFRASTRUCTURE

    def __init__(
        self, reason: str, text: str, patience: float | None = None, then: Reason = Reason.INFRASTRUCTURE
    ) -> None:
        super().__init__(reason, text)
        self.patience, self.then = patience, then

    def of(self, **values: object) -> Waiting:
        """The sentence with these values in its places, and what follows if it stays."""
        cause = super().of(**values).message
        follows = "the stage fails" if self.then is Reason.USER_ERROR else "it is tried anew"
        limit = f" (after {duration(self.patience)} {follows})" if self.patience is not None else ""
        return Waiting(self.reason, cause + limit, self, values)


class Resize(Sentence):
    """All sentences about the number of nodes of a stage with `minNodes` (`operators.elastic`)."""

    FOLLOWS = "Resized", "(after {patience} it goes on with fewer nodes, if there is room for {least})"
    FEWER = "FewerNodes", "runs on {nodes} of {most} nodes, and takes all again when there is room"
    SHRINKS = "Resized", "there was no room for all nodes within {patience}: it goes on with {nodes} of {most}"
    GROWS = "Resized", "there is room again: it goes on with {nodes} of {most} nodes"


class End(Sentence):
    """How an attempt ended, where its objects say so; the reason is an outcome's."""

    JOB_DELETED = Reason.PREEMPTED, "the job was deleted"
    JOB_CHANGED = Reason.PREEMPTED, "somebody else changed the job"
    JOB_SUSPENDED = (
        Reason.PREEMPTED,
        "somebody else suspended the job: to pause a pipeline use `nanochat suspend`; Kueue suspends what has a queue",
    )
    PLAN_DELETED = Reason.PREEMPTED, "the ConfigMap {name} with its plan was deleted before {pod} had mounted it"
    RESTARTED = Reason.PREEMPTED, "Kueue started it again before {pod} had ended"
    POD_DELETED = Reason.PREEMPTED, "{pod} was deleted"
    PODS_GONE = Reason.PREEMPTED, "its pods are gone"
    POD_TAKEN = Reason.PREEMPTED, "{pod} was taken away: {why}"
    NODE_LOST = Reason.PREEMPTED, "the node {node} was lost, and {pod} with it"
    POD_REJECTED = Reason.INFRASTRUCTURE, "{node} took {pod} and could not run it: {why}"
    STOPPED = Reason.PREEMPTED, "stopped"
    STALLED = Reason.STALLED, "no sign of life; it was stopped"
    STALLED_ON = Reason.STALLED, "no sign of life; it was stopped: {ranks} stood still"
    MEMORY = Reason.OUT_OF_MEMORY, "the memory of {pod} is used up"
    DISK_FULL = Reason.USER_ERROR, "the disk of {pod} is full: give it more ephemeral storage"
    KILLED = Reason.INFRASTRUCTURE, "{pod} was killed by SIGKILL"
    EXIT = Reason.ERROR, "{pod} ended with exit code {code} and without a word"
    EXIT_SAYS = Reason.ERROR, "{pod} ended with exit code {code}; its last words: {why}"
    NO_WORD = Reason.ERROR, "the job failed, and none of its pods says why: {why}"

    def outcome(self, time: float = 0.0, **values: object) -> Outcome:
        """The outcome with this sentence; `time` as in `Outcome`."""
        return Outcome(Reason(self.reason), self.of(**values).message, time=time, host=self is End.MEMORY)
