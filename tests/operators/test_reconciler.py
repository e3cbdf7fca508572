"""The loop against a cluster in memory and a real server of object storage, in the test's own time."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
from fake_cluster import FakeKube
from store_servers import StoreServer

from nanochat.pipeline.graph import build_graph
from nanochat.pipeline.outputs import Outputs
from nanochat.pipeline.run_status import read_status
from nanochat.pipeline.runs import RunPaths
from nanochat.spec.chatpipeline import RETRY, TRAINING_OPERATOR
from nanochat.spec.chatpipeline import UID as UID_LABEL
from nanochat.spec.errors import StorageError
from nanochat.spec.load import check_pipeline
from nanochat.storage.artifacts import Artifacts
from nanochat.storage.opening import open_store
from nanochat.storage.store import Store
from operators.claimants import Claimant
from operators.config import Config
from operators.kube_client import PODS, Resource
from operators.kube_error import KubeError
from operators.pytorchjob import PYTORCHJOBS
from operators.rate_limits import ProgressLimit
from operators.reconciler import PipelineReconciler, Run
from operators.services import Services
from operators.status import REACHABLE, condition
from operators.stores import Stores
from operators.suspicion import Suspicion

UID = "12ab34cd-0000-0000-0000-000000000000"
STALL = 60
BEGAN = 1_800_000_000.0


class FakeEvents:
    """Keeps what was said."""

    def __init__(self) -> None:
        self.said: list[str] = []
        self.messages: list[str] = []

    def emit(self, _reference: Any, _level: str, reason: str, message: str) -> None:
        self.said.append(reason)
        self.messages.append(message)


@dataclass
class Rig:
    """A pipeline, its controller, and the time, of which the date may be set."""

    cluster: FakeKube
    server: StoreServer
    services: Services
    store: Store
    run: Run
    steady: float = 1000.0
    annotations: dict[str, str] = field(default_factory=dict)
    suspended: bool = False
    image: str = "trainer:1"
    start_seconds: float = STALL

    def document(self) -> dict[str, Any]:
        return {
            "apiVersion": "nanochat.dev/v1alpha1",
            "kind": "ChatPipeline",
            "metadata": {"name": "demo", "namespace": "team", "annotations": dict(self.annotations)},
            "spec": {
                "model": {"depth": 2},
                "retries": {"stallSeconds": STALL, "startSeconds": self.start_seconds},
                "sources": {"text": {"kind": "world", "shards": 1}},
                "suspend": self.suspended,
                "pods": {"image": self.image},
            },
        }

    def reconcile(self, *, after: float = 5.0, watched: bool = True) -> dict[str, Any]:
        """What the status says after a reconciliation; unless it is `watched`, the watches have told of nothing yet."""
        self.cluster.now += after
        self.steady += after
        if watched:
            self.services.index.resync("")
        self.run.reconcile(self.cluster.declare(self.document(), uid=UID), self.cluster.now, self.steady)
        return self.cluster.status

    def restart(self) -> None:
        """Another controller, which knows nothing."""
        self.services = replace(self.services, **self.cluster.services(), suspicion=Suspicion())
        self.run = Run("team", "demo", UID, self.services)

    def report(self, step: int) -> None:
        """The stage's sign of life."""
        pod = self.cluster[PODS]["demo-12ab-dataset-1-worker-0"]["metadata"]["uid"]
        state = {"stage": "dataset", "launch": f"01-{pod[:8]}", "step": step, "time": self.cluster.now}
        self.store.write_json(f"runs/team.demo/{UID}/progress/dataset/{state['launch']}.json", state)

    def fail(self, job: str) -> None:
        """A pod of the job ends with exit code 1."""
        ended = {"terminated": {"exitCode": 1, "reason": "Error", "finishedAt": self.cluster.stamp()}}
        container = {"name": "pytorch", "image": "i", "imageID": "", "ready": False, "restartCount": 0, "state": ended}
        status = {"phase": "Failed", "containerStatuses": [container]}
        pod = self.cluster[PODS][f"{job}-worker-0"]
        self.cluster.change(PODS, pod | {"status": pod["status"] | status})

    def attempts(self) -> list[str]:
        return [attempt["reason"] for attempt in self.cluster.status.get("attempts", ())]


@pytest.fixture
def rig(tmp_path: Path, own_server: StoreServer) -> Rig:
    """A rig with a server of object storage of its own."""
    credentials, profile = own_server.write_credentials(tmp_path / "credentials"), own_server.profile()
    document = {"image": "trainer", "profiles": {"default": asdict(profile) | {"credentials": str(credentials)}}}
    config = Config.model_validate(document, by_alias=True)
    cluster = FakeKube(BEGAN)
    services: Any = Services(
        **cluster.services(),
        config=config,
        events=FakeEvents(),  # type: ignore[arg-type]
        stores=Stores(tmp_path / "cache"),
    )
    store = open_store(profile, patient=False, credentials=credentials)
    return Rig(cluster, own_server, services, store, Run("team", "demo", UID, services))


def test_silence_is_a_stall_and_the_next_attempt_is_another_job(rig: Rig) -> None:
    rig.reconcile()
    rig.report(1)
    rig.reconcile(after=STALL - 5)
    assert rig.attempts() == ["Running"]
    rig.reconcile(after=STALL + 5)
    assert rig.attempts() == ["Running"] and not rig.cluster[PODS], "its end is not known yet"
    rig.reconcile()
    assert rig.attempts() == ["Stalled", "Running"], "at once"
    assert rig.cluster.created == ["demo-12ab-dataset-1", "demo-12ab-dataset-2"]


def test_a_stall_names_the_rank_for_which_the_others_waited(rig: Rig) -> None:
    rig.reconcile()
    rig.report(1)
    rig.reconcile()
    pod = rig.cluster[PODS]["demo-12ab-dataset-1-worker-0"]
    path = RunPaths(f"runs/team.demo/{UID}").standstill("dataset", f"01-{pod['metadata']['uid'][:8]}")
    rig.store.write_json(path, {"waiting": [0], "standing": [1]})
    rig.reconcile(after=STALL + 5)
    rig.reconcile()
    message = rig.cluster.status["attempts"][0]["message"]
    assert message == f"no sign of life; it was stopped: rank 1 on {pod['spec']['nodeName']} stood still"


def test_a_stalled_attempts_pods_go_before_its_job_and_within_a_second(rig: Rig) -> None:
    """The training operator and garbage collection would leave them the grace of a stop."""
    rig.reconcile()
    rig.report(1)
    rig.reconcile()
    rig.cluster.asked.clear()
    rig.reconcile(after=STALL + 5)
    asked = [request for request in rig.cluster.asked if request.startswith(("delete", "patch pytorchjobs"))]
    assert asked == [
        'patch pytorchjobs {"runPolicy": {"cleanPodPolicy": "None"}}',
        "delete pods in 1 s",
        "delete pytorchjobs",
    ]


def test_what_the_training_operator_made_anew_before_a_controller_died_goes_too(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    rig.reconcile()
    rig.report(1)
    rig.reconcile()

    def dies(_job: Any) -> None:
        raise KubeError("killed")

    monkeypatch.setattr(rig.services.backend, "delete", dies)
    with pytest.raises(KubeError):
        rig.reconcile(after=STALL + 5)
    rig.cluster.start_pods("demo-12ab-dataset-1")
    rig.restart()
    rig.cluster.asked.clear()
    rig.reconcile()
    assert not rig.cluster[PODS] and "demo-12ab-dataset-1" not in rig.cluster[PYTORCHJOBS]
    rig.reconcile()
    assert rig.attempts() == ["Stalled", "Running"]


def test_a_node_whose_rank_stood_is_avoided_by_all_and_after_a_restart(rig: Rig) -> None:
    rig.reconcile()
    rig.report(1)
    rig.reconcile()
    rig.reconcile(after=STALL + 5)
    rig.reconcile()
    assert rig.cluster.status["attempts"][0]["suspects"] == ["node-0"]
    assert "NodeSuspected" in rig.services.events.said  # type: ignore[attr-defined]

    def avoided(job: str) -> list[str]:
        template = rig.cluster[PYTORCHJOBS][job]["spec"]["pytorchReplicaSpecs"]["Worker"]["template"]["spec"]
        terms = template["affinity"]["nodeAffinity"]["preferredDuringSchedulingIgnoredDuringExecution"]
        return [term["preference"]["matchFields"][0]["values"][0] for term in terms]

    assert avoided("demo-12ab-dataset-2") == ["node-0"]
    rig.restart()
    rig.cluster.delete(PYTORCHJOBS, "team", "demo-12ab-dataset-2")
    rig.reconcile()
    rig.reconcile()
    assert avoided("demo-12ab-dataset-3") == ["node-0"]


def test_an_attempt_that_is_silent_because_its_node_is_did_not_stall(rig: Rig) -> None:
    """The node controller says of the pods of a node that does not answer that they are not ready."""
    rig.reconcile()
    rig.report(1)
    rig.reconcile()
    pod = rig.cluster[PODS]["demo-12ab-dataset-1-worker-0"]
    conditions = [{"type": "ContainersReady", "status": "True"}, {"type": "Ready", "status": "False"}]
    rig.cluster.change(PODS, pod | {"status": pod["status"] | {"conditions": conditions}})
    rig.reconcile(after=STALL + 5)
    rig.reconcile()
    assert rig.attempts() == ["Preempted", "Running"]
    (first, _) = rig.cluster.status["attempts"]
    assert "node-0 was lost" in first["message"] and first.get("suspects") is None


def test_a_new_attempt_shows_no_step_of_the_one_before(rig: Rig) -> None:
    rig.reconcile()
    rig.report(7)
    assert rig.reconcile()["stages"][0]["step"] == 7
    rig.reconcile(after=STALL + 5)
    for _ in range(2):
        assert rig.reconcile()["stages"][0].get("step") is None
    assert rig.attempts() == ["Stalled", "Running"]


def test_pods_that_outlive_their_job_are_ended_before_the_next_attempt(rig: Rig) -> None:
    """As `kubectl delete --cascade=orphan` leaves them: without an owner."""
    rig.reconcile()
    rig.report(1)
    rig.reconcile()
    pod = rig.cluster[PODS]["demo-12ab-dataset-1-worker-0"]
    meta = {name: value for name, value in pod["metadata"].items() if name != "ownerReferences"}
    rig.cluster.change(PODS, pod | {"metadata": meta})
    del rig.cluster[PYTORCHJOBS]["demo-12ab-dataset-1"]
    rig.reconcile()
    assert rig.attempts() == ["Running"] and not rig.cluster[PODS], "its pods are deleted first"
    rig.reconcile()
    assert rig.attempts() == ["Preempted", "Running"]


def test_until_its_first_step_an_attempt_may_be_silent_for_longer(rig: Rig) -> None:
    rig.start_seconds = 3 * STALL
    rig.reconcile()
    rig.reconcile(after=2 * STALL)
    rig.report(0)
    rig.reconcile()
    rig.reconcile(after=2 * STALL)
    assert rig.attempts() == ["Running"] and rig.cluster[PODS]
    rig.report(1)
    rig.reconcile()
    rig.reconcile(after=STALL + 5)
    assert not rig.cluster[PODS], "it was stopped"


def test_a_launch_is_not_silent_for_what_the_one_before_wrote(rig: Rig) -> None:
    """Kueue may stop a job and start it again; the one before it may still write."""
    rig.start_seconds = 3 * STALL
    rig.reconcile()
    rig.report(7)
    rig.reconcile()
    job, pod = rig.cluster[PYTORCHJOBS]["demo-12ab-dataset-1"], dict(rig.cluster[PODS])
    rig.cluster.change(PYTORCHJOBS, job | {"status": {"startTime": "2027-01-15T09:00:00Z"}})
    rig.cluster[PODS].clear()
    rig.cluster.start_pods("demo-12ab-dataset-1")
    rig.reconcile()
    rig.store.write_json(  # the one before, late
        f"runs/team.demo/{UID}/progress/dataset/01-{next(iter(pod.values()))['metadata']['uid'][:8]}.json",
        {"stage": "dataset", "launch": "01-x", "step": 9, "time": rig.cluster.now},
    )
    rig.reconcile(after=2 * STALL)
    assert rig.attempts() == ["Running"] and rig.cluster[PODS], "it has not begun"


@pytest.mark.parametrize("by", [-3600.0, 7200.0])
def test_a_clock_that_is_set_is_no_silence_and_hides_none(rig: Rig, by: float) -> None:
    rig.reconcile()
    rig.report(1)
    rig.reconcile()
    rig.cluster.now += by
    rig.reconcile(after=STALL - 10)
    assert rig.attempts() == ["Running"]
    rig.reconcile(after=20)
    rig.reconcile()
    assert rig.attempts() == ["Stalled", "Running"]
    rig.fail("demo-12ab-dataset-2")
    rig.reconcile()
    rig.reconcile()
    assert rig.attempts() == ["Stalled", "Error"]
    rig.cluster.now += by
    rig.reconcile(after=60)
    assert rig.attempts() == ["Stalled", "Error", "Running"], "nor does it prolong the delay before the next attempt"


@pytest.mark.parametrize("asked", ["2000-01-01T00:00:00Z", "2100-01-01T00:00:00Z", "please"])
def test_a_retry_is_taken_whatever_clock_its_asker_has(rig: Rig, asked: str) -> None:
    rig.reconcile()
    for _ in range(9):
        rig.reconcile(after=STALL + 5)
        rig.reconcile(after=600)
    assert rig.cluster.status["phase"] == "Failed"
    before = len(rig.cluster.created)
    rig.annotations[RETRY] = asked
    rig.reconcile()
    assert len(rig.cluster.created) == before + 1 and rig.cluster.status["retriedAt"] == asked
    rig.restart()
    assert rig.reconcile()["phase"] == "Running", "another controller knows of it"


def test_storage_that_was_away_is_no_silence(rig: Rig) -> None:
    """While nobody can hear a stage it is not silent, nor at once when it can be heard again."""
    rig.reconcile()
    rig.report(1)
    rig.reconcile()
    rig.server.kill()
    for _ in range(2):
        told = rig.reconcile(after=STALL / 2)
        assert told.get("message") is None and reachable(told) == "True", "once or twice it may be a busy machine"
    for _ in range(2):
        told = rig.reconcile(after=STALL / 2)
        assert "does not answer" in told["message"] and reachable(told) == "False"
    rig.server.restart()
    rig.reconcile()
    assert rig.attempts() == ["Running"] and reachable(rig.cluster.status) == "True"
    rig.reconcile(after=STALL + 5)
    rig.reconcile()
    assert rig.attempts() == ["Stalled", "Running"]


def reachable(told: dict[str, Any]) -> str:
    """The status of the condition StorageReachable."""
    found = condition(told, "StorageReachable")
    assert found is not None
    return found[0]


def test_a_controller_that_dies_before_it_records_an_attempt(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    """The job is there and its record is not: the next one adopts it."""
    rig.reconcile()
    for entry in rig.store.list(f"runs/team.demo/{UID}/attempts"):
        rig.store.delete(entry.path)
    rig.restart()
    rig.reconcile()
    assert rig.attempts() == ["Running"]
    assert rig.cluster.created == ["demo-12ab-dataset-1"]


QUOTA = 'pytorchjobs.kubeflow.org "demo" is forbidden: exceeded quota: q, requested: count/pytorchjobs=1'
REFUSALS = {
    "JobRefused": KubeError("cannot", said=QUOTA, status=403, code="Forbidden", kind="pytorchjobs"),
    "JobKindMissing": KubeError("cannot", said="404 page not found", status=404),
    "JobNotCreated": KubeError("cannot", said="failed calling webhook", status=500, code="InternalError"),
}


@pytest.mark.parametrize("reason", REFUSALS)
def test_a_job_that_the_api_server_refuses(rig: Rig, reason: str) -> None:
    """It is said, tried again, and given up by a rule."""
    rig.cluster.refuses_jobs = REFUSALS[reason]
    told = rig.reconcile()
    assert (told["phase"], told["stages"][0]["phase"], told["stages"][0]["reason"]) == ("Pending", "Pending", reason)
    assert told["message"].startswith("dataset: ")
    rig.reconcile(after=250)
    assert rig.attempts() == []
    rig.cluster.refuses_jobs = None
    assert rig.reconcile()["phase"] == "Running" and rig.attempts() == ["Running"]


@pytest.mark.parametrize("reason", ["JobKindMissing", "JobNotCreated"])
def test_a_cluster_without_training_operator(rig: Rig, reason: str) -> None:
    """It is said with the command that installs it, for as long as it takes, and then it goes on by itself."""
    rig.cluster.refuses_jobs = REFUSALS[reason]
    for _ in range(30):
        told = rig.reconcile(after=600)
        assert (told["phase"], told["stages"][0]["reason"]) == ("Pending", reason)
        assert told["message"].endswith(TRAINING_OPERATOR)
    rig.restart()
    assert rig.reconcile()["stages"][0]["reason"] == reason
    rig.cluster.refuses_jobs = None
    assert rig.reconcile()["phase"] == "Running" and rig.attempts() == ["Running"]
    assert rig.cluster.created == ["demo-12ab-dataset-1"], "no attempt was counted"


def test_jobs_that_nothing_takes_up(rig: Rig) -> None:
    """PyTorchJobs are known, and no training operator runs."""
    rig.cluster.takes_up_jobs = False
    rig.reconcile()
    assert rig.reconcile()["stages"][0]["reason"] == "JobNotTakenUp", "that takes a second where one runs"
    for _ in range(30):
        told = rig.reconcile(after=600)
        assert told["phase"] == "Pending"
    assert told["stages"][0]["reason"] == "TrainingOperatorMissing" and told["message"].endswith(TRAINING_OPERATOR)
    rig.cluster.take_up("demo-12ab-dataset-1")
    assert rig.reconcile()["phase"] == "Running" and rig.attempts() == ["Running"]
    assert rig.cluster.created == ["demo-12ab-dataset-1"]


def test_a_job_that_is_refused_for_too_long(rig: Rig) -> None:
    rig.cluster.refuses_jobs = REFUSALS["JobRefused"]
    rig.reconcile()
    rig.reconcile(after=300)
    told = rig.reconcile()
    assert told["phase"] == "Failed" and QUOTA in told["message"] and rig.attempts() == ["UserError"]


def test_an_edit_mends_what_does_not_get_to_run(rig: Rig) -> None:
    """The job that waits is made of what was declared before: it is made anew, and that counts for nothing."""
    rig.reconcile()
    pod = rig.cluster[PODS]["demo-12ab-dataset-1-worker-0"]
    why = {"waiting": {"reason": "ImagePullBackOff", "message": "no such image"}}
    container = {"name": "pytorch", "image": "i", "imageID": "", "ready": False, "restartCount": 0, "state": why}
    rig.cluster.change(PODS, pod | {"status": {"phase": "Pending", "containerStatuses": [container]}})
    assert rig.reconcile()["stages"][0]["reason"] == "ImagePullBackOff"
    rig.reconcile()
    assert rig.cluster.created == ["demo-12ab-dataset-1"], "nothing was edited"
    rig.image = "trainer:2"
    for _ in range(3):
        rig.reconcile()
    assert rig.cluster.created == ["demo-12ab-dataset-1", "demo-12ab-dataset-2"]
    assert rig.attempts() == ["Preempted", "Running"]
    rig.image = "trainer:3"
    for _ in range(3):
        rig.reconcile()
    assert rig.attempts() == ["Preempted", "Running"], "what runs goes on with what it began with"


def test_what_makes_no_sense_is_said_once_and_the_rest_goes_on(rig: Rig) -> None:
    """Records that are no JSON or lack fields, and a job whose annotation is none."""
    rig.reconcile()
    folder = f"runs/team.demo/{UID}/attempts/dataset"
    rig.store.write(f"{folder}/0001.json", b"{")
    rig.store.write_json(f"{folder}/0002.json", {"number": 2, "started": "yesterday"})
    job = rig.cluster[PYTORCHJOBS]["demo-12ab-dataset-1"]
    job["metadata"]["annotations"]["nanochat.dev/attempt"] = "no JSON"
    rig.restart()
    told = rig.reconcile()
    assert told["phase"] == "Running" and rig.attempts() == ["Running"]
    rig.reconcile()
    events: Any = rig.services.events
    said = [text for reason, text in zip(events.said, events.messages, strict=True) if reason == "RecordSetAside"]
    assert len(said) == 2 and "is passed over (and 1 more)" in said[0] and "has no annotation" in said[1]
    assert rig.cluster.created == ["demo-12ab-dataset-1"]


def test_a_fault_of_the_controller_is_said(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is nobody's fault outside, so that nothing but the status would tell of it."""
    reconciler = PipelineReconciler("team", "demo", rig.services)
    rig.cluster.declare(rig.document(), uid=UID)
    rig.services.index.resync("")
    with monkeypatch.context() as broken:
        broken.setattr(Run, "reconcile", lambda *_: [][0])
        with pytest.raises(IndexError):
            reconciler.reconcile()
    assert "a fault of the controller (IndexError)" in rig.cluster.status["message"]
    rig.services.index.resync("")
    reconciler.reconcile()
    assert rig.cluster.status["phase"] == "Running" and "message" not in rig.cluster.status


def test_a_job_that_was_deleted_by_hand(rig: Rig) -> None:
    rig.reconcile()
    rig.cluster.delete(PYTORCHJOBS, "team", "demo-12ab-dataset-1")
    rig.reconcile()
    assert rig.attempts()[0] == "Preempted"
    rig.reconcile()
    assert rig.cluster.created == ["demo-12ab-dataset-1", "demo-12ab-dataset-2"]


JOB, POD = "demo-12ab-dataset-1", "demo-12ab-dataset-1-worker-0"


def end(rig: Rig) -> None:
    """The job's pod fails, and the training operator calls the job failed."""
    rig.fail(JOB)
    body = rig.cluster[PYTORCHJOBS][JOB]
    failed = {"conditions": [{"type": "Failed", "status": "True"}]}
    rig.cluster.change(PYTORCHJOBS, body | {"status": body["status"] | failed})


def test_progress_alone_is_told_now_and_then_and_all_else_at_once(rig: Rig) -> None:
    rig.run.services = rig.services = replace(rig.services, progress=ProgressLimit(lambda: rig.steady))
    rig.reconcile()
    steps: list[int] = []
    rig.cluster.asked.clear()
    for step in range(1, 9):
        rig.report(step)
        rig.reconcile(watched=False)
        steps.append(rig.cluster.status["stages"][0].get("step", 0))
    assert steps == [1, 2, 2, 4, 4, 6, 6, 8], "with the phase Running at once, then with every other look"
    assert rig.cluster.asked.count("patch status") == 5
    rig.report(9)
    end(rig)
    rig.reconcile()
    assert rig.attempts() == ["Error"] and rig.cluster.asked.count("patch status") == 6


def test_a_pass_that_was_told_slow_says_so_no_more_when_it_is_over(rig: Rig) -> None:
    rig.reconcile()
    found = rig.services.index.pipeline("team", "demo")
    assert found is not None
    rig.run.tell_slow(found.body, 20.0)
    told = condition(rig.cluster.status, REACHABLE)
    assert told is not None and told[:2] == ("Unknown", "Slow") and rig.cluster.status["message"] == told[2]
    rig.run.reconcile(found.body, rig.cluster.now, rig.steady)  # it began before that was told
    assert condition(rig.cluster.status, REACHABLE) == ("True", "Reached", "")
    assert rig.cluster.status.get("message") != told[2]
    rig.run.tell_slow(found.body, 20.0)
    assert condition(rig.cluster.status, REACHABLE) == ("True", "Reached", ""), "it came too late"


def relabel(rig: Rig, resource: Resource, name: str, value: str | None) -> None:
    """Somebody takes an object's label off, or gives it another value."""
    body = rig.cluster[resource][name]
    labels = {label: text for label, text in body["metadata"]["labels"].items() if label != UID_LABEL}
    labels |= {} if value is None else {UID_LABEL: value}
    rig.cluster.change(resource, body | {"metadata": body["metadata"] | {"labels": labels}})


@pytest.mark.parametrize("restarted", [False, True])
@pytest.mark.parametrize("value", [None, "another"])
def test_a_job_that_lost_its_label_gets_it_back_and_goes_on(rig: Rig, value: str | None, restarted: bool) -> None:
    rig.reconcile()
    relabel(rig, PYTORCHJOBS, JOB, value)
    if restarted:
        rig.restart()
    rig.reconcile()
    assert rig.attempts() == ["Running"] and rig.cluster.created == [JOB]
    assert rig.cluster[PYTORCHJOBS][JOB]["metadata"]["labels"][UID_LABEL] == UID
    assert len(rig.cluster[PODS]) == 1, "its pods are left alone"
    rig.services.index.resync("")
    rig.cluster.asked.clear()
    rig.reconcile(watched=False)
    assert rig.cluster.asked == [], "the index knows it again"


def test_a_job_without_label_or_record_is_found_before_another_is_made(rig: Rig) -> None:
    rig.reconcile()
    for entry in rig.store.list(f"runs/team.demo/{UID}/attempts"):
        rig.store.delete(entry.path)
    relabel(rig, PYTORCHJOBS, JOB, None)
    rig.restart()
    rig.reconcile()
    rig.reconcile()
    assert rig.attempts() == ["Running"] and rig.cluster.created == [JOB]
    assert rig.cluster[PYTORCHJOBS][JOB]["metadata"]["labels"][UID_LABEL] == UID


def test_a_job_of_another_owner_is_not_taken_for_ours_by_its_name(rig: Rig) -> None:
    rig.reconcile()
    body = rig.cluster[PYTORCHJOBS][JOB]
    owner = body["metadata"]["ownerReferences"][0] | {"uid": "another"}
    relabel(rig, PYTORCHJOBS, JOB, None)
    body = rig.cluster[PYTORCHJOBS][JOB]
    rig.cluster.change(PYTORCHJOBS, body | {"metadata": body["metadata"] | {"ownerReferences": [owner]}})
    rig.reconcile()
    assert UID_LABEL not in rig.cluster[PYTORCHJOBS][JOB]["metadata"]["labels"]
    assert JOB in rig.cluster[PYTORCHJOBS], "it is left alone"
    rig.reconcile()
    assert rig.attempts() == ["Preempted", "Running"]


def test_an_ended_job_that_lost_its_label_is_not_left_behind(rig: Rig) -> None:
    rig.reconcile()
    end(rig)
    rig.reconcile()
    assert rig.attempts() == ["Error"] and JOB in rig.cluster[PYTORCHJOBS]
    relabel(rig, PYTORCHJOBS, JOB, None)
    rig.reconcile()
    rig.reconcile(after=7 * 86400.0)
    assert JOB not in rig.cluster[PYTORCHJOBS]


def test_a_pod_that_lost_its_label_is_followed_to_its_end(rig: Rig) -> None:
    rig.reconcile()
    rig.reconcile()
    relabel(rig, PODS, POD, None)
    rig.reconcile()
    assert rig.attempts() == ["Running"] and POD in rig.cluster[PODS]
    rig.fail(JOB)
    rig.reconcile()
    rig.reconcile()
    assert rig.attempts() == ["Error"], "its exit is seen"


def test_a_pod_without_label_ends_before_the_next_attempt_begins(rig: Rig) -> None:
    rig.reconcile()
    rig.reconcile()
    relabel(rig, PODS, POD, None)
    del rig.cluster[PYTORCHJOBS][JOB]  # and its pod is still there, as it is while it stops
    rig.reconcile()
    assert rig.cluster.created == [JOB] and POD not in rig.cluster[PODS], "it was deleted by its name"
    rig.reconcile()
    assert rig.attempts() == ["Preempted", "Running"]


def test_a_steady_attempt_asks_the_api_server_for_nothing(rig: Rig) -> None:
    rig.reconcile()
    rig.reconcile()
    rig.cluster.asked.clear()
    rig.reconcile(watched=False)
    assert rig.cluster.asked == []
    (pod,) = rig.cluster[PODS].values()
    pod["status"]["phase"] = "Pending"
    pod["metadata"]["resourceVersion"] = "1000000"
    rig.services.index.pods.put(rig.services.backend.read_pod(pod))
    rig.reconcile(watched=False)
    assert rig.cluster.asked[:2] == ["list pods", "list pytorchjobs"], "there is news: pods first"


def test_a_job_whose_creation_was_not_answered_is_adopted(rig: Rig) -> None:
    rig.cluster.lose_answer = True
    with pytest.raises(KubeError):
        rig.reconcile()
    rig.reconcile(watched=False)
    assert rig.attempts() == ["Running"]
    assert rig.cluster.created == ["demo-12ab-dataset-1"]


def test_pods_that_kueue_removed_are_not_taken_for_deleted(rig: Rig) -> None:
    """The watch of pods is ahead of that of jobs: the job, which is suspended, still seems to run."""
    rig.reconcile()
    rig.reconcile()
    job = rig.cluster[PYTORCHJOBS]["demo-12ab-dataset-1"]
    job["spec"]["runPolicy"]["suspend"] = True
    job["metadata"] |= {"generation": 2, "resourceVersion": "1000000"}
    job["metadata"]["labels"]["kueue.x-k8s.io/queue-name"] = "team"
    (pod,) = rig.cluster[PODS].values()
    rig.services.index.pods.remove(rig.services.backend.read_pod(pod).meta)
    rig.cluster[PODS].clear()
    assert rig.reconcile(watched=False)["stages"][0]["reason"] == "WorkloadMissing"
    assert rig.attempts() == ["Running"]


def test_nothing_starts_while_the_records_cannot_be_read(rig: Rig) -> None:
    """Without them a stage might be started twice."""
    rig.server.kill()
    for _ in range(3):
        status = rig.reconcile()
    assert status["phase"] == "Waiting" and "storage cannot be reached" in status["message"]
    assert rig.cluster.created == []
    with pytest.raises(StorageError):
        rig.store.read("runs", 1 << 20)
    rig.server.restart()
    rig.reconcile()
    assert rig.cluster.created == ["demo-12ab-dataset-1"]


def test_what_another_pipeline_has_just_made_is_not_made_again(rig: Rig, tmp_path: Path) -> None:
    """Another lets go of a key when its artifact is there: whoever waited looks before it starts."""
    claims, outputs = rig.services.claims, build_graph(check_pipeline(rig.document()).spec).node("dataset").outputs
    elder = Claimant("older", "lab", "elder", root=rig.store.root, profile="default")
    claims.settle(elder, [out.key for out in outputs])
    told = rig.reconcile()
    assert (told["phase"], told["stage"]) == ("Waiting", "dataset")
    assert told["message"].startswith("dataset: waits for ") and "lab/elder" in told["message"]
    for out in outputs:
        with Artifacts(rig.store, tmp_path / "other").writer(out.kind, out.key, "01-elder") as writer:
            (writer.folder / "file").write_bytes(b"made")
            writer.commit(recipe={}, inputs={})
    claims.settle(elder)
    rig.reconcile(after=1)
    assert rig.cluster.created == ["demo-12ab-tokenizer-1"]


def test_an_attempt_stops_when_another_run_has_made_the_same(rig: Rig, tmp_path: Path) -> None:
    rig.reconcile()
    outputs = build_graph(check_pipeline(rig.document()).spec).node("dataset").outputs
    for out in outputs:
        with Artifacts(rig.store, tmp_path / "other").writer(out.kind, out.key, "01-faster") as writer:
            (writer.folder / "file").write_bytes(b"made")
            writer.commit(recipe={}, inputs={})
    rig.reconcile()
    assert [*rig.cluster[PYTORCHJOBS]] == ["demo-12ab-tokenizer-1"], "at once, and what needs it goes on"
    told = rig.reconcile()
    assert told["stages"][0]["phase"] == "Cached"
    assert [attempt["message"] for attempt in told["attempts"]] == ["made by another run", None]
    assert rig.cluster.created == ["demo-12ab-dataset-1", "demo-12ab-tokenizer-1"]


def test_the_attempt_that_made_the_artifact_ends_by_itself(rig: Rig, tmp_path: Path) -> None:
    rig.reconcile()
    rig.reconcile()
    pod = rig.cluster[PODS]["demo-12ab-dataset-1-worker-0"]["metadata"]["uid"]
    for out in build_graph(check_pipeline(rig.document()).spec).node("dataset").outputs:
        with Artifacts(rig.store, tmp_path / "other").writer(out.kind, out.key, f"01-{pod[:8]}") as writer:
            (writer.folder / "file").write_bytes(b"made")
            writer.commit(recipe={}, inputs={})
    rig.reconcile()
    assert rig.reconcile()["stages"][0]["phase"] == "Running"


def raise_storage_error(*_: Any, **__: Any) -> None:
    raise StorageError("it gave no answer in time")


def test_what_a_finished_pipeline_made_is_made_anew_only_when_asked(
    rig: Rig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    graph, made = build_graph(check_pipeline(rig.document()).spec), Artifacts(rig.store, tmp_path / "other")
    for out in [out for node in graph.nodes for out in node.outputs]:
        with made.writer(out.kind, out.key, "01-before") as writer:
            (writer.folder / "file").write_bytes(b"made")
            writer.commit(recipe={}, inputs={})
    assert rig.reconcile()["phase"] == "Succeeded"
    (model,) = graph.node("sft").outputs
    rig.store.write(f"{made.folder(model.kind, model.key)}/01-before/file", b"cut")
    rig.cluster.status["conditions"][1]["status"] = "False"  # it was told while the store was away
    rig.services = replace(rig.services, stores=Stores(tmp_path / "cache"))
    rig.restart()
    with monkeypatch.context() as patch:
        patch.setattr(Outputs, "refresh", raise_storage_error)
        told = rig.reconcile()
    assert (told["phase"], told.get("message")) == ("Succeeded", None), "what could not be seen is not gone"
    told = rig.reconcile()
    assert (told["phase"], rig.cluster.created) == ("Succeeded", [])
    assert told["message"] == f"sft: {model.ref} is gone or damaged: `nanochat retry` makes it anew"
    assert rig.reconcile()["message"] == told["message"]
    rig.annotations[RETRY] = "2027-01-15T09:00:00Z"
    assert rig.reconcile()["phase"] == "Running"
    rig.reconcile()
    assert rig.cluster.created == ["demo-12ab-sft-1"]


def test_suspends_never_count(rig: Rig) -> None:
    for _ in range(6):
        rig.reconcile()
        rig.suspended = True
        assert rig.reconcile()["stages"][0]["message"] == "suspended"
        rig.reconcile()
        rig.suspended = False
    told = rig.reconcile()
    assert (told["phase"], rig.attempts()) == ("Running", ["Preempted"] * 6 + ["Running"])


def test_a_run_is_held_until_its_pipeline_has_ended_or_is_gone(rig: Rig) -> None:
    """What `gc` reads: the lease, and the status in the run's folder."""
    rig.reconcile()
    root = RunPaths.of(namespace="team", name="demo", uid=UID).root
    assert rig.services.leases.since(rig.store, root) is not None
    assert [entry.path for entry in rig.store.list("leases")], "it is written before anything is looked for"
    rig.run.end()
    assert rig.services.leases.since(rig.store, root) is None
    told = read_status(rig.store, RunPaths(root))
    assert told is not None and (told.phase, told.message) == ("Cancelled", "the pipeline was deleted")
