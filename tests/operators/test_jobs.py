"""What an attempt becomes on a cluster."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from kubeflow.training.models import KubeflowOrgV1PyTorchJob

from nanochat.pipeline.graph import build_graph
from nanochat.pipeline.plan import StagePlan
from nanochat.pipeline.planner import Start
from nanochat.spec.errors import UserError
from nanochat.spec.load import check_pipeline
from nanochat.spec.quantity import amount
from operators import resources
from operators.admission import Accepted, Graphs, admit_object
from operators.config import Config
from operators.job_backend import JobRequest
from operators.kube_models import from_json, to_json
from operators.pod_template import build_config_map, plan_of
from operators.pytorchjob import PyTorchJobs

UID = "12ab34cd-0000-0000-0000-000000000000"
HEAD = {
    "apiVersion": "nanochat.dev/v1alpha1",
    "kind": "ChatPipeline",
    "metadata": {"name": "demo", "namespace": "team"},
    "spec": {},
}
CONFIG = Config.model_validate(
    {
        "image": "trainer:1",
        "profiles": {
            "default": {"root": "s3://b/p", "endpoint": "http://s3", "secret": "s3", "tracking": "http://mlflow"}
        },
        "pools": {
            "gpu": {
                "pods": {
                    "nodeSelector": {"pool": "gpu"},
                    "tolerations": [{"key": "nvidia.com/gpu", "operator": "Exists"}],
                },
                "memoryLimit": "64Gi",
            },
            "cpu": {"pods": {"env": [{"name": "WHERE", "value": "cpu"}]}},
        },
    },
    by_alias=True,
)


def request(stage: str = "base", *, memory: float = 1.0, rows: int = 8, **spec: Any) -> JobRequest:
    pipeline = check_pipeline({**HEAD, "spec": spec})
    graph = build_graph(pipeline.spec, contents={"configmap://who/ami.jsonl": "0" * 64})
    launch = Start(stage, 3, graph.node(stage).outputs, device_batch_size=rows, memory=memory)
    accepted = Accepted(pipeline, graph, CONFIG.profiles["default"])
    return JobRequest(UID, accepted, launch, run="runs/team.demo/x", config=CONFIG, started=5.0)


def build(asked: JobRequest) -> tuple[dict[str, Any], dict[str, Any]]:
    """The ConfigMap and the job that the API server is sent."""
    backend = PyTorchJobs(None)  # type: ignore[arg-type]
    return to_json(build_config_map(asked, plan_of(asked))), to_json(backend.build(asked))


def pod_of(asked: JobRequest) -> dict[str, Any]:
    return build(asked)[1]["spec"]["pytorchReplicaSpecs"]["Worker"]["template"]


def container_of(asked: JobRequest) -> dict[str, Any]:
    return pod_of(asked)["spec"]["containers"][0]


SMALL = {"model": {"depth": 2, "width": 64, "headDim": 32, "sequenceLength": 128}, "stages": {}}


def training(**settings: Any) -> dict[str, Any]:
    return SMALL | {"stages": {"base": {"totalBatchTokens": 2048, **settings}, "mid": {"totalBatchTokens": 2048}}}


def test_the_job_is_one_that_the_operator_knows() -> None:
    _, job = build(request(**training(nodes=2)))
    model: Any = from_json(KubeflowOrgV1PyTorchJob, job)
    assert model.spec.pytorch_replica_specs["Worker"].replicas == 2
    assert model.spec.run_policy.clean_pod_policy == "Running"
    assert list(job["spec"]["pytorchReplicaSpecs"]) == ["Worker"]
    assert job["metadata"]["name"] == "demo-12ab-base-3"
    (owner,) = job["metadata"]["ownerReferences"]
    assert (owner["uid"], owner["controller"], owner["blockOwnerDeletion"]) == (UID, True, False)


def test_the_plan_is_one_that_the_launcher_reads(tmp_path: Path) -> None:
    config_map, job = build(request(**training(nodes=2, deviceBatchSize=32)))
    path = tmp_path / "plan.json"
    path.write_text(config_map["data"]["plan.json"])
    plan = StagePlan.read(path)
    assert (plan.nodes, plan.processes, plan.attempt, plan.launch) == (2, 1, 3, "")
    assert plan.spec["stages"]["base"]["deviceBatchSize"] == 8, "this attempt's, not the pipeline's"
    assert config_map["immutable"] and config_map["metadata"]["name"] == job["metadata"]["name"]
    assert "AWS" not in config_map["data"]["plan.json"]


def test_the_plan_has_no_values_of_variables() -> None:
    asked = request(**training(), pods={"env": [{"name": "TOKEN", "value": "hunter2"}]})
    assert "hunter2" not in build(asked)[0]["data"]["plan.json"]
    assert {"name": "TOKEN", "value": "hunter2"} in container_of(asked)["env"]


def test_pods_pass_the_restricted_standard() -> None:
    for stage in ("dataset", "base", "report"):
        pod = pod_of(request(stage, **training()))["spec"]
        (container,) = pod["containers"]
        assert (
            pod["securityContext"]["runAsNonRoot"]
            and pod["securityContext"]["seccompProfile"]["type"] == "RuntimeDefault"
        )
        context = container["securityContext"]
        assert context["capabilities"] == {"drop": ["ALL"]} and not context["allowPrivilegeEscalation"]
        assert context["readOnlyRootFilesystem"] and not pod["automountServiceAccountToken"]
        assert "hostNetwork" not in pod and all(v.keys() <= {"name", "configMap", "emptyDir"} for v in pod["volumes"])


def test_only_the_hosts_network_needs_more() -> None:
    pod = pod_of(request(**training(pod={"network": "rdma-host"})))["spec"]
    assert pod["hostNetwork"] and pod["dnsPolicy"] == "ClusterFirstWithHostNet"
    assert pod["containers"][0]["securityContext"]["capabilities"]["add"] == ["IPC_LOCK"]
    rdma = container_of(request(**training(pod={"network": "rdma"})))
    assert rdma["resources"]["limits"]["rdma/hca"] == "1"
    assert {"name": "NCCL_IB_DISABLE", "value": "0"} in rdma["env"]
    named = {"network": "rdma", "resources": {"limits": {"rdma/shared": 1}}}
    assert "rdma/hca" not in container_of(request(**training(pod=named)))["resources"]["limits"]


def test_stages_with_gpus_go_to_their_pool() -> None:
    cpu, gpu = pod_of(request(**training()))["spec"], pod_of(request(**training(gpusPerNode=8)))["spec"]
    assert "nodeSelector" not in cpu and gpu["nodeSelector"] == {"pool": "gpu"}
    assert gpu["tolerations"] == [{"key": "nvidia.com/gpu", "operator": "Exists"}]
    assert gpu["containers"][0]["resources"]["limits"]["nvidia.com/gpu"] == "8"
    assert {"name": "WHERE", "value": "cpu"} in cpu["containers"][0]["env"]
    job = build(request(**training(gpusPerNode=8, nodes=2)))[1]
    told = json.loads(job["metadata"]["annotations"]["nanochat.dev/attempt"])
    assert (told["gpus"], told["nodes"], told["processes"]) == (16, 2, 8)


def test_a_stages_settings_go_over_the_pipelines_over_the_pools() -> None:
    own = {"image": "mine:2", "env": [{"name": "WHERE", "value": "base"}], "resources": {"requests": {"cpu": 3}}}
    all_ = {"image": "ours:1", "labels": {"team": "a"}, "imagePullSecrets": ["pull"], "priorityClass": "high"}
    asked = request(**training(pod=own), pods=all_)
    pod, container = pod_of(asked), container_of(asked)
    assert (container["image"], container_of(request("mid", **training(), pods=all_))["image"]) == ("mine:2", "ours:1")
    assert [e["value"] for e in container["env"] if e["name"] == "WHERE"] == ["base"]
    assert container["resources"]["requests"]["cpu"] == "3000m"
    assert pod["metadata"]["labels"]["team"] == "a"
    assert pod["spec"]["imagePullSecrets"] == [{"name": "pull"}] and pod["spec"]["priorityClassName"] == "high"
    assert StagePlan(**json.loads(build(asked)[0]["data"]["plan.json"])).threads == 3


def test_a_node_that_is_suspect_is_taken_last() -> None:
    """And the more suspect the later; none is forbidden, so that pods can always be scheduled."""
    pod = pod_of(replace(request(**training()), avoid={"bad": 2.0, "odd": 0.1}))["spec"]
    (rule,) = pod["affinity"]["nodeAffinity"].items()
    assert rule[0] == "preferredDuringSchedulingIgnoredDuringExecution"
    terms = {term["preference"]["matchFields"][0]["values"][0]: term for term in rule[1]}
    assert {name: term["weight"] for name, term in terms.items()} == {"bad": 100, "odd": 5}
    assert terms["bad"]["preference"] == {
        "matchFields": [{"key": "metadata.name", "operator": "NotIn", "values": ["bad"]}]
    }
    assert "affinity" not in pod_of(request(**training()))["spec"]


def test_kueue_starts_what_it_admits() -> None:
    job = build(request(**SMALL | {"stages": training()["stages"], "queue": "team", "priority": "urgent"}))[1]
    assert job["spec"]["runPolicy"]["suspend"] is True
    labels = job["metadata"]["labels"]
    assert labels["kueue.x-k8s.io/queue-name"] == "team" and labels["kueue.x-k8s.io/priority-class"] == "urgent"
    assert build(request(**training()))[1]["spec"]["runPolicy"]["suspend"] is False


def test_an_identity_in_a_config_map_is_mounted_where_it_is_read() -> None:
    uri = "configmap://who/ami.jsonl"
    settings = training()
    settings["stages"]["mid"]["identity"] = uri
    config_map, job = build(request("dataset", **settings))
    plan = json.loads(config_map["data"]["plan.json"])
    assert plan["spec"]["stages"]["mid"]["identity"] == "file:///etc/nanochat/files/ami.jsonl"
    pod = job["spec"]["pytorchReplicaSpecs"]["Worker"]["template"]["spec"]
    assert {"name": "files", "configMap": {"name": "who"}} in pod["volumes"]


def test_memory_grows_with_the_model_and_after_it_ran_out() -> None:
    def asked(depth: int, rows: int = 8, memory: float = 1.0, **base: Any) -> int:
        model = {"depth": depth, "sequenceLength": 256}
        spec = {"model": model, "stages": {"base": {"totalBatchTokens": 8192, "deviceBatchSize": rows, **base}}}
        return int(container_of(request(rows=rows, memory=memory, **spec))["resources"]["limits"]["memory"])

    assert asked(2) < asked(4) < asked(8)
    assert asked(4, rows=4) < asked(4, rows=8)
    assert asked(4, memory=2.0) == pytest.approx(2 * asked(4), rel=1e-6)
    pipeline = request(**training(gpusPerNode=1))
    limits = resources.memory_limits(CONFIG, pipeline.spec, pipeline.accepted.graph)
    first = int(container_of(pipeline)["resources"]["requests"]["memory"])
    assert limits["base"] == pytest.approx(64 * 2**30 / first)
    assert "dataset" not in limits, "its pool has no limit to grow to"


@pytest.mark.parametrize(
    ("quantity", "number"), [("500m", 0.5), (2, 2.0), ("2Gi", 2 * 2**30), ("1.5G", 1.5e9), ("3k", 3e3)]
)
def test_quantities(quantity: str | int, number: float) -> None:
    assert amount(quantity) == number


class NoCluster:
    """Holds one ConfigMap."""

    def config_value(self, namespace: str, name: str, key: str) -> bytes | None:
        return b"{}" if (name, key) == ("who", "ami.jsonl") else None


@pytest.mark.parametrize(
    ("spec", "says"),
    [
        ({"store": "defalt"}, "Did you mean 'default'"),
        ({"stages": {"mid": {"identity": "/home/me/who.jsonl"}}}, "nanochat submit"),
        ({"stages": {"mid": {"identity": "configmap://who"}}}, "configmap://NAME/KEY"),
        ({"stages": {"mid": {"identity": "configmap://who/else"}}}, "no ConfigMap team/who with a key 'else'"),
        ({"stages": {"release": {"gates": ["nonsense"]}}}, "nonsense"),
        ({"model": {"depth": 0}}, "depth"),
        ({"sources": {"mirror": "example.org/data"}}, "sources.mirror is example.org/data, a path: pods read from an"),
        (
            {},
            "would train 560,988,160 parameters on CPUs alone (1 in all) for about 12 years: set stages.base.gpusPerN",
        ),
        (
            {"pods": {"resources": {"limits": {"memory": "1Gi"}}}},
            "no pod of stage tokenizer can be made: the request of memory (8654Mi) is above its limit (1Gi): lower the",
        ),
        (
            {
                "pods": {"resources": {"limits": {"cpu": 2}}},
                "stages": {"mid": {"pod": {"resources": {"requests": {"cpu": 3}}}}},
            },
            "no pod of stage mid can be made: the request of cpu (3) is above its limit (2)",
        ),
    ],
)
def test_what_the_controller_refuses(spec: dict[str, Any], says: str) -> None:
    with pytest.raises(UserError, match=re.escape(says)):
        admit_object({**HEAD, "spec": spec}, CONFIG, NoCluster())  # type: ignore[arg-type]


def test_a_large_model_on_many_cores_or_suspended_is_taken() -> None:
    many = {"stages": {"base": {"nodes": 8, "pod": {"resources": {"requests": {"cpu": 64}}}}}}
    for spec in (many, {"suspend": True}, {"stages": {"base": {"gpusPerNode": 8}}}):
        assert admit_object({**HEAD, "spec": spec}, CONFIG, NoCluster()).graph.stages  # type: ignore[arg-type]


def test_fields_that_the_api_server_left_out_are_told() -> None:
    """As after `kubectl apply --validate=ignore`, until somebody changes the spec."""
    given = {"model": {"dept": 4, "depth": 4}, "stages": {"mid": {"mixture": [{"task": "gsm8k", "row": 5}]}}, "x": 1}
    stored = {"model": {"depth": 4}, "stages": {"mid": {"mixture": [{"task": "gsm8k"}]}}}

    def remark(spec: dict[str, Any], text: str) -> str:
        annotations = {"kubectl.kubernetes.io/last-applied-configuration": text}
        found = {**HEAD, "metadata": {**HEAD["metadata"], "annotations": annotations}, "spec": spec}
        return admit_object(found, CONFIG, NoCluster()).remark  # type: ignore[arg-type]

    said = remark(stored, json.dumps({"spec": given}))
    assert said.startswith("the API server left out what kubectl gave: unknown field 'spec.model.dept'. Did you mean ")
    assert "unknown field 'spec.stages.mid.mixture[0].row'. Did you mean 'rows'?; unknown field 'spec.x'." in said
    assert remark(stored | {"suspend": True}, json.dumps({"spec": given})) == said
    assert remark(stored | {"seed": 7}, json.dumps({"spec": given})) == "", "it was changed since"
    with pytest.raises(UserError, match=r"about 12 years: .*; the API server left out .* 'spec\.x'"):
        remark({}, json.dumps({"spec": {"x": 1}}))
    for text in (json.dumps({"spec": stored}), "no JSON", "[]", json.dumps({"spec": {"model": 5}})):
        assert remark(stored, text) == ""


def test_a_pod_asks_for_no_more_cores_than_its_limit() -> None:
    pipeline = request("tokenizer", pods={"resources": {"limits": {"cpu": 2}}})
    asked = container_of(pipeline)["resources"]
    assert (asked["requests"]["cpu"], asked["limits"]["cpu"]) == ("2000m", "2")


def test_a_pipeline_without_a_spec() -> None:
    for nothing in ({"spec": None}, {}):
        found = {name: value for name, value in HEAD.items() if name != "spec"} | nothing
        with pytest.raises(UserError, match="'spec' is missing or empty: write its fields"):
            admit_object(found, CONFIG, NoCluster())  # type: ignore[arg-type]


def test_a_pipeline_stays_in_the_store_it_began_in() -> None:
    began = {"profile": {"root": "s3://b/p", "endpoint": "http://old"}}
    moved = CONFIG.model_copy(
        update={"profiles": {"default": CONFIG.profiles["default"].model_copy(update={"root": "s3://new"})}}
    )
    new = {**HEAD, "spec": {"suspend": True}}
    assert admit_object({**new, "status": began}, moved, NoCluster()).profile.root == "s3://b/p"  # type: ignore[arg-type]
    assert admit_object(new, moved, NoCluster()).profile.root == "s3://new"  # type: ignore[arg-type]


def test_a_configuration_says_what_is_wrong(tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    path.write_text("image: a\nprofiles: {default: {rot: s3://b}}\n")
    with pytest.raises(UserError, match=r"profiles\.default\.ro"):
        Config.load(path)
    with pytest.raises(UserError, match="no such file"):
        Config.load(tmp_path / "absent.yaml")


def test_names_fit_into_a_label() -> None:
    asked = request("eval-base", **training())
    long = asked.accepted.pipeline.model_copy(
        update={"metadata": asked.accepted.pipeline.metadata.model_copy(update={"name": "a" * 32})}
    )
    asked = replace(asked, accepted=replace(asked.accepted, pipeline=long), launch=replace(asked.launch, attempt=999))
    assert len(build(asked)[1]["metadata"]["name"] + "-worker-1023") <= 63


@pytest.mark.parametrize("stage", ["dataset", "tokenizer", "base", "eval-base", "report"])
def test_the_hubs_token_reaches_the_stage_that_fetches_data_alone(stage: str) -> None:
    """It may be a key of the profile's Secret, all of which are variables; one that is named for a stage goes there."""
    _, job = build(request(stage, **training()))
    container = job["spec"]["pytorchReplicaSpecs"]["Worker"]["template"]["spec"]["containers"][0]
    assert {"secretRef": {"name": "s3"}} in container["envFrom"]
    assert [item for item in container["env"] if item["name"] == "HF_TOKEN"] == (
        [] if stage == "dataset" else [{"name": "HF_TOKEN", "value": ""}]
    )
    named = {"name": "HF_TOKEN", "valueFrom": {"secretKeyRef": {"name": "hub", "key": "token"}}}
    _, job = build(request(stage, **training() | {"pods": {"env": [named]}}))
    env = job["spec"]["pytorchReplicaSpecs"]["Worker"]["template"]["spec"]["containers"][0]["env"]
    assert [item for item in env if item["name"] == "HF_TOKEN"] == [named]


def test_each_worker_that_makes_tokens_has_memory() -> None:
    """As many workers as cores are asked for, and the memory for them."""
    spec = training() | {"pods": {"resources": {"requests": {"cpu": 8}}}}
    asked = request("tokens", **spec)
    alone = request("tokens", **training() | {"pods": {"resources": {"requests": {"cpu": 1}}}})
    amounts = [resources.memory(each.settings, each.spec, "tokens", each.accepted.graph) for each in (asked, alone)]
    assert amounts[0] - amounts[1] == 7 * (256 << 20)
    assert json.loads(plan_of(asked))["spec"]["stages"]["tokens"]["workers"] == 8


def test_pipelines_of_the_same_settings_share_a_graph() -> None:
    graphs = Graphs(most=1)

    def admitted(name: str, **spec: Any) -> Accepted:
        found = {**HEAD, "metadata": {**HEAD["metadata"], "name": name}, "spec": spec}
        return admit_object(found, CONFIG, NoCluster(), graphs)  # type: ignore[arg-type]

    one, other = admitted("one", model={"depth": 4}), admitted("other", model={"depth": 4})
    assert one.graph is other.graph and one.spec is other.spec
    assert (one.pipeline.metadata.name, other.pipeline.metadata.name) == ("one", "other")
    assert admitted("third", model={"depth": 6}).graph is not one.graph
    assert admitted("one", model={"depth": 4}).graph is not one.graph, "few are kept"
