"""Which version is served: a table of decisions, and stories with a Deployment, MLflow and controllers that die."""

from __future__ import annotations

import json
import os
import re
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from fake_cluster import FakeKube
from kubernetes import client
from kubernetes.client import V1Deployment, V1ObjectReference, V1Pod
from mlflow_server import free_port

from nanochat.model.artifact import SERVED, WEIGHTS, fingerprint
from nanochat.spec.errors import UserError
from nanochat.storage import Artifacts, Manifest, Profile, open_store
from nanochat.tracking.registry import Candidate, Registry
from operators import rollout as rollout_module
from operators import status
from operators.cluster import Cluster
from operators.config import Config, Serving, StoreProfile
from operators.events import Events
from operators.kube_client import KubeClient
from operators.kube_error import KubeError
from operators.kube_models import from_json
from operators.reconciler import Run
from operators.rollout import RolloutController, read
from operators.rollout_decision import Champion, Deployed, Memory, Rejected, Target, decide
from operators.services import Services
from operators.serving_pods import why_unready
from operators.stores import Stores

pytestmark = pytest.mark.filterwarnings(
    "ignore::Warning:mlflow", "ignore::DeprecationWarning", "ignore::ResourceWarning"
)


def target(version: int, promoted: str = "t1") -> Target:
    return Target(
        f"s3://b/artifacts/model/{version}/01-a", str(version), f"{version:016x}", f"runs/t.p/{version}", promoted
    )


def champion(version: int, promoted: str = "t1", refused: str = "") -> Champion:
    found = None if refused else target(version, promoted)
    return Champion(str(version), f"runs/t.p/{version}", promoted, found, refused)


def gave_up(version: int, promoted: str = "t1") -> Rejected:
    return Rejected(str(version), f"runs/t.p/{version}", promoted, "it timed out")


def deployed(current: Target | None, rollout: Any, good: Target | None, rejected: Rejected | None = None) -> Deployed:
    memory = Memory(current, good, rejected) if current else Memory()
    return Deployed(current, memory, rollout, "it timed out" if rollout == "failed" else "")


V1, V2, V3 = target(1), target(2), target(3)
NONE = deployed(None, "failed", None)  # without a model no pod is ever ready


@pytest.mark.parametrize(
    ("seen", "found", "wanted", "good", "rejected", "writes"),
    [
        pytest.param(None, NONE, None, None, None, False, id="nothing released: nothing is written"),
        pytest.param(champion(1, refused="gone"), NONE, None, None, None, False, id="the first has no artifact"),
        pytest.param(champion(1), NONE, V1, None, None, True, id="the first model"),
        pytest.param(champion(1), deployed(V1, "going", None), V1, None, None, False, id="it is rolled out"),
        pytest.param(champion(1), deployed(V1, "failed", None), V1, None, None, False, id="nothing to go back to"),
        pytest.param(champion(1), deployed(V1, "complete", None), V1, V1, None, True, id="it is good: remembered"),
        pytest.param(champion(1), deployed(V1, "complete", V1), V1, V1, None, False, id="steady"),
        pytest.param(champion(1), deployed(V1, "failed", V1), V1, V1, None, False, id="a good one that fails stays"),
        pytest.param(None, deployed(V1, "complete", V1), V1, V1, None, False, id="MLflow away: nothing changes"),
        pytest.param(champion(2), deployed(V1, "complete", V1), V2, V1, None, True, id="the alias moves"),
        pytest.param(champion(2), deployed(V1, "complete", None), V2, V1, None, True, id="it moves at the last moment"),
        pytest.param(champion(2), deployed(V2, "going", V1), V2, V1, None, False, id="the second is rolled out"),
        pytest.param(
            champion(2), deployed(V2, "failed", V1), V1, V1, gave_up(2), True, id="it fails: the good one comes back"
        ),
        pytest.param(None, deployed(V2, "failed", V1), V1, V1, gave_up(2), True, id="so it does while MLflow is away"),
        pytest.param(
            champion(2), deployed(V1, "going", V1, gave_up(2)), V1, V1, gave_up(2), False, id="not tried again"
        ),
        pytest.param(
            None, deployed(V1, "complete", V1, gave_up(2)), V1, V1, gave_up(2), False, id="remembered without MLflow"
        ),
        pytest.param(
            champion(2), deployed(V1, "complete", V1, gave_up(2)), V1, V1, gave_up(2), False, id="nor after that"
        ),
        pytest.param(
            champion(2, "t2"), deployed(V1, "complete", V1, gave_up(2)), target(2, "t2"), V1, None, True,
            id="given the alias anew, it is tried again",
        ),
        pytest.param(
            champion(2, "t2"), deployed(target(2, "t2"), "failed", V1), V1, V1, gave_up(2, "t2"), True,
            id="and given up again",
        ),
        pytest.param(
            champion(3), deployed(V1, "complete", V1, gave_up(2)), V3, V1, None, True, id="the alias moves on"
        ),
        pytest.param(
            champion(1), deployed(V1, "complete", V1, gave_up(2)), V1, V1, None, True, id="or back: forgotten"
        ),
        pytest.param(champion(3), deployed(V2, "going", V1), V3, V1, None, True, id="it moves during a rollout"),
        pytest.param(champion(3), deployed(V2, "failed", V1), V3, V1, None, True, id="it moves as the rollout fails"),
        pytest.param(champion(1), deployed(V2, "failed", V1), V1, V1, None, True, id="a rollback as it fails"),
        pytest.param(champion(1), deployed(V2, "complete", V2), V1, V2, None, True, id="a rollback"),
        pytest.param(
            champion(3, refused="gone"), deployed(V1, "complete", V1), V1, V1, None, False, id="no artifact: it stays"
        ),
        pytest.param(
            champion(3, refused="gone"), deployed(V2, "failed", V1), V1, V1, None, True,
            id="no artifact, and the one before it fails",
        ),
        pytest.param(
            champion(1, "t2"), deployed(V1, "complete", V1), target(1, "t2"), V1, None, True,
            id="the same anew: remembered, not rolled out",
        ),
    ],
)  # fmt: skip
def test_decisions(
    seen: Champion | None, found: Deployed, wanted: Target | None, good: Target | None, rejected: Rejected | None,
    writes: bool,
) -> None:  # fmt: skip
    decision = decide(seen, found)
    assert (decision.target, decision.memory.good, decision.memory.rejected) == (wanted, good, rejected)
    assert decision.write is writes
    again = (
        decide(seen, replace(found, current=wanted, memory=decision.memory, rollout="going")) if writes else decision
    )
    assert not again.write or again.memory.good != good, "what was written is not written again"
    assert Memory.parse(decision.memory.to_text()) == decision.memory


@pytest.mark.parametrize("text", ["", "no json", "[]", '{"good": 1}', '{"good": {"color": "red"}}', "null"])
def test_an_annotation_that_cannot_be_read_is_forgotten(text: str) -> None:
    assert Memory.parse(text) == Memory()


# ---- stories --------------------------------------------------------------------------------------------------------


class Deployment(Cluster):
    """One Deployment of three pods as an API server and its controller treat it; it may lose the answer to a patch."""

    def __init__(self) -> None:
        server = {"name": "server", "image": "nanochat", "env": [{"name": "NANOCHAT_CACHE", "value": "/cache"}]}
        self.object: dict[str, Any] = {
            "metadata": {"name": "inference", "namespace": "nano", "uid": "u1", "generation": 1, "annotations": {}},
            "spec": {
                "selector": {},
                "replicas": 3,
                "template": {"metadata": {}, "spec": {"containers": [{"name": "proxy"}, server]}},
            },
        }
        self.lose_answer = False
        self.written: list[str] = []
        self.pods: list[V1Pod] = []
        self.settle(ready=False)

    def deployment(self, namespace: str, name: str) -> Any:
        return self.model if (namespace, name) == ("nano", "inference") else None

    def pods_of(self, namespace: str, selector: Any) -> list[V1Pod]:
        return self.pods

    @property
    def model(self) -> V1Deployment:
        return from_json(V1Deployment, self.object)

    def apply_deployment(self, body: Any) -> None:
        self.object["metadata"]["annotations"] |= body["metadata"]["annotations"]
        server = self.object["spec"]["template"]["spec"]["containers"][1]
        (changed,) = body["spec"]["template"]["spec"]["containers"]
        assert changed["name"] == server["name"] and body["metadata"]["uid"] == "u1"
        env = {item["name"]: item["value"] for item in server["env"]}
        merged = env | {item["name"]: item["value"] for item in changed["env"]}
        if merged != env:
            server["env"] = [{"name": name, "value": value} for name, value in merged.items()]
            self.object["metadata"]["generation"] += 1
            self.written.append(merged["NANOCHAT_MODEL_VERSION"])
        if self.lose_answer:
            raise KubeError("the API server cannot be reached")

    def settle(self, *, ready: bool) -> None:
        """The rollout ends, one way or the other."""
        counts = {"replicas": 3 if ready else 4, "updatedReplicas": 3 if ready else 1, "availableReplicas": 3}
        condition = {"type": "Progressing", "status": "True", "reason": "NewReplicaSetAvailable"}
        if not ready:
            condition |= {"status": "False", "reason": "ProgressDeadlineExceeded", "message": "it timed out."}
        self.object["status"] = {
            **counts, "observedGeneration": self.object["metadata"]["generation"], "conditions": [condition],
        }  # fmt: skip

    @property
    def version(self) -> str:
        current = read(self.model).current
        return current.version if current else ""


class World:
    """A registry in a real MLflow, a store with models, a Deployment, and a controller that lives for one look."""

    def __init__(self, uri: str, folder: Path, model: str) -> None:
        self.uri, self.model, self.deployment = uri, model, Deployment()
        self.registry = Registry(uri)
        self.artifacts = Artifacts(open_store(Profile(root=str(folder / "store"))), folder / "cache")
        self.profile = StoreProfile.model_validate({"root": str(folder / "store"), "tracking": uri})
        self.changes = 0  # how often there was something new to tell

    def make(self, name: str, *, launch: str = "01-a", content: str = "") -> Manifest:
        """The artifact of a model, made by a launch."""
        with self.artifacts.writer("model", name, launch) as writer:
            for file in SERVED:
                (writer.folder / file).write_text(content or name)
            return writer.commit(recipe={}, inputs={}, metadata={})

    def release(self, name: str, *, stored: bool = True, noted: bool = True) -> str:
        """Register and promote a version; returns it."""
        source, known = f"{self.profile.root}/artifacts/model/{name}/01-a", ""
        if stored:
            manifest = self.make(name)
            source, known = self.artifacts.uri(manifest), fingerprint(manifest) if noted else ""
        tags = {"nanochat.pipeline": "team.demo", "nanochat.run": f"runs/team.demo/{name}"}
        found = self.registry.register(self.model, Candidate(source, name, {}, tags, fingerprint=known))
        self.registry.promote(self.model, found.version)
        return found.version

    def look(self, *, tracking: str | None = None, cluster: Cluster | None = None) -> RolloutController:
        """A new controller looks once."""
        settings = {"deployment": "inference", "namespace": "nano", "model": self.model, "tracking": tracking}

        def changed() -> None:
            self.changes += 1

        rollout = RolloutController(
            Serving.model_validate(settings),
            self.profile,
            cluster or self.deployment,
            changed=changed,
            stores=Stores(self.artifacts.cache.folder),
            ask=lambda pod: "it is loading",
        )
        rollout.reconcile()
        return rollout

    def condition(self, name: str, *, told_before: bool = False) -> tuple[str, str, str] | None:
        return self.look().about(f"runs/team.demo/{name}", told_before=told_before)


@pytest.fixture(scope="module")
def uri(tmp_path_factory: pytest.TempPathFactory) -> str:
    return f"sqlite:///{tmp_path_factory.mktemp('mlflow')}/mlflow.db"


@pytest.fixture
def world(uri: str, tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[World]:
    name = re.sub("[^a-z0-9]+", "-", request.node.name)[:50].strip("-")
    yield World(uri, tmp_path, f"{name}-{uuid.uuid4().hex[:8]}")


def test_a_release_is_rolled_out_and_told(world: World) -> None:
    assert world.look().about("runs/team.demo/one", told_before=False) is None
    assert world.deployment.written == [], "before there is a model nothing is written"
    world.release("one")
    rollout, told = world.look(), world.changes
    rollout.reconcile()
    assert world.deployment.version == "1" and world.changes == told, "there was nothing new at the second look"
    template = read(world.deployment.model).current
    assert template is not None and len(template.fingerprint) == 16
    assert world.condition("one") == ("Unknown", "RollingOut", "version 1 is rolled out; no version is served")
    world.deployment.settle(ready=True)
    assert world.condition("one") == ("True", "Serving", "version 1 is served")
    world.release("two")
    assert world.condition("two") == ("Unknown", "RollingOut", "version 2 is rolled out; version 1 is served")
    assert world.condition("one") == ("True", "Serving", "version 1 is served")
    world.deployment.settle(ready=True)
    assert world.condition("two") == ("True", "Serving", "version 2 is served")
    assert world.condition("one", told_before=True) == ("False", "Superseded", "version 2 of another run is served")
    assert world.condition("other") is None
    assert world.deployment.written == ["1", "2"]


def test_a_chat_api_that_is_installed_anew_is_not_said_to_serve(world: World) -> None:
    """What a pipeline was told by the installation before is not true until the new one serves."""
    asleep: Any = Deployment()
    asleep.deployment = lambda namespace, name: None
    assert world.look(cluster=asleep).about("runs/team.demo/one", told_before=True) is None, "nothing was seen yet"
    told = world.condition("one", told_before=True)
    assert told == ("Unknown", "NotServed", "the chat API serves no version, for the registry has no champion")
    away = world.look(tracking=f"http://127.0.0.1:{free_port()}").about("runs/team.demo/one", told_before=True)
    assert away is not None and away[2].startswith("the chat API serves no version: the registry's champion is not k")
    world.release("one")
    told = world.condition("one", told_before=True)
    assert told == ("Unknown", "RollingOut", "version 1 is rolled out; no version is served")


def test_a_version_that_fails_is_taken_back_and_tried_again_when_asked(world: World) -> None:
    world.release("one")
    world.look()
    world.deployment.settle(ready=True)
    world.look()
    world.release("bad")
    world.look()
    world.deployment.settle(ready=False)
    status_, reason, message = world.condition("bad") or ("", "", "")
    assert (status_, reason) == ("False", "RolloutFailed")
    assert message.startswith("version 2 did not become ready (it timed out): version 1 is served; ")
    assert world.condition("one") == ("True", "Serving", "version 1 is served")
    world.deployment.settle(ready=True)
    for _ in range(3):
        world.look()
    assert world.deployment.written == ["1", "2", "1"]
    world.registry.rollback(world.model, "2")
    world.look()
    world.deployment.settle(ready=True)
    assert world.condition("bad") == ("True", "Serving", "version 2 is served")
    world.registry.rollback(world.model, "1")
    world.look()
    assert world.deployment.written == ["1", "2", "1", "2", "1"]


def test_a_version_without_an_artifact_is_refused(world: World) -> None:
    world.release("one")
    world.look()
    world.deployment.settle(ready=True)
    world.release("lost", stored=False)
    status_, reason, message = world.condition("lost") or ("", "", "")
    assert (status_, reason) == ("False", "Refused")
    assert "there is no model at" in message and message.endswith("version 1 is served")
    assert "`nanochat retry demo -n team` makes it anew" in message
    with world.artifacts.writer("model", "lost", "01-a") as writer:
        for file in SERVED:
            (writer.folder / file).write_text("found")
        writer.commit(recipe={}, inputs={}, metadata={})
    world.look()
    assert world.deployment.written == ["1", "2"], "it is there now"
    weights = Path(world.profile.root) / "artifacts" / "model" / "three" / "01-a" / WEIGHTS
    version = world.registry.register(world.model, Candidate("http://elsewhere/x", "x", {}, {"nanochat.run": "r"}))
    world.registry.promote(world.model, version.version)
    assert (world.look().about("r", told_before=False) or ("",))[0] == "False"
    world.release("three")
    weights.write_text("too long")
    assert "bytes instead of" in (world.condition("three") or ("", "", ""))[2]


def weights(world: World) -> Path:
    return Path(world.profile.root) / "artifacts" / "model" / "one" / "01-a" / WEIGHTS


def cut_short(world: World) -> None:
    weights(world).write_text("o")


def overwrite(world: World) -> None:
    weights(world).write_text("ONE")
    os.utime(weights(world), (time.time() + 60,) * 2)  # later than its manifest


def lose_manifest(world: World) -> None:
    world.artifacts.store.delete("artifacts/model/one/manifest.json")


def make_another(world: World) -> None:
    lose_manifest(world)
    world.make("one", launch="02-b", content="two")


DAMAGE = {
    cut_short: "model.safetensors has 1 bytes instead of 3",
    overwrite: "model.safetensors has another content than was written",
    lose_manifest: "it has no manifest.json",
    make_another: "holds another model now: its fingerprint is",
}


@pytest.mark.parametrize("noted", [True, False], ids=["noted", "of an older release"])
@pytest.mark.parametrize("restarted", [True, False])
@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_artifact_takes_no_version_away(
    world: World, damage: Callable[[World], None], restarted: bool, noted: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rollout_module, "CHECK_SECONDS", 0.0)
    world.release("one", noted=noted)
    world.look()
    world.deployment.settle(ready=True)
    rollout = world.look()
    assert rollout.about("runs/team.demo/one", told_before=True) == ("True", "Serving", "version 1 is served")
    damage(world)
    if restarted:
        rollout = world.look()
    rollout.reconcile()
    value, reason, message = rollout.about("runs/team.demo/one", told_before=True) or ("", "", "")
    assert (value, reason) == ("True", "Damaged")
    assert message.startswith("version 1 is served by servers that have it; no other can get it: ")
    assert DAMAGE[damage] in message and message.endswith("`nanochat retry demo -n team` makes it anew")
    assert world.deployment.written == ["1"], "what is served stays served"
    world.deployment.object["status"]["availableReplicas"] = 0
    world.deployment.pods = [pod(running=True, of=world)]
    rollout.reconcile()
    value, reason, message = rollout.about("runs/team.demo/one", told_before=True) or ("", "", "")
    assert (value, reason) == ("False", "Damaged") and "retry" in message
    assert message.startswith("no pod of the chat API that has version 1 is ready (pod p says: it is loading): ")
    lose_manifest(world)
    world.make("one", launch="03-c", content="one")
    world.deployment.settle(ready=True)
    assert world.condition("one") == ("True", "Serving", "version 1 is served"), "made anew, it is the same version"
    assert world.deployment.written == ["1"]


def test_another_model_of_the_same_release_is_another_version(world: World) -> None:
    assert world.release("one") == "1" and world.release("one") == "1"
    lose_manifest(world)
    made = world.make("one", launch="02-b")
    source, known = world.artifacts.uri(made), fingerprint(made)
    same = Candidate(source, "one", {}, fingerprint=known)
    assert world.registry.register(world.model, same).version == "1", "the same model by another launch"
    make_another(world)
    other = replace(same, fingerprint="other")
    assert world.registry.register(world.model, other).version == "2"
    assert world.registry.champion(world.model) is not None


def pod(*, running: bool = False, name: str = "p", version: str = "1", of: World | None = None, **told: Any) -> V1Pod:
    """A pod of the chat API that is not ready; `of` a Deployment it has its variables."""
    state = {"running": {}} if running else told.pop("state", {})
    server = {"name": "server", "image": "i", "imageID": "i", "ready": False, "restartCount": 1, "state": state}
    env: Any = [{"name": "NANOCHAT_MODEL_VERSION", "value": version}]
    if of is not None:
        env = of.deployment.object["spec"]["template"]["spec"]["containers"][1]["env"]
    body = {
        "metadata": {"name": name},
        "spec": {"containers": [{"name": "server", "env": env}]},
        "status": {"containerStatuses": [server | told.pop("server", {})], **told},
    }
    return from_json(V1Pod, body)


UNSCHEDULABLE = {"type": "PodScheduled", "status": "False", "message": "0/3 nodes are available: Insufficient memory."}
ENDED = {"terminated": {"exitCode": 137, "reason": "OOMKilled"}}


@pytest.mark.parametrize(
    ("found", "says"),
    [
        (pod(conditions=[UNSCHEDULABLE]), f"pod p cannot be scheduled: {UNSCHEDULABLE['message']}"),
        (pod(running=True), "pod p says: it is loading"),
        (pod(running=True, version="2"), ""),
        (pod(running=True, conditions=[{"type": "Ready", "status": "True"}]), ""),
        (pod(state={"waiting": {"reason": "ContainerCreating"}}), ""),
        (pod(state={"waiting": {"reason": "ErrImagePull", "message": "not found"}}), "pod p cannot start: not found"),
        (
            pod(state={"waiting": {"reason": "CrashLoopBackOff"}}, server={"lastState": ENDED}),
            "pod p ended with exit code 137: OOMKilled",
        ),
        (pod(running=True, name="x" * 10), "pod xxxxxxxxxx says: it is loading"),
    ],
)
def test_a_pod_that_is_not_ready_says_why(found: V1Pod, says: str) -> None:
    told = {"NANOCHAT_MODEL_VERSION": "1"}
    assert why_unready([found], "server", told, lambda pod: "it is loading") == says


def test_a_roll_out_that_fails_says_what_its_pod_says(world: World) -> None:
    world.release("one")
    world.look()
    world.deployment.settle(ready=True)
    world.look()
    world.release("bad")
    world.look()
    world.deployment.pods = [pod(conditions=[UNSCHEDULABLE], of=world)]
    why = f"pod p cannot be scheduled: {UNSCHEDULABLE['message']}"
    world.deployment.object["status"]["availableReplicas"] = 2
    assert world.condition("bad") == ("Unknown", "RollingOut", f"version 2 is rolled out ({why}); version 1 is served")
    world.deployment.settle(ready=False)
    _, reason, message = world.condition("bad") or ("", "", "")
    assert reason == "RolloutFailed" and message.startswith(f"version 2 did not become ready ({why}): version 1 is ser")


def test_a_tracking_server_that_is_away_changes_nothing(world: World) -> None:
    world.release("one")
    world.look()
    world.deployment.settle(ready=True)
    world.look()
    away = f"http://127.0.0.1:{free_port()}"
    rollout = world.look(tracking=away)
    assert world.deployment.written == ["1"]
    assert rollout.about("runs/team.demo/one", told_before=False) == ("True", "Serving", "version 1 is served")
    assert [rollout.reconcile() for _ in range(12)] == [*[15.0] * 7, 30.0, 60.0, 120.0, 240.0, 300.0]
    world.release("bad")
    world.look()
    world.deployment.settle(ready=False)
    world.look(tracking=away)
    assert world.deployment.written == ["1", "2", "1"], "what fails is taken back all the same"


@pytest.mark.parametrize("lost", range(1, 7))
def test_a_lost_answer_changes_nothing_in_the_end(world: World, lost: int) -> None:
    """Whichever answer is lost, and the controller with it: the same versions are written in the same order."""

    def look() -> None:
        nonlocal lost
        lost -= 1
        world.deployment.lose_answer = lost == 0
        world.look()
        world.deployment.lose_answer = False

    for name, ready in (("one", True), ("bad", False), ("three", True)):
        world.release(name)
        look()
        world.deployment.settle(ready=ready)
        look()
        world.deployment.settle(ready=True)
        world.look()
    assert world.deployment.written == ["1", "2", "1", "3"]
    assert read(world.deployment.model).memory.good == read(world.deployment.model).current


def test_a_deployment_that_is_missing_or_changed_by_hand(world: World) -> None:
    world.release("one")
    world.look()
    server = world.deployment.object["spec"]["template"]["spec"]["containers"][1]
    server["env"] = [item for item in server["env"] if item["name"] != "NANOCHAT_MODEL_FINGERPRINT"]
    world.look()
    assert world.deployment.version == "1" and len(world.deployment.written) == 2
    world.deployment.deployment = lambda *_: None  # type: ignore[method-assign]
    rollout = world.look()
    assert [rollout.reconcile() for _ in range(9)][-1] > 15.0


def test_what_the_api_server_is_asked(world: World) -> None:
    """The requests on the wire: a look, and a server-side apply that holds the controller's fields alone."""
    asked: list[tuple[str, str, str | None, Any]] = []

    class Handler(BaseHTTPRequestHandler):
        def answer(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            asked.append((self.command, self.path, self.headers["Content-Type"], json.loads(body or "null")))
            data = json.dumps(world.deployment.object).encode()
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        do_GET = do_PATCH = answer

        def log_message(self, *_: Any) -> None:
            return

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        configuration = client.Configuration(host=f"http://127.0.0.1:{server.server_port}")
        world.release("one")
        world.look(cluster=Cluster(KubeClient(client.ApiClient(configuration))))
        server.shutdown()
    (got, path, _, _), (patched, apply, kind, body) = asked
    assert (got, path) == ("GET", "/apis/apps/v1/namespaces/nano/deployments/inference")
    assert (patched, apply) == ("PATCH", f"{path}?fieldManager=nanochat-controller&force=true")
    assert kind == "application/apply-patch+yaml"
    template = body["spec"]["template"]
    assert list(body["spec"]) == ["template"] and list(template["spec"]) == ["containers"]
    told = {item["name"]: item["value"] for item in template["spec"]["containers"][0]["env"]}
    assert told["NANOCHAT_MODEL_VERSION"] == template["metadata"]["annotations"]["nanochat.dev/model-version"] == "1"
    assert told["NANOCHAT_MODEL_URI"].endswith("/artifacts/model/one/01-a")


class Heard(Events):
    """Keeps the Events."""

    def __init__(self) -> None:
        self.events: list[tuple[str, str, str]] = []

    def emit(self, reference: V1ObjectReference, kind: str, reason: str, message: str) -> None:
        self.events.append((kind, reason, message))


def test_a_pipeline_shows_the_condition_and_tells_of_its_changes(tmp_path: Path) -> None:
    cluster, heard = FakeKube(1_800_000_000.0), Heard()
    asked: list[tuple[str, bool]] = []
    answer: Any = None

    def serving(run: str, *, told_before: bool) -> Any:
        asked.append((run, told_before))
        return answer

    config = Config.model_validate({"image": "trainer:1", "profiles": {"default": {"root": str(tmp_path / "store")}}})
    services = Services(**cluster.services(), config=config, events=heard, stores=Stores(tmp_path), serving=serving)
    run = Run("team", "demo", "u2", services)

    def turn() -> tuple[str, str, str] | None:
        found = {
            "apiVersion": "nanochat.dev/v1alpha1",
            "kind": "ChatPipeline",
            "metadata": {"name": "demo", "namespace": "team"},
            "spec": {"suspend": True, "sources": {"text": {"kind": "world"}}},
        }
        run.reconcile(cluster.declare(found, uid="u2"), cluster.now, cluster.now)
        return status.condition(cluster.status, "Serving")

    assert turn() is None and asked == [("runs/team.demo/u2", False)]
    heard.events.clear()
    for answer in (("True", "Serving", "version 1 is served"), ("False", "RolloutFailed", "version 2 did not")):
        assert turn() == turn() == answer
    assert asked[-1] == ("runs/team.demo/u2", True)
    answer = None  # nothing is known, as after a restart: what was said stays
    assert turn() == ("False", "RolloutFailed", "version 2 did not")
    assert heard.events == [
        ("Normal", "Serving", "version 1 is served"), ("Warning", "RolloutFailed", "version 2 did not")
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("serving", "says"),
    [
        ({"profile": "other"}, "serving.profile is 'other', which is not among the profiles"),
        ({}, "serving needs a tracking URI"),
        ({"tracking": "http://mlflow", "pollSeconds": 0}, "pollSeconds"),
        ({"tracking": "http://mlflow"}, ""),
    ],
)
def test_the_configuration_is_checked(tmp_path: Path, serving: dict[str, Any], says: str) -> None:
    data = {"image": "i", "profiles": {"default": {"root": "s3://b"}}}
    whole = data | {"serving": {"deployment": "inference", "namespace": "nano", **serving}}
    (tmp_path / "config.yaml").write_text(json.dumps(whole))
    if says:
        with pytest.raises(UserError, match=re.escape(says)):
            Config.load(tmp_path / "config.yaml")
    else:
        found = Config.load(tmp_path / "config.yaml").serving
        assert found is not None and (found.model, found.profile, found.poll_seconds) == ("nanochat", "default", 15.0)
