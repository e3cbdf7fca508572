"""Stages that go on with fewer nodes and grow back: the decisions as a table, and the controller's part as stories."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from training_rig import PATIENCE, Rig

from nanochat.pipeline.graph import build_graph
from nanochat.pipeline.outcomes import Outcome, Reason
from nanochat.pipeline.planner import EDITED, SUSPENDED
from nanochat.spec.errors import UserError
from nanochat.spec.load import check_pipeline
from nanochat.spec.pipeline import PipelineSpec
from nanochat.storage.artifacts import Artifacts
from operators.attempts import JobAttempt
from operators.elastic import Elastic, Room
from operators.kube_client import CONFIG_MAPS, EVENTS, PODS
from operators.kube_error import KubeError
from operators.kueue import LOCAL_QUEUES, WORKLOADS
from operators.pytorchjob import PYTORCHJOBS

FOUR = Elastic(most=4, least=2, patience=PATIENCE)
ROOM = "demo-12ab-base-room"


# ---- decisions -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("room", "nodes"),
    {
        "all run": (Room(4), None),
        "it waits, not for long": (Room(4, placed=3, lacks=59), None),
        "what the pool has": (Room(4, placed=3, lacks=60), 3),
        "the least that will do": (Room(4, placed=2, lacks=60), 2),
        "less than will do": (Room(4, placed=1, lacks=1e6), None),
        "nothing": (Room(4, placed=0, lacks=1e6), None),
        "fewer still": (Room(3, placed=2, lacks=60), 2),
        "the least waits for as long as it takes": (Room(2, placed=1, lacks=1e6), None),
        "a queue says not for how many": (Room(4, lacks=60, queued=True), 3),
        "half of what may go at a time": (Room(3, lacks=60, queued=True), 2),
        "a queue, not for long": (Room(4, lacks=59, queued=True), None),
        "the least in a queue": (Room(2, lacks=1e6, queued=True), None),
        "room for all again": (Room(2, free=2), 4),
        "room for one more, and perhaps for another": (Room(2, free=1, free_for=59), None),
        "room for one more": (Room(2, free=1, free_for=60), 3),
        "no room": (Room(2, free=0, free_for=1e6), None),
        "more room than it needs, after an edit": (Room(3, free=2), 4),
        "more nodes than are declared, after an edit": (Room(6, free=1), None),
    }.values(),
)
def test_the_number_of_nodes_of_the_attempt_that_replaces_one(room: Room, nodes: int | None) -> None:
    assert FOUR.resized(room) == nodes


def ended(nodes: int, **more: Any) -> JobAttempt:
    return JobAttempt(stage="base", number=1, nodes=nodes, outcome=Outcome(Reason.PREEMPTED, ""), **more)


@pytest.mark.parametrize(
    ("last", "nodes"),
    {
        "the first": (None, 4),
        "a node was lost": (ended(4), 4),
        "and of fewer one more": (ended(3), 3),
        "it shrinks": (ended(4, resize=3, stopping="resized"), 3),
        "it grows": (ended(2, resize=4, stopping="resized"), 4),
        "after a pause all are asked for": (ended(2, stopping=SUSPENDED), 4),
        "and after an edit of what it makes": (ended(2, stopping=EDITED), 4),
        "and after a retry": (ended(2, former=True), 4),
        "nodes were edited below": (ended(6), 4),
        "minNodes was edited above": (ended(1), 2),
        "both were edited while it shrank": (ended(8, resize=6), 4),
    }.values(),
)
def test_the_number_of_nodes_of_the_next_attempt(last: JobAttempt | None, nodes: int) -> None:
    assert FOUR.next_nodes(last) == nodes


def spec_of(**base: Any) -> PipelineSpec:
    head = {"apiVersion": "nanochat.dev/v1alpha1", "kind": "ChatPipeline", "metadata": {"name": "demo"}}
    return check_pipeline(head | {"spec": {"stages": {"base": base}}}).spec


def test_what_a_stage_declares() -> None:
    assert Elastic.of(spec_of(nodes=4, minNodes=2, patienceSeconds=60), "base") == FOUR
    assert Elastic.of(spec_of(nodes=4), "base") is None, "as many as declared, or none"
    assert Elastic.of(spec_of(nodes=4, minNodes=4), "base") is None
    assert Elastic.of(spec_of(), "dataset") is None
    with pytest.raises(UserError) as caught:
        spec_of(nodes=2, minNodes=3)
    assert caught.value.message.endswith(
        "'spec.stages.base': minNodes (3) is above nodes (2): a stage does with fewer nodes, never with more"
    )


@pytest.mark.parametrize("settings", [{"minNodes": 2}, {"minNodes": 1, "patienceSeconds": 5}])
def test_keys_are_those_of_a_stage_that_is_not_elastic(settings: dict[str, Any]) -> None:
    keys = [
        [out.key for node in build_graph(spec).nodes for out in node.outputs]
        for spec in (spec_of(nodes=4), spec_of(nodes=4, **settings))
    ]
    assert keys[0] == keys[1]


# ---- stories ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def rig(tmp_path: Path) -> Rig:
    return Rig(tmp_path)


def shrink(rig: Rig, *, restarts: bool = False) -> None:
    """Train with two nodes, lose one, and go on with the other."""
    rig.reconcile()
    rig.train(1)
    rig.reconcile()
    rig.cluster.lose_node("b")
    rig.reconcile(restarts=restarts)  # the job is deleted
    rig.reconcile(restarts=restarts)  # the next attempt
    rig.reconcile(restarts=restarts)  # which waits
    for _ in range(3):
        rig.reconcile(after=PATIENCE / 2)
    rig.reconcile(restarts=restarts)
    assert rig.attempts() == [("Preempted", 2), ("Preempted", 2), ("Running", 1)]


def test_a_lost_node_does_not_stop_training_and_comes_back(rig: Rig) -> None:
    rig.reconcile()
    rig.train(1)
    rig.reconcile()
    rig.cluster.lose_node("b")
    rig.reconcile()
    rig.reconcile()
    told = rig.reconcile()
    assert told["message"] == (
        "base: cannot be scheduled: no room (after 1 min it goes on with fewer nodes, if there is room for 1)"
    )
    assert told["phase"] == "Pending" and told["stages"][3]["reason"] == "Unschedulable"
    rig.reconcile(after=PATIENCE)
    told = rig.reconcile()
    assert [attempt["message"] for attempt in told["attempts"][1:]] == [
        "there was no room for all nodes within 1 min: it goes on with 1 of 2", None,
    ]  # fmt: skip
    assert rig.attempts() == [("Preempted", 2), ("Preempted", 2), ("Running", 1)]
    assert json.loads(rig.cluster[CONFIG_MAPS]["demo-12ab-base-3"]["data"]["plan.json"])["nodes"] == 1
    assert rig.jobs() == {"demo-12ab-base-3": 1}
    rig.train(3)
    told = rig.reconcile()
    assert told["message"] == "base: runs on 1 of 2 nodes, and takes all again when there is room"
    assert (told["phase"], told["stages"][3]["reason"]) == ("Running", "FewerNodes")
    rig.reconcile(after=PATIENCE - 20)
    assert rig.jobs() == {"demo-12ab-base-3": 1}, "first it is to get further"
    rig.train(3)
    rig.reconcile(after=PATIENCE)
    rig.train(3)
    rig.reconcile(after=10 * PATIENCE)
    assert rig.jobs() == {"demo-12ab-base-3": 1, ROOM: 1}, "it asks for a node, and trains on"
    assert rig.attempts()[2:] == [("Running", 1)]
    assert rig.cluster.nodes is not None
    rig.cluster.nodes.append("c")
    rig.cluster.place_pods()
    rig.train(3)
    rig.reconcile()
    assert rig.jobs() == {ROOM: 1}, "nobody else gets that node meanwhile"
    told = rig.reconcile()
    assert rig.attempts() == [("Preempted", 2), ("Preempted", 2), ("Preempted", 1), ("Running", 2)]
    assert told["attempts"][2]["message"] == "there is room again: it goes on with 2 of 2 nodes"
    assert rig.jobs() == {"demo-12ab-base-4": 2}
    told = rig.reconcile()
    assert (told["phase"], told.get("message")) == ("Running", None)
    assert {pod["spec"]["nodeName"] for pod in rig.cluster[PODS].values()} == {"a", "c"}
    assert len(rig.cluster.created) == 5, "no job was made twice"


def test_gpu_hours_are_those_of_the_nodes_that_were_there(rig: Rig) -> None:
    shrink(rig)
    before = rig.cluster.status["gpuHours"]
    rig.reconcile()
    rig.reconcile(after=3600, restarts=True)  # the time of one that runs is told now and then
    assert rig.cluster.status["gpuHours"] == pytest.approx(before + 1 + 5 / 3600, abs=2e-3)


def test_any_controller_goes_on_with_it(rig: Rig) -> None:
    """One that dies after each pass, and knows nothing of what the others saw; only patience begins anew."""
    shrink(rig, restarts=True)
    rig.train(3)
    rig.reconcile(after=PATIENCE, restarts=True)
    rig.reconcile(after=PATIENCE, restarts=True)
    rig.train(3)
    rig.reconcile(restarts=True)
    rig.reconcile(restarts=True)
    assert rig.jobs() == {"demo-12ab-base-3": 1, ROOM: 1}
    assert rig.cluster.nodes is not None
    rig.cluster.nodes.append("c")
    rig.cluster.place_pods()
    for _ in range(4):
        rig.reconcile(restarts=True)
    assert rig.attempts() == [("Preempted", 2), ("Preempted", 2), ("Preempted", 1), ("Running", 2)]
    assert rig.jobs() == {"demo-12ab-base-4": 2}


def test_a_controller_that_dies_when_it_has_stopped_an_attempt(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    """What follows is in the record: the next one does not ask for all nodes again."""
    rig.cluster.nodes = ["a"]
    rig.reconcile()
    rig.reconcile()

    def die(*_: Any, **__: Any) -> None:
        raise SystemExit

    with monkeypatch.context() as patch, pytest.raises(SystemExit):
        patch.setattr(rig.cluster, "delete", die)
        rig.reconcile(after=PATIENCE)
    assert rig.jobs() == {"demo-12ab-base-1": 2}
    rig.reconcile(restarts=True)
    rig.reconcile()
    assert rig.attempts() == [("Preempted", 2), ("Running", 1)]


def test_a_pool_that_is_small_from_the_start(tmp_path: Path) -> None:
    rig = Rig(tmp_path, base={"nodes": 4, "minNodes": 2})
    rig.cluster.nodes = ["a", "b", "c"]
    rig.reconcile()
    rig.reconcile()
    rig.reconcile(after=PATIENCE)
    rig.reconcile()
    assert rig.attempts() == [("Preempted", 4), ("Running", 3)]


@pytest.mark.parametrize("patience", [PATIENCE, 900])
@pytest.mark.parametrize("known", [True, False], ids=["refused", "no Events"])
def test_a_quota_that_leaves_room_for_some_pods(tmp_path: Path, patience: int, known: bool) -> None:
    rig = Rig(tmp_path, base={"nodes": 4, "minNodes": 2, "patienceSeconds": patience})
    rig.cluster.nodes, rig.cluster.quota = ["a", "b", "c", "d"], 3
    for _ in range(4):
        rig.reconcile(after=10)
        if not known:
            rig.cluster[EVENTS].clear()
    told = rig.reconcile(after=10)["stages"][3]
    refused = 'the API server refuses its pods: Error creating: pods "demo-12ab-base-1-worker-3" is forbidden: '
    missing = "waits for the training operator to create its pods: is it running?"
    follows = f"(after {patience // 60} min it goes on with fewer nodes, if there is room for 2)"
    assert told["reason"] == ("PodsRefused" if known else "PodsMissing")
    assert told["message"] == f"{f'{refused}exceeded quota: gpus' if known else missing} {follows}"
    rig.reconcile(after=patience)
    rig.reconcile()
    rig.reconcile()
    assert rig.attempts() == [("Preempted", 4), ("Running", 3)]


def test_a_quota_that_leaves_too_little_room(tmp_path: Path) -> None:
    rig = Rig(tmp_path, base={"nodes": 4, "minNodes": 2})
    rig.cluster.nodes, rig.cluster.quota = ["a", "b", "c", "d"], 1
    for _ in range(7):
        rig.reconcile(after=PATIENCE)
    assert rig.attempts() == [("Infrastructure", 4)], "as where all are refused"


def test_a_stage_waits_for_its_least_number_of_nodes(tmp_path: Path) -> None:
    rig = Rig(tmp_path, base={"nodes": 3, "minNodes": 2})
    rig.cluster.nodes = ["a"]
    for _ in range(5):
        rig.reconcile(after=PATIENCE)
    assert rig.attempts() == [("Running", 3)] and rig.cluster.status["phase"] == "Pending"
    rig.cluster.nodes.append("b")
    rig.cluster.place_pods()
    rig.reconcile()
    rig.reconcile()
    assert rig.attempts() == [("Preempted", 3), ("Running", 2)], "it has waited for long enough"


def test_a_stage_without_least_number_waits_for_all(rig: Rig) -> None:
    rig.base["minNodes"] = None
    rig.cluster.nodes = ["a"]
    for _ in range(5):
        told = rig.reconcile(after=10 * PATIENCE)
    assert rig.attempts() == [("Running", 2)] and told["message"] == "base: cannot be scheduled: no room"
    rig.base["minNodes"] = 1
    rig.reconcile()
    rig.reconcile(after=PATIENCE)
    rig.reconcile()
    assert rig.attempts() == [("Preempted", 2), ("Running", 1)], "an edit of minNodes holds at once"


def growing(rig: Rig) -> None:
    """An attempt with one of two nodes that asks for another."""
    shrink(rig)
    rig.reconcile()
    rig.train(3)
    rig.reconcile(after=PATIENCE)
    rig.reconcile()
    assert rig.jobs() == {"demo-12ab-base-3": 1, ROOM: 1}


@pytest.mark.parametrize(
    "edit", [{"minNodes": None}, {"minNodes": 1, "nodes": 1}], ids=["no longer elastic", "one node is all"]
)
def test_an_edit_takes_back_what_was_asked_for(rig: Rig, edit: dict[str, Any]) -> None:
    growing(rig)
    rig.base |= edit
    rig.reconcile()
    rig.reconcile()
    assert rig.jobs() == {"demo-12ab-base-3": 1} and rig.attempts()[-1] == ("Running", 1)


def test_more_nodes_may_be_declared_meanwhile(rig: Rig) -> None:
    growing(rig)
    assert rig.cluster.nodes is not None
    rig.base["nodes"] = 3
    rig.cluster.nodes += ["c", "d"]
    rig.cluster.place_pods()
    rig.reconcile()
    rig.reconcile(after=PATIENCE)  # the one node that was asked for is there, and no more came
    rig.reconcile()
    rig.train(4)
    rig.reconcile()
    rig.reconcile(after=PATIENCE)
    rig.cluster.place_pods()
    rig.reconcile()
    rig.reconcile()
    assert rig.attempts()[2:] == [("Preempted", 1), ("Preempted", 2), ("Running", 3)]


def test_a_suspended_pipeline_holds_no_room_and_asks_for_all_when_it_goes_on(rig: Rig) -> None:
    growing(rig)
    rig.spec["suspend"] = True
    rig.reconcile()
    rig.reconcile()
    assert (rig.cluster.status["phase"], rig.jobs()) == ("Suspended", {})
    rig.spec["suspend"] = False
    rig.reconcile()
    assert rig.attempts()[-1] == ("Running", 2)


def test_a_stage_that_ends_leaves_nothing(rig: Rig) -> None:
    growing(rig)
    made = Artifacts(rig.store, rig.folder / "made")
    (out,) = build_graph(check_pipeline(rig.document()).spec).node("base").outputs
    with made.writer(out.kind, out.key, "03-its") as writer:
        (writer.folder / "file").write_bytes(b"made")
        writer.commit(recipe={}, inputs={})
    job = rig.cluster[PYTORCHJOBS]["demo-12ab-base-3"]
    done = {"type": "Succeeded", "status": "True", "reason": "", "message": ""}
    rig.cluster.change(PYTORCHJOBS, job | {"status": job["status"] | {"conditions": [done]}})
    (name,) = [name for name in rig.cluster[PODS] if name.startswith("demo-12ab-base-3")]
    rig.cluster[PODS][name]["status"]["phase"] = "Succeeded"
    rig.cluster.change(PODS, rig.cluster[PODS][name])
    rig.reconcile()
    assert ROOM not in rig.jobs() and rig.attempts()[2] == ("Succeeded", 1)


def test_nothing_is_stopped_while_nothing_could_follow(rig: Rig) -> None:
    """A change that is refused lets what runs go on, and lets nothing start."""
    growing(rig)
    assert rig.cluster.nodes is not None
    rig.cluster.nodes.append("c")
    rig.cluster.place_pods()
    rig.base["minNodes"] = 5
    told = rig.reconcile()
    assert "minNodes (5) is above nodes (2)" in told["message"]
    assert rig.jobs() == {"demo-12ab-base-3": 1, ROOM: 1} and rig.attempts()[-1] == ("Running", 1)
    rig.base["minNodes"] = 1
    rig.reconcile()
    rig.reconcile()
    assert rig.attempts()[-1] == ("Running", 2)


def test_what_holds_room_and_is_taken_away_is_made_again(rig: Rig) -> None:
    growing(rig)
    job = rig.cluster[PYTORCHJOBS][ROOM]
    failed = {"type": "Failed", "status": "True", "reason": "", "message": "preempted"}
    rig.cluster.change(PYTORCHJOBS, job | {"status": job["status"] | {"conditions": [failed]}})
    rig.reconcile(after=PATIENCE - 10)
    assert rig.cluster[PYTORCHJOBS][ROOM]["metadata"]["uid"] == job["metadata"]["uid"], "not at once"
    for _ in range(3):
        rig.reconcile(after=10)
    assert rig.cluster[PYTORCHJOBS][ROOM]["metadata"]["uid"] != job["metadata"]["uid"]


def test_an_attempt_goes_on_where_it_must_not_ask_for_room(rig: Rig) -> None:
    shrink(rig)
    rig.reconcile()
    rig.train(3)
    rig.cluster.refuses_jobs = KubeError("refused", status=403)
    rig.reconcile(after=PATIENCE)
    rig.reconcile()
    assert rig.jobs() == {"demo-12ab-base-3": 1} and rig.attempts()[-1] == ("Running", 1)


def test_a_job_that_holds_room_is_made_once(rig: Rig) -> None:
    """The answer to its creation may be lost, and another's job may have its name."""
    shrink(rig)
    rig.reconcile()
    rig.train(3)
    rig.cluster.lose_answer = True
    with pytest.raises(KubeError):
        rig.reconcile(after=PATIENCE)
    rig.reconcile()
    rig.reconcile()
    assert rig.jobs() == {"demo-12ab-base-3": 1, ROOM: 1} and rig.cluster.created.count(ROOM) == 1
    del rig.cluster[PYTORCHJOBS][ROOM]["metadata"]["ownerReferences"]
    rig.cluster.change(PYTORCHJOBS, rig.cluster[PYTORCHJOBS][ROOM])
    for _ in range(3):
        rig.reconcile(after=PATIENCE)
    assert rig.jobs() == {"demo-12ab-base-3": 1, ROOM: 1} and rig.attempts()[-1] == ("Running", 1)


def test_what_holds_room_fits_where_the_attempt_does_and_does_nothing(rig: Rig) -> None:
    rig.spec["pods"] = {"envFrom": [{"secretRef": {"name": "password"}}], "nodeSelector": {"pool": "gpu"}}
    growing(rig)
    pods = [
        rig.cluster[PYTORCHJOBS][name]["spec"]["pytorchReplicaSpecs"]["Worker"]["template"]
        for name in ("demo-12ab-base-3", ROOM)
    ]
    (attempt,), (idle,) = ([*pod["spec"]["containers"]] for pod in pods)
    for same in ("resources", "image", "securityContext"):
        assert attempt[same] == idle[same]
    for same in ("nodeSelector", "securityContext"):
        assert pods[0]["spec"][same] == pods[1]["spec"][same]
    assert "launcher" not in " ".join(idle["command"]) and not {"env", "envFrom", "volumeMounts"} & idle.keys()
    (spread,) = pods[1]["spec"]["topologySpreadConstraints"]
    (among,) = spread["labelSelector"]["matchExpressions"]
    assert sorted(among["values"]) == ["demo-12ab-base-3", ROOM], "not beside the pods of the attempt"
    assert "nanochat.dev/stage" not in pods[1]["metadata"]["labels"], "it is no pod of the stage"


def test_a_queue_gets_a_smaller_workload_and_is_asked_for_the_rest(tmp_path: Path) -> None:
    rig = Rig(tmp_path, base={"nodes": 4, "minNodes": 2}, spec={"queue": "team"})
    rig.cluster.nodes, rig.cluster.queue = None, set()
    rig.cluster.change(LOCAL_QUEUES, {"metadata": {"name": "team", "namespace": "team"}})

    def workload(job: str, state: str = "Pending") -> None:
        uid = rig.cluster[PYTORCHJOBS][job]["metadata"]["uid"]
        owner = {"apiVersion": PYTORCHJOBS.api_version, "kind": PYTORCHJOBS.kind, "uid": uid, "name": job}
        admitted = [{"type": state, "status": "True", "reason": "", "message": "", "lastTransitionTime": "now"}]
        body = {
            "metadata": {"name": f"job-{job}", "namespace": "team", "ownerReferences": [owner]},
            "involvedObject": {"uid": uid},
            "spec": {"queueName": "team"},
            "status": {"conditions": admitted if state == "Admitted" else []},
        }
        rig.cluster.change(WORKLOADS, body)

    rig.reconcile()
    workload("demo-12ab-base-1")
    told = rig.reconcile()
    assert told["phase"] == "Pending" and "waits for admission by Kueue" in told["message"]
    rig.reconcile(after=PATIENCE)
    rig.reconcile()
    assert rig.jobs() == {"demo-12ab-base-2": 3}
    workload("demo-12ab-base-2", "Admitted")
    rig.cluster.admit("demo-12ab-base-2")
    rig.reconcile()
    rig.train(2)
    rig.reconcile()
    rig.reconcile(after=PATIENCE)
    rig.reconcile()
    assert rig.jobs() == {"demo-12ab-base-2": 3, ROOM: 1}
    held = rig.cluster[PYTORCHJOBS][ROOM]
    assert held["metadata"]["labels"]["kueue.x-k8s.io/queue-name"] == "team" and held["spec"]["runPolicy"]["suspend"]
    workload(ROOM)
    told = rig.reconcile(after=PATIENCE)
    assert told["queue"]["workload"] == "job-demo-12ab-base-2", "what waits for room is not the stage's job"
    assert rig.attempts()[-1] == ("Running", 3), "it is not admitted"
    del rig.cluster[WORKLOADS]["job-demo-12ab-base-2"]
    assert rig.reconcile().get("queue") is None, "nor is it where the stage's job is in none"
    workload(ROOM, "Admitted")
    rig.cluster.admit(ROOM)
    rig.reconcile()
    rig.reconcile()
    assert rig.attempts() == [("Preempted", 4), ("Preempted", 3), ("Running", 4)]
    assert rig.jobs() == {"demo-12ab-base-3": 4}


def test_a_pod_on_a_node_that_was_just_lost_has_no_room(rig: Rig) -> None:
    """The scheduler takes a node for good until it is known to be gone: no kubelet takes its pods up."""
    rig.reconcile()
    pod = rig.cluster[PODS]["demo-12ab-base-1-worker-1"]
    rig.cluster.change(PODS, replace_status(pod, {"phase": "Pending"}))
    told = rig.reconcile()
    assert told["stages"][3]["reason"] == "ContainerCreating"
    rig.reconcile(after=PATIENCE)
    rig.cluster.nodes = ["a"]
    rig.reconcile()
    assert rig.attempts() == [("Preempted", 2), ("Running", 1)]


def test_a_pod_whose_node_takes_long_to_start_it_has_room(rig: Rig) -> None:
    rig.reconcile()
    pod = rig.cluster[PODS]["demo-12ab-base-1-worker-1"]
    state = {"waiting": {"reason": "ContainerCreating"}}
    container = {"name": "pytorch", "image": "i", "imageID": "", "ready": False, "restartCount": 0, "state": state}
    rig.cluster.change(PODS, replace_status(pod, {"phase": "Pending", "containerStatuses": [container]}))
    for _ in range(3):
        rig.reconcile(after=PATIENCE)
    rig.cluster.change(PODS, replace_status(pod, {"phase": "Pending"}))
    rig.reconcile()
    assert rig.jobs() == {"demo-12ab-base-1": 2}, "that node is lost now: another one has time to come"


def replace_status(pod: dict[str, Any], status: dict[str, Any]) -> dict[str, Any]:
    return pod | {"status": status}


def test_a_former_record_of_a_cluster_has_no_other_nodes() -> None:
    """Records of attempts from before are read as ever."""
    record = JobAttempt(stage="base", number=1, nodes=3)
    old = {name: value for name, value in record.to_dict().items() if name != "resize"}
    assert JobAttempt.from_dict(old) == replace(record, resize=0)
