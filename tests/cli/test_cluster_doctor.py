"""`nanochat doctor --cluster`: what is broken is named, nothing else is, and the pod that looks is gone afterwards."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from doctored_cluster import (
    CHAT,
    CONFIG,
    CONTROLLER,
    KUEUE,
    LEASE,
    NANOCHAT,
    OPERATOR,
    SECRET,
    SLICE,
    SYSTEM,
    DoctoredCluster,
    gpu_node,
    node,
)
from small_pipeline import PIPELINE, called

from nanochat.cli import cluster_probe
from nanochat.cli.checks import Check
from nanochat.cli.probe import probe
from nanochat.spec.load import check_pipeline
from nanochat.spec.pipeline import Pipeline

Break = Callable[[DoctoredCluster], object]


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> Iterator[DoctoredCluster]:
    monkeypatch.setattr(cluster_probe, "LOOK", 0.01)
    monkeypatch.setattr(cluster_probe, "ROOM_SECONDS", 0.05)
    found = DoctoredCluster()
    yield found
    found.close()


def pipeline(**spec: Any) -> Pipeline:
    """The small pipeline with other settings."""
    data = yaml.safe_load(PIPELINE)
    data["spec"] |= spec
    return check_pipeline(data)


def with_gpus(count: int, **pod: Any) -> Pipeline:
    stages = yaml.safe_load(PIPELINE)["spec"].get("stages") or {}
    base = {**(stages.get("base") or {}), "gpusPerNode": count, "pod": pod}
    return pipeline(stages={**stages, "base": base})


def with_identity(address: str) -> Pipeline:
    data = yaml.safe_load(PIPELINE)
    data["spec"]["stages"]["mid"] |= {"identity": address, "mixture": [{"task": "identity"}]}
    return check_pipeline(data)


def failures(found: list[Check]) -> dict[str, str]:
    """What is broken: check -> what was found."""
    return {check.name: f"{check.found} | {check.advice}" for check in found if check.level == "fail"}


def levels(found: list[Check]) -> dict[str, str]:
    return {check.name: check.level for check in found}


def test_a_cluster_that_is_fine(cluster: DoctoredCluster) -> None:
    found = cluster.examine(pipeline())
    assert {check.level for check in found} == {"ok"}, found
    names = {"cluster", "operator", "definition", "controller", "pipeline", "secret", "mlflow", "quota", "podsecurity"}
    assert names | {"pods", "queue", "stages", "images", "store"} == levels(found).keys()


def test_without_a_file_the_namespace_is_looked_at(cluster: DoctoredCluster) -> None:
    found = cluster.examine(None)
    assert {check.level for check in found} == {"ok"}, found


# ---- ten broken clusters, and their kind ------------------------------------------------------------------------


def without(path: str) -> Break:
    return lambda cluster: cluster.objects.pop(path)


def unavailable(path: str, **status: Any) -> Break:
    return lambda cluster: cluster.objects[path].update(status=status)


def no_operator(cluster: DoctoredCluster) -> None:
    del cluster.objects[OPERATOR], cluster.served["/apis/kubeflow.org/v1"]


def quota(hard: dict[str, str], used: dict[str, str]) -> Break:
    def fill(cluster: DoctoredCluster) -> None:
        body = {"metadata": {"name": "small"}, "spec": {"hard": hard}, "status": {"hard": hard, "used": used}}
        cluster.objects[f"{CHAT}/resourcequotas/small"] = body
        cluster.refuses = lambda plural, body: "exceeded quota: small" if plural == "pods" else ""

    return fill


def words(name: str, said: str) -> Break:
    def say(cluster: DoctoredCluster) -> None:
        found = {item["name"]: item for item in cluster.words} | {name: {"name": name, "level": "fail", "found": said}}
        cluster.words = list(found.values())

    return say


def wrong_names(cluster: DoctoredCluster) -> None:
    cluster.objects[SECRET] = {"data": {"ACCESS_KEY": "a"}}
    words("storage", "s3://b refuses: no credentials")(cluster)


def taint_all(cluster: DoctoredCluster) -> None:
    taint = {"key": "dedicated", "value": "research", "effect": "NoSchedule"}
    for name in ("worker", "gpus"):
        cluster.objects[f"/api/v1/nodes/{name}"] = node(name, taint)


def waiting(reason: str, message: str) -> Break:
    return lambda cluster: setattr(cluster, "waits", {"reason": reason, "message": message})


def no_mlflow(cluster: DoctoredCluster) -> None:
    cluster.objects[SLICE]["endpoints"] = []
    words("tracking", "http://mlflow does not answer")(cluster)


def no_release(cluster: DoctoredCluster) -> None:
    del cluster.objects[CONTROLLER], cluster.served[NANOCHAT]


def another_namespaces(cluster: DoctoredCluster) -> None:
    config = yaml.safe_load(cluster.objects[CONFIG]["data"]["config.yaml"]) | {"namespaces": ["research"]}
    cluster.objects[CONFIG]["data"]["config.yaml"] = yaml.safe_dump(config)


def stopped_queue(cluster: DoctoredCluster) -> None:
    stopped = {"type": "Active", "status": "False", "message": "Can't submit new workloads to clusterQueue"}
    queue = {"metadata": {"name": "gpus"}, "spec": {"clusterQueue": "all"}, "status": {"conditions": [stopped]}}
    cluster.objects[f"{KUEUE}/namespaces/chat/localqueues/gpus"] = queue


def small_queue(cluster: DoctoredCluster) -> None:
    cluster.objects[f"{KUEUE}/namespaces/chat/localqueues/gpus"] = {
        "metadata": {"name": "gpus"}, "spec": {"clusterQueue": "all"},
    }  # fmt: skip
    flavor = {"name": "any", "resources": [{"name": "cpu", "nominalQuota": "100"}]}
    groups = [{"coveredResources": ["cpu"], "flavors": [flavor]}]
    cluster.objects[f"{KUEUE}/clusterqueues/all"] = {"spec": {"resourceGroups": groups}}


def refusing(why: str) -> Break:
    return lambda cluster: setattr(cluster, "refuses", lambda plural, body: why if plural == "pods" else "")


def crashing_controller(cluster: DoctoredCluster) -> None:
    unavailable(CONTROLLER)(cluster)
    waits = {"reason": "CrashLoopBackOff", "message": "back-off 40s restarting failed container"}
    container = {
        "name": "c",
        "image": "i",
        "imageID": "",
        "ready": False,
        "restartCount": 3,
        "state": {"waiting": waits},
    }
    cluster.objects[f"{SYSTEM}/pods/nanochat-controller-1"] = {
        "metadata": {"name": "nanochat-controller-1", "namespace": "nanochat", "uid": "u", "resourceVersion": "1",
                     "labels": {"app": "nanochat-controller"}},
        "spec": {},
        "status": {"phase": "Running", "containerStatuses": [container | {"state": {"waiting": waits}}]},
    }  # fmt: skip


def unreachable_store(cluster: DoctoredCluster) -> None:
    told = {"type": "StorageReachable", "status": "False", "message": "s3://b refuses"}
    other = {"metadata": {"name": "other"}, "status": {"conditions": [told]}}
    cluster.objects[f"{NANOCHAT}/namespaces/chat/chatpipelines/other"] = other


def variable(source: str, key: str = "") -> Pipeline:
    """A pipeline with a variable of its base stage from a Secret."""
    if key:
        ref = {"secretKeyRef": {"name": source, "key": key}}
        return with_gpus(1, env=[{"name": "WHERE", "valueFrom": ref}])
    return with_gpus(1, envFrom=[{"secretRef": {"name": source}}])


HOST = {"pods": {"network": "rdma-host"}}
BROKEN: list[tuple[str, Break, Callable[[], Pipeline], str, str]] = [
    ("no operator", no_operator, pipeline, "operator", "install the Kubeflow training operator"),
    ("an operator that is gone", without(OPERATOR), pipeline, "operator", "no Deployment of the training operator"),
    ("an operator without pods", unavailable(OPERATOR), pipeline, "operator", "no pod of it is available"),
    ("no Secret", without(SECRET), pipeline, "secret", "there is no Secret chat/store"),
    ("wrong keys", words("storage", "s3://b refuses"), pipeline, "store", "correct the keys of Secret chat/store"),
    ("keys by another name", wrong_names, pipeline, "store", "no credentials"),
    ("a full quota", quota({"pods": "3"}, {"pods": "3"}), pipeline, "quota", "3 of 3 pods are used"),
    ("a quota that is too small", quota({"requests.memory": "64Mi"}, {}), pipeline, "quota", "lower the stage's"),
    ("no GPUs", without("/api/v1/nodes/gpus"), lambda: with_gpus(8), "stages", "offers no nvidia.com/gpu"),
    ("too few GPUs", lambda c: c.objects.update({"/api/v1/nodes/gpus": gpu_node("gpus", 4)}), lambda: with_gpus(8),
     "stages", "has 4 of the 8 nvidia.com/gpu"),
    ("a GPU of another kind", lambda c: None, lambda: with_gpus(8, nodeSelector={"gpu": "h200"}), "stages",
     "lacks the label gpu=h200"),
    ("taints", taint_all, pipeline, "stages", "the taint dedicated=research:NoSchedule"),
    ("Pod Security", refusing('violates PodSecurity "restricted:latest"'), lambda: pipeline(**HOST), "podsecurity",
     "enforces restricted"),
    ("a priority class", refusing("no PriorityClass with name x was found"), pipeline, "pods", "no PriorityClass"),
    ("a wrong image", waiting("ImagePullBackOff", "not found"), pipeline, "images", "registry.example/trainer:1"),
    ("an image's name", waiting("InvalidImageName", "couldn't parse"), pipeline, "images", "couldn't parse"),
    ("a variable's Secret", waiting("CreateContainerConfigError", 'secret "x" not found'), pipeline, "secret", '"x"'),
    ("the Secret of one stage's variables", lambda c: None, lambda: variable("keys"), "secret", "no Secret chat/keys"),
    ("a key of it", lambda c: None, lambda: variable("store", "OTHER"), "secret", "chat/store has no key OTHER"),
    ("an identity", lambda c: None, lambda: with_identity("configmap://me/identity.jsonl"), "pipeline", "chat/me"),
    ("the controller's keys", unreachable_store, pipeline, "controller", "keys of its controllerSecret"),
    ("no webhook", lambda c: setattr(c, "webhook_fails", True), pipeline, "jobs", "failed calling webhook"),
    ("MLflow away", no_mlflow, pipeline, "mlflow", "no pod of Service nanochat/mlflow is ready"),
    ("no MLflow", without(f"{SYSTEM}/services/mlflow"), pipeline, "mlflow", "there is no Service nanochat/mlflow"),
    ("MLflow out of reach", words("tracking", "it does not answer"), pipeline, "mlflow", "from a pod: it does not"),
    ("no Kueue", lambda c: c.served.pop(KUEUE), lambda: pipeline(queue="gpus"), "queue", "the cluster has no Kueue"),
    ("no queue", lambda c: None, lambda: pipeline(queue="gpus"), "queue", "there is no LocalQueue chat/gpus"),
    ("a stopped queue", stopped_queue, lambda: pipeline(queue="gpus"), "queue", "admits nothing: Can't submit"),
    ("a queue without memory", small_queue, lambda: pipeline(queue="gpus"), "queue", "covers no memory"),
    ("no release", no_release, pipeline, "controller", "install the chart"),
    ("no definition", lambda c: c.served.pop(NANOCHAT), pipeline, "definition", "no ChatPipelines"),
    ("a controller that crashes", crashing_controller, pipeline, "controller", "back-off 40s"),
    ("a controller that hangs", lambda c: c.objects[LEASE]["spec"].update(renewTime="2026-01-01T00:00:00.0Z"), pipeline,
     "controller", "no controller runs"),
    ("another one's namespace", another_namespaces, pipeline, "controller", "pipelines of research alone"),
    ("no profile", lambda c: None, lambda: pipeline(store="team"), "pipeline", "the profile 'team'"),
    ("no namespace", without("/api/v1/namespaces/chat"), pipeline, "namespace", "kubectl create namespace chat"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("break_it", "of", "name", "says"), [pytest.param(*row, id=situation) for situation, *row in BROKEN]
)
def test_what_is_broken_is_named_and_nothing_else(
    cluster: DoctoredCluster, break_it: Break, of: Callable[[], Pipeline], name: str, says: str
) -> None:
    break_it(cluster)
    found = failures(cluster.examine(of()))
    assert found.keys() == {name}, found
    assert says in found[name]
    assert [path for path in cluster.objects if "nanochat-doctor-" in path] == []


# ---- what is not broken -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("right", ["list deployments", "get configmaps", "get secrets", "list nodes", "create pods",
                                   "get namespaces", "list resourcequotas", "delete pods", "get leases"])  # fmt: skip
def test_what_one_may_not_see_is_not_called_broken(cluster: DoctoredCluster, right: str) -> None:
    cluster.denied = {right}
    found = cluster.examine(pipeline())
    assert not failures(found)
    assert "skip" in levels(found).values(), found
    if right in ("create pods", "delete pods"):
        assert not cluster.probes and "you may not create" in " ".join(check.found for check in found)


def test_who_sees_no_deployments_learns_of_the_controller_from_its_lease(cluster: DoctoredCluster) -> None:
    cluster.denied = {"list deployments"}
    told = {"metadata": {"name": "other"}, "status": {"access": {"service": "nanochat/nanochat-controller:8080"}}}
    cluster.objects[f"{NANOCHAT}/namespaces/chat/chatpipelines/other"] = told
    assert levels(cluster.examine(pipeline()))["controller"] == "ok"
    cluster.objects[LEASE]["spec"]["renewTime"] = "2026-01-01T00:00:00.0Z"
    assert "no controller runs" in failures(cluster.examine(pipeline()))["controller"]


def test_nodes_that_an_autoscaler_may_make_are_not_missing(cluster: DoctoredCluster) -> None:
    del cluster.objects["/api/v1/nodes/gpus"]
    cluster.objects["/api/v1/namespaces/kube-system/configmaps/cluster-autoscaler-status"] = {"data": {}}
    found = cluster.examine(with_gpus(8))
    assert not failures(found)
    (warned,) = (check for check in found if check.level == "warn")
    assert "offers no nvidia.com/gpu" in warned.found and "autoscaler may make others" in warned.found


def test_what_the_pipelines_own_pods_hold_of_a_quota_is_given_back(cluster: DoctoredCluster) -> None:
    quota({"pods": "1"}, {"pods": "1"})(cluster)
    cluster.refuses = lambda plural, body: ""
    held = {"metadata": {"labels": {"nanochat.dev/pipeline": pipeline().metadata.name}}, "status": {"phase": "Running"}}
    cluster.objects[f"{CHAT}/pods/held"] = held | {"spec": {"containers": [{}]}}
    assert not failures(cluster.examine(pipeline()))


def test_a_cordoned_node_is_said_and_not_counted(cluster: DoctoredCluster) -> None:
    for name in ("worker", "gpus"):
        cluster.objects[f"/api/v1/nodes/{name}"]["spec"]["unschedulable"] = True
    found = failures(cluster.examine(pipeline()))
    assert "kubectl uncordon worker" in found["stages"]


def test_a_pod_that_finds_no_room_just_now_is_not_called_broken(cluster: DoctoredCluster) -> None:
    cluster.unplaced = "0/3 nodes are available: 3 Insufficient cpu."
    found = cluster.examine(pipeline())
    assert not failures(found) and levels(found)["probe"] == "skip"
    assert not [path for path in cluster.objects if "nanochat-doctor-" in path]


def test_an_image_of_another_version_is_not_called_broken(cluster: DoctoredCluster) -> None:
    cluster.words = "No module named nanochat.cli.probe"
    found = cluster.examine(pipeline())
    assert not failures(found) and levels(found)["probe"] == "skip"


def test_secrets_with_other_keys_are_right_for_cloud_identities(cluster: DoctoredCluster) -> None:
    cluster.objects[SECRET] = {"data": {"HF_TOKEN": "x"}}
    found = cluster.examine(pipeline())
    assert not failures(found) and levels(found)["secret"] == "warn"


# ---- the pod ----------------------------------------------------------------------------------------------------


def test_the_pod_is_a_stages_with_every_image_and_no_credential(cluster: DoctoredCluster) -> None:
    asked = with_gpus(1, image="mine:2", imagePullSecrets=["registry"])
    assert not failures(cluster.examine(asked))
    (made,) = cluster.probes
    spec = made["spec"]
    assert [item["image"] for item in spec["containers"]] == ["registry.example/trainer:1", "mine:2"]
    assert spec["imagePullSecrets"] == [{"name": "registry"}]
    assert spec["containers"][0]["envFrom"] == [{"secretRef": {"name": "store"}}]
    assert json.loads(spec["containers"][0]["command"][-1])["profile"]["root"] == "s3://b/p"
    assert spec["activeDeadlineSeconds"] and spec["restartPolicy"] == "Never"
    assert all("emptyDir" in volume for volume in spec["volumes"])
    labels = made["metadata"]["labels"]
    assert labels["nanochat.dev/pipeline"] and "nanochat.dev/pipeline-uid" not in labels


def test_one_wrong_image_of_two_is_named_and_the_store_is_tried(cluster: DoctoredCluster) -> None:
    cluster.waits = {"reason": "ImagePullBackOff", "message": "not found"}
    cluster.waiting = {"probe-1"}
    found = cluster.examine(with_gpus(1, image="mine:2"))
    assert failures(found).keys() == {"images"} and "mine:2" in failures(found)["images"]
    assert levels(found)["store"] == "ok"


def test_what_a_killed_look_left_is_removed(cluster: DoctoredCluster) -> None:
    left = {"metadata": {"name": "nanochat-doctor-old", "uid": "u", "labels": {"nanochat.dev/probe": "doctor"}}}
    cluster.objects[f"{CHAT}/pods/nanochat-doctor-old"] = left | {"status": {"phase": "Failed"}}
    cluster.examine(pipeline())
    assert not [path for path in cluster.objects if "nanochat-doctor-" in path]


def test_the_pod_goes_when_the_look_is_interrupted(cluster: DoctoredCluster, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(_seconds: float) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(cluster_probe.time, "sleep", interrupt)
    monkeypatch.setattr(cluster_probe, "ROOM_SECONDS", 600.0)
    cluster.unplaced = "no room"
    with pytest.raises(KeyboardInterrupt):
        cluster.examine(pipeline())
    assert cluster.probes and not [path for path in cluster.objects if "nanochat-doctor-" in path]


def test_the_program_of_the_pod_tries_the_store_and_mlflow(tmp_path: Path) -> None:
    profile = {"root": str(tmp_path), "endpoint": None, "region": None, "anonymous": False}
    found = probe({"profile": profile, "tracking": "http://127.0.0.1:9"})
    assert [(check.name, check.level) for check in found] == [("storage", "ok"), ("tracking", "fail")]
    assert probe({"profile": profile | {"root": "/proc/none"}, "tracking": None})[0].level == "fail"


# ---- the command ------------------------------------------------------------------------------------------------


def test_the_command_prints_json_and_ends_with_1_where_something_is_broken(
    cluster: DoctoredCluster, tmp_path: Path
) -> None:
    (tmp_path / "small.yaml").write_text(PIPELINE)
    config = {
        "apiVersion": "v1",
        "kind": "Config",
        "current-context": "here",
        "clusters": [{"name": "here", "cluster": {"server": f"http://127.0.0.1:{cluster.http.server_port}"}}],
        "users": [{"name": "me", "user": {}}],
        "contexts": [{"name": "here", "context": {"cluster": "here", "user": "me", "namespace": "chat"}}],
    }
    (tmp_path / "kubeconfig").write_text(yaml.safe_dump(config))
    variables = {"KUBECONFIG": str(tmp_path / "kubeconfig")}
    done = called(tmp_path, "doctor", "--cluster", "small.yaml", "--json", **variables)
    assert done.returncode == 0, done.stdout + done.stderr
    assert {item["level"] for item in json.loads(done.stdout)} == {"ok"}
    del cluster.objects[SECRET]
    done = called(tmp_path, "doctor", "small.yaml", "-n", "chat", "--no-probe", **variables)
    assert done.returncode == 1 and "fail  secret      there is no Secret chat/store" in done.stdout
    cluster.close()
    done = called(tmp_path, "doctor", "--cluster", **variables)
    assert done.returncode == 1 and "fail  cluster" in done.stdout and "check the kubeconfig" in done.stdout
