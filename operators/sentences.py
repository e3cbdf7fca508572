"""All sentences about attempts on a cluster: why one waits, and for how long it may; how one ended.

    Wait.UNSCHEDULABLE.of(why=pod.unschedulable.text)                        # Said(reason, message)
    End.JOB_DELETED.outcome(time=now)                                        # Outcome

docs/cluster.md lists them.
"""

from __future__ import annotations

from nanochat.pipeline.outcomes import Outcome, Reason
from nanochat.pipeline.sentences import Sentence


class Wait(Sentence):
    """Why not all pods of an attempt run."""

    QUEUE = "QueuePending", "waits for admission by Kueue"
    QUEUE_SAYS = "QueuePending", "waits for admission: {why}"
    PODS = "PodsMissing", "waits for its pods to be created"
    UNSCHEDULABLE = "Unschedulable", "cannot be scheduled: {why}"
    CONTAINER = "ContainerWaiting", "{reason}: {why}"
    SCHEDULER = "Scheduling", "waits for the scheduler"
    STARTING = "ContainerCreating", "starts on {node}"


class End(Sentence):
    """How an attempt ended, where its objects say so; the reason is an outcome's."""

    JOB_DELETED = Reason.PREEMPTED, "the job was deleted"
    JOB_CHANGED = Reason.PREEMPTED, "somebody else changed the job"
    JOB_REFUSED = Reason.ERROR, "the job was refused: {why}"
    RESTARTED = Reason.PREEMPTED, "Kueue started it again before the pod of node {index} had ended"
    POD_DELETED = Reason.PREEMPTED, "the pod of node {index} was deleted"
    PODS_DELETED = Reason.PREEMPTED, "the pods of nodes {indices} were deleted"
    PODS_GONE = Reason.PREEMPTED, "the pods are gone"
    POD_TAKEN = Reason.PREEMPTED, "the pod of node {index} was taken away: {why}"
    NODE_LOST = Reason.PREEMPTED, "the pod of node {index} was lost with {node}"
    STOPPED = Reason.PREEMPTED, "stopped"
    STALLED = Reason.STALLED, "no sign of life; it was stopped"
    STALLED_ON = Reason.STALLED, "no sign of life; it was stopped: ranks on {nodes} stood still"
    MEMORY = Reason.OUT_OF_MEMORY, "the pod's memory is used up"
    DISK_FULL = Reason.USER_ERROR, "the node's disk is full: give the pod more ephemeral storage"
    KILLED = Reason.INFRASTRUCTURE, "the pod was killed by SIGKILL"
    EXIT = Reason.ERROR, "exit code {code}; see the log"
    EXIT_SAYS = Reason.ERROR, "exit code {code}: {why}; see the log"
    CANNOT_START = Reason.USER_ERROR, "the pod cannot start: {why}"
    NO_IMAGE = Reason.INFRASTRUCTURE, "the image cannot be pulled: {why}"

    def outcome(self, *, time: float = 0.0, host: bool = False, **values: object) -> Outcome:
        """The outcome with this sentence; `time` and `host` as in `Outcome`."""
        return Outcome(Reason(self.reason), self.of(**values).message, time=time, host=host)
