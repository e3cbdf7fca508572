"""One table of documents, run against `nanochat run`'s checks and against the API server: both say the same."""

from __future__ import annotations

import copy
import json
import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from nanochat.pipeline.graph import build_graph
from nanochat.pipeline.planner import Phase
from nanochat.spec.errors import UserError
from nanochat.spec.load import check_pipeline
from operators.crd import FILE, text

ROOT = Path(__file__).parents[2]
HEAD = {"apiVersion": "nanochat.dev/v1alpha1", "kind": "ChatPipeline", "metadata": {"name": "case"}}


def spec(**settings: Any) -> dict[str, Any]:
    """A document with settings at paths: `model__depth=4`."""
    data: dict[str, Any] = copy.deepcopy(HEAD) | {"spec": {}}
    for path, value in settings.items():
        *parents, last = path.split("__")
        node = data["spec"]
        for part in parents:
            node = node.setdefault(part, {})
        node[last] = value
    return data


def pods(**settings: Any) -> dict[str, Any]:
    return spec(**{f"pods__{name}": value for name, value in settings.items()})


def named(name: str, **metadata: Any) -> dict[str, Any]:
    return {**HEAD, "metadata": {"name": name, **metadata}, "spec": {}}


ACCEPTED = {
    "an empty spec": spec(),
    "a depth": spec(model__depth=4),
    "the modern recipe": spec(model={"recipe": "modern", "windowPattern": "SSL"}, stages__base__packing="stream"),
    "a float that is whole": spec(stages__base__matrixLr=1),
    "a null where null is a value": spec(stages__base__gradClip=None),
    "a null where it is none": spec(model__depth=None),
    "a null section": spec(stages__base=None),
    "a local hub": spec(sources__text__kind="world"),
    "no rl": spec(stages__rl__enabled=False),
    "a mixture": spec(stages__mid__mixture=[{"task": "gsm8k", "rows": 5, "epochs": 2}]),
    "an elastic stage": spec(stages__base={"nodes": 4, "minNodes": 2, "patienceSeconds": 60}),
    "suspended in a queue": spec(suspend=True, queue="team.a", priority="urgent"),
    "a quantity as a number": pods(resources={"requests": {"cpu": 2, "memory": "4Gi", "rdma/hca": "1"}}),
    "variables": pods(
        env=[
            {"name": "A", "value": "b"},
            {"name": "B", "valueFrom": {"secretKeyRef": {"name": "s", "key": "k"}}},
        ],
        envFrom=[{"configMapRef": {"name": "c"}}],
    ),
    "a pod of a stage": spec(stages__base__pod={"image": "x:1", "nodeSelector": {"pool": "gpu"}, "network": "rdma"}),
    "tolerations": pods(tolerations=[{"operator": "Exists"}, {"key": "a/b", "value": "c", "effect": "NoSchedule"}]),
    "amounts": pods(
        resources={
            "requests": {"cpu": "500m", "memory": "4Gi", "rdma/hca": 1, "ephemeral-storage": "1.5Gi"},
            "limits": {"cpu": 2, "memory": 4294967296, "rdma/hca": "1", "hugepages-2Mi": "64Mi"},
        },
        sharedMemory="1Gi",
    ),
    "an image": pods(image=f"localhost:5000/our.team/a__b-c:1@sha256:{'0' * 64}"),
    "a taint for a while": pods(tolerations=[{"key": "a", "effect": "NoExecute", "tolerationSeconds": 5}]),
    "no measurement and few tokens": spec(stages__base={"evalEvery": 0, "evalTokens": 1}),
    "several samples": spec(stages__evalChat={"samples": 4, "temperature": 0.8}),
    "labels": named("case", labels={"a.b/c": "d"}),
    "a long name": named("a" * 32),
}
REFUSED = {
    "nothing": copy.deepcopy(HEAD),
    "a null spec": HEAD | {"spec": None},
    "an unknown field": spec(modle__depth=4),
    "an unknown field deep down": spec(stages__base__dept=4),
    "an unknown null": spec(modle=None),
    "text for a number": spec(model__depth="4"),
    "a fraction for an integer": spec(model__depth=4.5),
    "a number for text": spec(store=4),
    "text for a truth": spec(stages__rl__enabled="no"),
    "too small": spec(model__depth=0),
    "another recipe": spec(model__recipe="antique"),
    "windows of other letters": spec(model__windowPattern="SX"),
    "too large": spec(model__depth=257),
    "not above": spec(stages__base__matrixLr=0),
    "beyond 64 bits": spec(stages__base__steps=2**63),
    "not of the words": spec(sources__text__kind="tape"),
    "a bad store name": spec(store="My_Store"),
    "an unknown task": spec(stages__mid__mixture=[{"task": "chess"}]),
    "an empty mixture": spec(stages__mid__mixture=[]),
    "a part without a task": spec(stages__mid__mixture=[{"rows": 5}]),
    "a null task": spec(stages__mid__mixture=[{"task": None}]),
    "base off": spec(stages__base__enabled=False),
    "tokens off": spec(stages__tokens__enabled=False),
    "a batch that does not divide": spec(stages__base__totalBatchTokens=3000),
    "a batch that does not divide, of mid": spec(stages__mid__totalBatchTokens=3000),
    "a length that does not divide the batch": spec(model__sequenceLength=1000),
    "a value and where it comes from": pods(
        env=[{"name": "A", "value": "b", "valueFrom": {"secretKeyRef": {"name": "s", "key": "k"}}}]
    ),
    "no value": pods(env=[{"name": "A"}]),
    "a value from nowhere": pods(env=[{"name": "A", "valueFrom": {}}]),
    "a bad variable": pods(env=[{"name": "1A", "value": "b"}]),
    "a source that is none": pods(envFrom=[{}]),
    "a bad quantity": pods(resources={"requests": {"memory": "4 GiB"}}),
    "a negative quantity": pods(resources={"requests": {"cpu": -1}}),
    "a request above its limit": pods(resources={"requests": {"memory": "8Gi"}, "limits": {"memory": "8G"}}),
    "a device whose request is not its limit": pods(resources={"requests": {"a/b": 1}, "limits": {"a/b": 2}}),
    "half a device": pods(resources={"limits": {"rdma/hca": "0.5"}}),
    "a memory of 12 bytes": pods(resources={"requests": {"memory": 12}}),
    "a memory of milli-bytes": pods(resources={"limits": {"memory": "512m"}}),
    "a processor of four gigabytes": pods(resources={"requests": {"cpu": "4Gi"}}),
    "a shared memory of 12 bytes": pods(sharedMemory=12),
    "a resource that is none": pods(resources={"limits": {"memroy": "4Gi"}}),
    "GPUs by their name": pods(resources={"limits": {"nvidia.com/gpu": 1}}),
    "an image with a scheme": pods(image="https://registry.example.org/trainer:1"),
    "an image with a blank": pods(image="trainer: 1"),
    "a variable of the controller's": pods(env=[{"name": "NANOCHAT_WORK", "value": "/elsewhere"}]),
    "a taint with a value that exists": pods(tolerations=[{"key": "a", "operator": "Exists", "value": "b"}]),
    "a taint without a key": pods(tolerations=[{"value": "b"}]),
    "a while of another effect": pods(tolerations=[{"key": "a", "tolerationSeconds": 5}]),
    "a priority without a queue": spec(priority="urgent"),
    "more processes than GPUs": spec(stages__base={"gpusPerNode": 2, "processesPerNode": 4}),
    "more processes of an evaluation than GPUs": spec(stages__evalChat={"gpusPerNode": 2, "processesPerNode": 4}),
    "several samples that are all the same": spec(stages__evalChat__samples=4),
    "one file for all shards": spec(sources__text__path="corpus.parquet"),
    "fewer tokens than a row, of base": spec(stages__base__evalTokens=100),
    "fewer tokens than a row, of the evaluation": spec(stages__evalBase__bitsPerByteTokens=100),
    "an unknown network": pods(network="carrier-pigeon"),
    "a bad label": pods(labels={"a b": "c"}),
    "a bad value of a label": pods(labels={"a": "b c"}),
    "root": pods(runAsUser=0),
    "a grace that is none": spec(stopGraceSeconds=0),
    "a setting of a stage at the top": spec(depth=4),
    "a name as another language writes it": spec(stages__base__total_batch_tokens=524288),
    "a unit that is none": pods(resources={"requests": {"memory": "4GB"}}),
    "a unit in small letters": pods(resources={"requests": {"memory": "4gi"}}),
    "an amount below nothing": pods(resources={"requests": {"memory": "-1Gi"}}),
    "an amount beyond all": pods(resources={"requests": {"memory": 1e37}}),
    "enough nodes that are more than all": spec(stages__base={"nodes": 2, "minNodes": 3}),
    "steps beyond all": spec(stages__base__steps=1e37),
    "a rate beyond all": spec(stages__base__matrixLr=1e37),
    "a list for a spec": HEAD | {"spec": ["model"]},
    "a list for the stages": spec(stages=[{"name": "base"}]),
    "a map for a list": spec(stages__mid__mixture={"task": "gsm8k"}),
    "a text for a list": spec(stages__release__gates="core >= 0.2"),
    "stages in an order of one's own": spec(stages__base__after="mid", stages__mid__after="base"),
    "an unknown precision": spec(stages__base__precision="fp8"),
    "an address with a password": spec(sources__mirror="https://me:secret@example.org/data"),
    "too many gates": spec(stages__release__gates=["core >= 0.2"] * 17),
    "a name of other letters": named("größe"),
    "a name with capitals": named("Demo"),
    "a name that is too long": named("a" * 33),
    "a name with a dot": named("a.b"),
    "a name that begins with a digit": named("4a"),
    "a label's value": named("case", labels={"a": "b c"}),
}


def cases() -> list[Any]:
    files = {path.name: yaml.safe_load(path.read_text()) for path in sorted((ROOT / "k8s/pipelines").glob("*.yaml"))}
    accepted = [pytest.param(document, True, id=name) for name, document in {**files, **ACCEPTED}.items()]
    return accepted + [pytest.param(document, False, id=name) for name, document in REFUSED.items()]


def test_the_file_is_fresh() -> None:
    assert FILE.read_text() == text(), "run make generate"


def fields(node: Any, path: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """All fields of a schema with their paths."""
    for name, value in node.get("properties", {}).items():
        yield f"{path}.{name}", value
        yield from fields(value, f"{path}.{name}")
        yield from fields(value.get("items", {}), f"{path}.{name}[]")


SCHEMA = yaml.safe_load(FILE.read_text())["spec"]["versions"][0]["schema"]["openAPIV3Schema"]
FIELDS = [(path, field) for path, field in fields(SCHEMA, "") if path != ".metadata"]  # which the API server describes
STUBS = re.compile(r"(what|that|it|its|they|these|those|this|whether|which|the|an?)\b", re.IGNORECASE)


def flaws(name: str, comment: str) -> list[str]:
    """Flaws of a field's comment, whose subject is to be the field, and whose sentences are to be whole."""
    found = ["begins with a stub"] if STUBS.match(comment) else []
    found += [] if re.match(rf"{name} [a-z-]+ ", comment) else ["is not about the field"]
    found += [] if len(comment) >= 40 else ["is too short"]
    return found if comment.endswith(".") else [*found, "is no sentence"]


def test_every_field_is_described() -> None:
    comments = {path: flaws(path.rpartition(".")[2], field.get("description", "")) for path, field in FIELDS}
    assert len(comments) > 500
    assert {path: found for path, found in comments.items() if found} == {}


@pytest.mark.parametrize(
    ("comment", "flaw"),
    [
        ("Whether the stage is part of the pipeline, or is left out.", "begins with a stub"),
        ("Number of the blocks that the transformer has.", "is not about the field"),
        ("depth is a number.", "is too short"),
        ("depth is the number of blocks that the transformer has", "is no sentence"),
    ],
)
def test_a_poor_comment_is_found(comment: str, flaw: str) -> None:
    assert flaw in flaws("depth", comment)


def test_a_field_without_a_value_says_what_then_holds() -> None:
    silent = [
        path
        for path, field in FIELDS
        if path.startswith(".spec.")
        and not field.get("properties")
        and path.rpartition(".")[2] not in required(path)
        and "efault" not in field["description"]
    ]
    assert silent == []


def required(path: str) -> list[str]:
    """The required fields of the object that has the field at a path."""
    node = SCHEMA
    for part in path.split(".")[1:-1]:
        node = node["properties"][part.removesuffix("[]")]
        node = node["items"] if part.endswith("[]") else node
    return node.get("required", [])


def test_everything_in_the_status_is_bounded() -> None:
    bounds = {"string": ("maxLength", "enum", "format"), "array": ("maxItems",)}
    bounds["object"] = ("maxProperties", "properties")
    told = [(path, field) for path, field in FIELDS if path.startswith(".status.")]
    told += [(f"{path}[]", field["items"]) for path, field in told if "items" in field]
    told += [(f"{path}[*]", field["additionalProperties"]) for path, field in told if "additionalProperties" in field]
    for path, field in told:
        assert any(bound in field for bound in bounds.get(field["type"], ("type",))), path


def test_phases_are_the_planners() -> None:
    status = SCHEMA["properties"]["status"]["properties"]
    for phase in (status["phase"], status["stages"]["items"]["properties"]["phase"]):
        assert phase["enum"] == [str(item) for item in Phase]


def test_conditions_are_those_of_kubernetes() -> None:
    """The bounds of metav1.Condition."""
    condition = SCHEMA["properties"]["status"]["properties"]["conditions"]["items"]
    bounds = {
        name: {key: value for key, value in field.items() if key not in ("description", "type")}
        for name, field in condition["properties"].items()
    }
    assert bounds == {
        "type": {
            "maxLength": 316,
            "pattern": r"^([a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*/)?"
            r"(([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9])$",
        },
        "status": {"enum": ["True", "False", "Unknown"]},
        "reason": {"minLength": 1, "maxLength": 1024, "pattern": r"^[A-Za-z]([A-Za-z0-9_,:]*[A-Za-z0-9_])?$"},
        "message": {"maxLength": 32_768},
        "lastTransitionTime": {"format": "date-time"},
        "observedGeneration": {"minimum": 0, "format": "int64"},
    }
    assert sorted(condition["required"]) == ["lastTransitionTime", "message", "reason", "status", "type"]


def test_kubectl_can_apply_the_file() -> None:
    """kubectl keeps the whole object in an annotation, and annotations have at most 256 KiB, helm's own among them."""
    assert len(json.dumps(yaml.safe_load(FILE.read_text()), separators=(",", ":"))) < 260_000


def patterns(node: Any, path: str = "") -> Iterator[str]:
    """The places of patterns in a schema."""
    for name, value in node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ():
        if name == "pattern" and isinstance(value, str):
            yield path
        yield from patterns(value, f"{path}.{name}")


def test_what_is_refused_is_refused_in_words() -> None:
    """An API server quotes a pattern, from which few can tell what to write; rules have messages."""
    assert list(patterns(SCHEMA["properties"]["spec"])) == []


@pytest.mark.parametrize(("document", "accepted"), cases())
def test_the_checks_of_run(document: dict[str, Any], accepted: bool) -> None:
    if accepted:
        build_graph(check_pipeline(document).spec)
        return
    with pytest.raises(UserError):
        build_graph(check_pipeline(document).spec)


@pytest.fixture(scope="module")
def server() -> str:
    """kubectl, where it reaches an API server that has the definition; else the test is skipped or, where a cluster is
    required, fails."""
    path = os.pathsep.join([os.environ["PATH"], "/var/lib/kind-local/bin"])
    kubectl = shutil.which("kubectl", path=path)
    if kubectl and subprocess.run([kubectl, "version"], capture_output=True, check=False).returncode == 0:
        subprocess.run([kubectl, "apply", "--server-side", "-f", str(FILE)], check=True, capture_output=True)
        wait = [kubectl, "wait", "--for=condition=Established", "crd/chatpipelines.nanochat.dev", "--timeout=30s"]
        subprocess.run(wait, check=True, capture_output=True)
        return kubectl
    if os.environ.get("NANOCHAT_REQUIRE_CLUSTER"):
        pytest.fail("no API server is reached")
    pytest.skip("no API server is reached")


@pytest.mark.cluster
@pytest.mark.parametrize(("document", "accepted"), cases())
def test_the_api_server(server: str, document: dict[str, Any], accepted: bool) -> None:
    command = [server, "create", "--dry-run=server", "--validate=strict", "-n", "default", "-f", "-"]
    done = subprocess.run(command, input=json.dumps(document), capture_output=True, text=True, check=False)
    assert (done.returncode == 0) is accepted, done.stderr


@pytest.mark.cluster
def test_the_store_cannot_change(server: str) -> None:
    name = "immutable"

    def apply(store: str) -> subprocess.CompletedProcess[str]:
        document = json.dumps(named(name) | {"spec": {"store": store, "suspend": True}})
        return subprocess.run(
            [server, "apply", "-n", "default", "-f", "-"], input=document, capture_output=True, text=True, check=False
        )

    try:
        assert apply("one").returncode == 0
        assert "store cannot change" in apply("two").stderr
    finally:
        subprocess.run([server, "delete", "cp", name, "-n", "default", "--wait=false"], capture_output=True, check=True)
