"""What becomes of waits, as a table: Events as kubelet and training operator write them, and the time that passes."""

from __future__ import annotations

from typing import Any

import pytest

from nanochat.pipeline.outcomes import Reason
from operators.attempts import JobAttempt
from operators.cluster import Cluster
from operators.kube_client import Listing, Resource
from operators.kube_error import Object
from operators.observation import AttemptObservation
from operators.sentences import Wait, Waiting
from operators.waits import Waits

NOW = 1_800_000_000.0
RECORD = JobAttempt(stage="base", number=1, job="demo-12ab-base-1")
STARTING = Wait.STARTING.of(pod="pod demo-12ab-base-1-worker-0", node="node-1")
FORBIDDEN = 'Error creating: pods "demo-12ab-base-1-worker-0" is forbidden: '
REFUSALS = [  # of the API server, after the training operator's "Error creating: "
    FORBIDDEN + "no PriorityClass with name nope was found",
    FORBIDDEN + 'error looking up service account team/nope: serviceaccount "nope" not found',
    FORBIDDEN + 'violates PodSecurity "restricted:latest": allowPrivilegeEscalation != false',
    FORBIDDEN + "exceeded quota: q, requested: requests.memory=2Gi, used: requests.memory=0, limited: 1Gi",
    FORBIDDEN + "maximum memory usage per Container is 1Gi, but limit is 2Gi",
    'Error creating: Pod "demo-12ab-base-1-worker-0" is invalid: spec.containers[0].resources.requests: '
    'Invalid value: "4": must be less than or equal to cpu limit of 2',
]


def event(reason: str, message: str, *, kind: str = "Warning", last: str = "2027-01-15T08:00:00Z") -> Object:
    """An Event by client-go's recorder."""
    return {
        "metadata": {"name": "e", "namespace": "team"},
        "involvedObject": {"uid": "uid"},
        "type": kind,
        "reason": reason,
        "message": message,
        "firstTimestamp": "2027-01-15T07:59:00Z",
        "lastTimestamp": last,
        "count": 3,
    }


def scheduled(reason: str, message: str, *, kind: str = "Warning") -> Object:
    """An Event by the scheduler, whose recorder is that of events.k8s.io."""
    own = {"lastTimestamp": None, "firstTimestamp": None, "eventTime": "2027-01-15T08:30:00.000001Z"}
    return event(reason, message, kind=kind) | own


class AskedKube:
    """An API server that has some Events, ConfigMaps and LocalQueues."""

    def __init__(self, events: list[Object], names: tuple[str, ...] = (RECORD.job, "team")) -> None:
        self.events, self.names, self.asked = events, names, 0

    def listing(self, _resource: Resource, _namespace: str, *, fieldSelector: str) -> Listing:
        assert fieldSelector == "involvedObject.uid=uid"
        self.asked += 1
        return Listing(self.events, 1)

    def get(self, _resource: Resource, _namespace: str, name: str) -> Object | None:
        self.asked += 1
        return {} if name in self.names else None


def follow(kube: AskedKube, waiting: Waiting, *, seconds: float) -> AttemptObservation:
    """What a wait has come to after so many seconds, looked at every five."""
    waits, seen = Waits("team"), AttemptObservation(waiting=waiting, about="uid")
    cluster: Any = Cluster(kube)  # type: ignore[arg-type]
    steady = 0.0
    followed = waits.follow(cluster, RECORD, seen, NOW, 1000.0)
    while steady < seconds and followed.outcome is None:
        steady += 5.0
        followed = waits.follow(cluster, RECORD, seen, NOW + steady, 1000.0 + steady)
    return followed


@pytest.mark.parametrize("refusal", REFUSALS)
def test_pods_that_the_api_server_refuses(refusal: str) -> None:
    kube = AskedKube([event("FailedCreatePod", refusal), event("SuccessfulCreateService", "Created", kind="Normal")])
    seen = follow(kube, Wait.PODS.of(), seconds=15)
    assert seen.waiting is not None and seen.outcome is None
    assert seen.waiting.reason == "PodsRefused" and refusal in seen.waiting.message
    later = follow(kube, Wait.PODS.of(), seconds=200)
    assert later.outcome is not None and later.outcome.reason is Reason.INFRASTRUCTURE
    assert refusal in later.outcome.message and later.outcome.message.endswith("(for 3 min)")


@pytest.mark.parametrize(
    ("events", "reason", "says"),
    [
        ([], "ContainerCreating", "starts on node-1"),
        ([event("Pulling", 'Pulling image "trainer"', kind="Normal")], "ContainerCreating", "starts on node-1"),
        (
            [event("FailedMount", 'MountVolume.SetUp failed for volume "files" : configmap "who" not found')],
            "FailedMount", 'cannot mount a volume on node-1: MountVolume.SetUp failed for volume "files"',
        ),
        (
            [event("FailedCreatePodSandBox", "Failed to create pod sandbox: no IP addresses available")],
            "FailedCreatePodSandBox", "node-1 cannot start pod demo-12ab-base-1-worker-0: FailedCreatePodSandBox: ",
        ),
        (
            [
                event("FailedMount", "configmap not found"),
                event("Pulling", "Pulling image", kind="Normal", last="2027-01-15T08:00:10Z"),
            ],
            "ContainerCreating", "starts on node-1",
        ),
        ([scheduled("FailedScheduling", "0/3 nodes are available")], "ContainerCreating", "starts on node-1"),
        ([scheduled("Scheduled", "assigned", kind="Normal")], "ContainerCreating", "starts on node-1"),
    ],
    ids=["silent", "pulls", "no ConfigMap", "no sandbox", "mounted since", "scheduled since", "scheduled"],
)  # fmt: skip
def test_a_pod_that_does_not_start(events: list[Object], reason: str, says: str) -> None:
    seen = follow(AskedKube(events), STARTING, seconds=15)
    assert seen.waiting is not None and seen.waiting.reason == reason and says in seen.waiting.message


def test_a_plan_that_is_gone_before_it_is_mounted() -> None:
    """The next attempt has another one."""
    lost = event("FailedMount", f'MountVolume.SetUp failed for volume "plan" : configmap "{RECORD.job}" not found')
    seen = follow(AskedKube([lost], names=()), STARTING, seconds=15)
    assert seen.outcome is not None and seen.outcome.reason is Reason.PREEMPTED
    assert seen.outcome.message.startswith(f"the ConfigMap {RECORD.job} with its plan was deleted")


def test_a_queue_that_is_not_there() -> None:
    waiting = Wait.QUEUE.of(queue="tema", why="LocalQueue tema doesn't exist")
    seen = follow(AskedKube([]), waiting, seconds=15)
    assert seen.waiting is not None and seen.waiting.reason == "LocalQueueMissing"
    later = follow(AskedKube([]), waiting, seconds=1000)
    assert later.outcome is not None and later.outcome.reason is Reason.USER_ERROR
    full = follow(AskedKube([]), Wait.QUEUE.of(queue="team", why="no quota"), seconds=10_000)
    assert full.outcome is None, "for quota one may wait as long as it takes"


@pytest.mark.parametrize("wait", Wait)
def test_every_wait_ends_by_its_rule(wait: Wait) -> None:
    places = dict.fromkeys(("queue", "why", "name", "since", "cause", "kind", "pod", "node"), "x")
    waiting = wait.of(**places)
    assert "{" not in waiting.message and waiting.reason.isalpha()
    if wait.patience is None:
        assert follow(AskedKube([], names=("x",)), waiting, seconds=10_000).outcome is None
        return
    before = follow(AskedKube([]), waiting, seconds=wait.patience - 5)
    assert before.outcome is None and before.waiting == waiting
    after = follow(AskedKube([]), waiting, seconds=wait.patience)
    assert after.outcome is not None and after.outcome.reason is wait.then


def test_questions_become_rare() -> None:
    kube = AskedKube([])
    follow(kube, STARTING, seconds=5)
    assert kube.asked == 0, "most pods start within seconds"
    follow(kube, STARTING, seconds=600)
    assert kube.asked == 12
