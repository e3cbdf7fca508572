"""What jobs and pods say, as a table: objects as the API server gives them, and the outcome that they mean."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import Any

import pytest

from nanochat.pipeline.outcomes import Reason
from operators import observation
from operators.attempts import JobAttempt
from operators.kueue import Queues, queue_state, read_workload
from operators.observation import AttemptObservation, has_news, updated
from operators.pytorchjob import PyTorchJobs

NOW = 1_800_000_000.0
JOB = "demo-12ab-base-1"


META = {"namespace": "team", "resourceVersion": "1"}
CONTAINER = {"name": "pytorch", "image": "i", "imageID": "i", "ready": False, "restartCount": 0}
BACKEND = PyTorchJobs(None)  # type: ignore[arg-type]
KUEUE = Queues(installed=True)


def observe(
    record: JobAttempt, found: Any, pods: list[dict[str, Any]], now: float, queues: Queues = KUEUE
) -> AttemptObservation:
    """What objects come to, as the API server gives them."""
    job = None if found is None else BACKEND.read_job(found)
    return observation.observe(record, job, [BACKEND.read_pod(pod) for pod in pods], now, queues)


def at(seconds: float) -> str:
    """A time so many seconds before now."""
    return datetime.fromtimestamp(NOW - seconds, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def record(**changes: Any) -> JobAttempt:
    known: dict[str, Any] = {
        "stage": "base", "number": 1, "job": JOB, "keys": ("k",), "device_batch_size": 8, "started": NOW - 100,
        "nodes": 2, "generation": 1, "pods": {"0": "uid-0", "1": "uid-1"}, "job_started": at(90),
    }  # fmt: skip
    return JobAttempt(**(known | changes))


def job(
    *conditions: str, suspend: bool = False, started: float = 90, generation: int = 1, **labels: str
) -> dict[str, Any]:
    return {
        "metadata": {**META, "name": JOB, "uid": "job-uid", "generation": generation, "labels": labels},
        "spec": {"runPolicy": {"suspend": suspend}},
        "status": {
            "startTime": at(started),
            "conditions": [{"type": kind, "status": "True", "message": f"it {kind}"} for kind in conditions],
        },
    }


def pod(rank: int = 0, phase: str = "Running", *, uid: str = "", **status: Any) -> dict[str, Any]:
    meta: dict[str, Any] = {
        **META,
        "name": f"{JOB}-worker-{rank}",
        "uid": uid or f"uid-{rank}",
        "creationTimestamp": at(80),
        "labels": {"training.kubeflow.org/replica-index": str(rank), "training.kubeflow.org/job-name": JOB},
    }
    deleted = status.pop("deleted", None)
    if deleted is not None:  # seconds ago that its grace was over
        meta |= {"deletionTimestamp": at(deleted), "deletionGracePeriodSeconds": 20}
    return {
        "metadata": meta,
        "spec": {"nodeName": f"node-{rank}"},
        "status": {"phase": phase, "startTime": at(80), **status},
    }


def ended(
    rank: int, code: int, *, ago: float = 10, message: str = "", why: str = "Error", **more: Any
) -> dict[str, Any]:
    state = {"exitCode": code, "reason": why, "message": message, "finishedAt": at(ago)}
    phase = "Succeeded" if code == 0 else "Failed"
    return pod(rank, phase, containerStatuses=[{**CONTAINER, "state": {"terminated": state}}], **more)


def word(reason: str, message: str = "why", **more: Any) -> str:
    return json.dumps({"reason": reason, "message": message, "rank": 0, **more})


def waiting(reason: str, message: str = "", rank: int = 0) -> dict[str, Any]:
    state = {"waiting": {"reason": reason, "message": message}}
    return pod(rank, "Pending", containerStatuses=[{**CONTAINER, "state": state}])


def condition(kind: str, message: str = "", status: str = "True", ago: float = 30) -> dict[str, Any]:
    return {"type": kind, "status": status, "message": message, "lastTransitionTime": at(ago)}


QUEUED = {"kueue.x-k8s.io/queue-name": "team"}
LOST = word("Infrastructure", "Connection closed by peer [10.0.0.1]", peer_lost=True)
TAINTED = condition("DisruptionTarget", "Taint manager: deleting due to NoExecute taint")

CASES = {
    "success": (job("Succeeded"), [ended(0, 0), ended(1, 0)], Reason.SUCCEEDED, True),
    "both run": (job("Running"), [pod(0), pod(1)], None, False),
    "one done, one runs": (job("Running"), [ended(0, 0), pod(1)], None, False),
    "stopped after a checkpoint": (job("Failed"), [ended(0, 143), ended(1, 143)], Reason.PREEMPTED, True),
    "its own word": (job("Failed"), [ended(0, 1, message=word("Diverged")), pod(1)], Reason.DIVERGED, False),
    "a user's mistake": (job("Failed"), [ended(0, 1, message=word("UserError")), pod(1)], Reason.USER_ERROR, False),
    "a task called nccl": (
        job("Failed"), [ended(0, 1, message=word("UserError", "no task nccl")), pod(1)], Reason.USER_ERROR, False,
    ),
    "no word": (job("Failed"), [ended(0, 1), ended(1, 1)], Reason.ERROR, True),
    "no sensible word": (job("Failed"), [ended(0, 1, message="Traceback"), ended(1, 143)], Reason.ERROR, True),
    "memory of the pod": (job("Failed"), [ended(0, 137, why="OOMKilled"), pod(1)], Reason.OUT_OF_MEMORY, False),
    "memory, its peer spoke first": (
        job("Failed"),
        [ended(0, 1, ago=20, message=LOST), ended(1, 137, ago=10, why="OOMKilled")],
        Reason.OUT_OF_MEMORY,
        True,
    ),
    "a lost peer alone waits for the other": (
        job("Failed"), [ended(0, 1, message=LOST), pod(1)], None, False,
    ),
    "a lost peer alone": (
        job("Failed"), [ended(0, 1, message=LOST), ended(1, 143)], Reason.INFRASTRUCTURE, True,
    ),
    "a lost peer on a lost node": (
        job("Failed"), [pod(0, deleted=20), ended(1, 1, ago=60, message=LOST)],
        Reason.PREEMPTED, True,
    ),
    "a lost peer whose node may answer yet": (
        job("Failed"), [pod(0, deleted=5), ended(1, 1, ago=60, message=LOST)], None, False,
    ),
    "killed": (job("Failed"), [ended(0, 137), ended(1, 143)], Reason.INFRASTRUCTURE, True),
    "a disk that is full": (job("Failed"), [ended(0, 28), ended(1, 143)], Reason.USER_ERROR, True),
    "a pod that is being deleted": (job("Running"), [pod(0), pod(1, deleted=-10)], Reason.PREEMPTED, False),
    "a pod that was deleted and made again": (job("Running"), [pod(0), pod(1, uid="new")], Reason.PREEMPTED, False),
    "its peer lost it": (
        job("Failed"),
        [ended(0, 1, ago=5, message=LOST), pod(1, deleted=-10)],
        Reason.PREEMPTED,
        False,
    ),
    "clean-up after a failure is none": (
        job("Failed"),
        [ended(0, 1, ago=60, message=word("Error", "a bug")), pod(1, deleted=-10)],
        Reason.ERROR,
        False,
    ),
    "evicted for the node's sake": (
        job("Failed"), [pod(0, "Failed", reason="Evicted", message="low on memory"), pod(1)], Reason.PREEMPTED, False,
    ),
    "a node that is lost": (
        job("Running"), [pod(0), pod(1, deleted=-5, conditions=[TAINTED])], Reason.PREEMPTED, False,
    ),
    "a node that is lost for good": (
        job("Failed"), [ended(0, 143), pod(1, deleted=20, conditions=[TAINTED])], Reason.PREEMPTED, True,
    ),
    "the job deleted": (None, [pod(0), pod(1)], Reason.PREEMPTED, False),
    "the job and its pods deleted": (None, [], Reason.PREEMPTED, True),
    "changed by somebody": (job("Running", generation=2), [pod(0), pod(1)], Reason.PREEMPTED, False),
    "changed by Kueue": (
        job("Running", generation=2, **QUEUED), [pod(0), pod(1)], None, False,
    ),
    "stopped by Kueue": (
        job("Suspended", suspend=True, **QUEUED), [pod(0, deleted=-10), pod(1, deleted=-10)], None, False,
    ),
    "suspended by hand": (job("Suspended", suspend=True, generation=2), [], Reason.PREEMPTED, False),
    "started again by Kueue": (
        job("Running", started=5), [pod(0, uid="new-0"), pod(1, uid="new-1")], None, False,
    ),
    "started again by Kueue while a former pod still ends": (
        job("Running", started=5, **QUEUED),
        [pod(0, uid="new-0"), pod(1, uid="old", deleted=-10)], Reason.PREEMPTED, False,
    ),
    "started again by Kueue after a former pod was killed": (
        job("Running", started=5, **QUEUED),
        [pod(0, uid="new-0"), ended(1, 137, uid="old", deleted=-10)], Reason.PREEMPTED, False,
    ),
    "deleted from Kueue's job": (
        job("Running", **QUEUED), [pod(0), pod(1, deleted=-10)], Reason.PREEMPTED, False,
    ),
    "a Secret that may come yet": (
        job("Created"), [waiting("CreateContainerConfigError", "no Secret s3"), pod(1)], None, False,
    ),
    "an image that takes its time": (job("Created"), [waiting("ErrImagePull", "timeout"), pod(1)], None, False),
    "the pods are gone": (job("Failed"), [], Reason.PREEMPTED, True),
    "a pod that the kubelet rejects": (
        job("Failed"), [pod(0, "Failed", reason="OutOfcpu", message="Node didn't have enough resource: cpu"), pod(1)],
        Reason.INFRASTRUCTURE, False,
    ),
    "a word that the exit code belies": (
        job("Failed"), [ended(0, 1, message=word("Succeeded")), ended(1, 0)], Reason.ERROR, True,
    ),
    "a drained pod that did not end in time": (
        job("Failed"), [pod(0), ended(1, 137, conditions=[TAINTED])], Reason.PREEMPTED, False,
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_outcomes(name: str) -> None:
    found, pods, reason, clear = CASES[name]
    seen = observe(record(), found, pods, NOW)
    assert (seen.outcome.reason if seen.outcome else None) is reason
    assert seen.clear is clear


def test_a_job_that_was_refused_is_an_error() -> None:
    seen = observe(record(pods={}), job("Failed"), [], NOW)
    assert seen.outcome is not None and seen.outcome.reason is Reason.ERROR


def test_memory_is_the_hosts() -> None:
    found, pods, _, _ = CASES["memory of the pod"]
    seen = observe(record(), found, pods, NOW)
    assert seen.outcome is not None and seen.outcome.host


@pytest.mark.parametrize(
    ("found", "pods", "says"),
    [
        (job("Created"), [], "waits for the training operator to create its pods"),
        (job() | {"status": {}}, [], "waits for the training operator to take up its job"),
        (
            job("Created"),
            [pod(0, "Pending", conditions=[condition("PodScheduled", "0/3 nodes are available", "False")]), pod(1)],
            "cannot be scheduled: 0/3 nodes are available",
        ),
        (
            job("Created"),
            [waiting("ImagePullBackOff", "no such image"), pod(1)],
            "cannot be pulled: no such image",
        ),
        (job("Created"), [waiting("ContainerCreating"), pod(1)], "starts on node-0"),
        (job("Running"), [pod(0), pod(1)], ""),
    ],
)
def test_waiting(found: dict[str, Any], pods: list[dict[str, Any]], says: str) -> None:
    seen = observe(record(pods={}), found, pods, NOW)
    assert seen.outcome is None
    assert says in (seen.waiting.message if seen.waiting else "") and bool(says) == bool(seen.waiting)


@pytest.mark.parametrize(
    ("found", "pods", "stuck"),
    [
        (job("Created"), [], True),
        (job("Created"), [pod(0)], True),
        (job("Created"), [waiting("ContainerCreating"), pod(1)], False),
        (job("Created"), [waiting("PodInitializing"), waiting("ContainerCreating")], False),
        (job("Created"), [waiting("ImagePullBackOff"), pod(1)], True),
        (job("Created"), [pod(0), waiting("ErrImagePull")], True),
        (job("Suspended", suspend=True, **QUEUED), [], True),
        (job("Suspended", suspend=True, **QUEUED), [pod(0), pod(1)], True),
        (job("Running"), [pod(0), pod(1)], False),
    ],
)
def test_whether_an_attempt_gets_to_run(found: dict[str, Any], pods: list[dict[str, Any]], stuck: bool) -> None:
    """The start on a node takes its time: that is no reason to make room for another pipeline."""
    assert observe(record(pods={}), found, pods, NOW).is_stuck is stuck


def test_a_launch_is_told_by_its_pods() -> None:
    """Kueue stops a job's pods and starts others: another launch of the same attempt, and no time counts between."""
    first = record(pods={}, job_started="")
    one = updated(first, observe(first, job("Running"), [pod(0), pod(1)], NOW), NOW)
    assert (one.launch, one.running_since) == ("01-uid-0", NOW)
    stopped = updated(one, observe(one, job("Suspended", suspend=True, **QUEUED), [], NOW + 60), NOW + 60)
    assert (stopped.used, stopped.running_since, dict(stopped.pods)) == (60.0, None, {})
    again = job("Running", started=-100)
    two = updated(stopped, observe(stopped, again, [pod(0, uid="x" * 9), pod(1)], NOW + 100), NOW + 100)
    assert two.launch == "01-xxxxxxxx" and two.ran(NOW + 110) == 70.0
    assert set(two.launches) == {"01-uid-0", "01-uid-1", "01-xxxxxxxx"}


def test_records_survive_being_stored() -> None:
    whole = record(launches=("a", "b"), hosts=("n",), memory=2.0)
    assert JobAttempt.from_dict(json.loads(json.dumps(whole.to_dict())) | {"unknown": 1}) == whole


def workload(*conditions: dict[str, Any], active: bool = True) -> dict[str, Any]:
    """A Workload of the job, as Kueue 0.15 writes it."""
    return {
        "metadata": {"name": "pytorchjob-demo", "ownerReferences": [{"uid": "job-uid"}]},
        "spec": {"queueName": "team", "active": active},
        "status": {"conditions": list(conditions)},
    }


RESERVED = condition("QuotaReserved", "Quota reserved in ClusterQueue small")
SHORT = condition("QuotaReserved", "couldn't assign flavors to pod set worker: insufficient unused quota", "False")
ADMITTED = condition("Admitted", "The workload is admitted")
EVICTED = {**condition("Evicted", "Preempted to accommodate a workload (UID: 1, JobUID: 2)"), "reason": "Preempted"}
SINCE = at(30)


@pytest.mark.parametrize(
    ("bodies", "reason", "says"),
    [
        ([], "WorkloadMissing", "is Kueue's controller running"),
        ([workload()], "QueuePending", "not looked at yet"),
        ([workload(SHORT)], "QueuePending", "insufficient unused quota"),
        ([workload(RESERVED, ADMITTED)], "WorkloadAdmitted", "Kueue has admitted it"),
        (
            [workload(RESERVED, ADMITTED, EVICTED)], "Evicted",
            f"Kueue evicted it at {SINCE} (Preempted): Preempted to accommodate a workload (UID: 1, JobUID: 2)",
        ),
        ([workload(SHORT, EVICTED)], "Evicted", "(Preempted)"),
        ([workload(SHORT, active=False)], "WorkloadDeactivated", "Workload pytorchjob-demo"),
    ],
)  # fmt: skip
def test_why_kueue_holds_a_job(bodies: list[dict[str, Any]], reason: str, says: str) -> None:
    held = job("Suspended", suspend=True, **QUEUED)
    seen = observe(record(), held, [], NOW, Queues(True, [read_workload(body) for body in bodies]))
    assert seen.waiting is not None and seen.outcome is None
    assert seen.waiting.reason == reason and says in seen.waiting.message


def test_without_kueue_nobody_admits() -> None:
    seen = observe(record(), job("Suspended", suspend=True, **QUEUED), [], NOW, Queues())
    assert seen.waiting is not None and seen.waiting.reason == "KueueMissing"


def test_the_word_of_kueue_in_the_status() -> None:
    read = read_workload(workload(SHORT))
    queues = Queues(True, [read])
    assert queues.of(BACKEND.read_job(job())) is read and queues.of(None) is None
    message = SHORT["message"]
    state = {"name": "team", "workload": "pytorchjob-demo", "state": "Pending", "message": message}
    assert queue_state(read) == state


@pytest.mark.parametrize(
    ("left", "message"),
    [([pod(0, deleted=-10)], f"pod 1 of {JOB} was deleted"), ([], "its pods are gone")],
)
def test_pods_that_went_first_are_named(left: list[dict[str, Any]], message: str) -> None:
    seen = observe(record(), job("Failed"), left, NOW)
    assert seen.outcome is not None and seen.outcome.message == message


def test_the_lost_node_is_named_and_not_one_that_was_cleaned_up() -> None:
    """Of three nodes the second is lost. The others lose it as their peer, and of these one is already removed."""
    three = record(nodes=3, pods={"0": "uid-0", "1": "uid-1", "2": "uid-2"})
    left = [ended(0, 1, ago=60, message=LOST), pod(1, deleted=20)]
    seen = observe(three, job("Failed"), left, NOW)
    assert seen.outcome is not None
    assert seen.outcome.message == f"the node node-1 was lost, and pod {JOB}-worker-1 on node-1 with it"


def test_last_words_are_the_end_of_the_log() -> None:
    """By terminationMessagePolicy, where the container left no message."""
    log = "Traceback (most recent call last):\n  ...\nPermissionError: [Errno 13] Permission denied: '/root'\n"
    seen = observe(record(), job("Failed"), [ended(0, 1, message=log), pod(1)], NOW)
    assert seen.outcome is not None
    assert seen.outcome.message.startswith(f"pod {JOB}-worker-0 on node-0 ended with exit code 1; its last words: ")
    assert seen.outcome.message.endswith("| PermissionError: [Errno 13] Permission denied: '/root'")


def test_only_what_changes_a_record_is_news() -> None:
    running = job("Running"), [pod(0), pod(1)]
    first = record(pods={}, job_started="")
    seen = observe(first, *running, NOW)
    assert has_news(first, seen, NOW)
    known = updated(first, seen, NOW)
    assert not has_news(known, observe(known, *running, NOW + 60), NOW + 60)
    assert has_news(known, observe(known, job("Running"), [pod(0)], NOW + 60), NOW + 60), "a pod is gone"
    assert has_news(known, observe(known, None, running[1], NOW + 60), NOW + 60), "the job is gone"
