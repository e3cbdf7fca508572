"""Every value does something, is described, and is checked."""

from __future__ import annotations

import copy
import re
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import yaml
from rendered_chart import CHART, FILES, VALUES, Chart

from operators import values_schema, values_table

DEFAULTS = yaml.safe_load((CHART / "values.yaml").read_text())
S3: dict[str, Any] = {
    "images": {"registry": "registry.example.org"},
    "profiles": {"default": {"root": "s3://b", "secret": "k", "controllerSecret": "k"}},
}
FIXED_KEY = {"devStore": {"secretKey": "not-a-random-one"}}  # so that two renderings are equal, but for
RANDOM = re.compile(r"NANOCHAT_CODE_KEY: \S+|AWS_SECRET_ACCESS_KEY: \S{44}")
DESCRIBED = [value.path for value in values_table.described((CHART / "values.yaml").read_text())]


def test_the_schema_is_fresh() -> None:
    assert values_schema.FILE.read_text() == values_schema.text(), "run make generate"


def test_the_table_is_fresh() -> None:
    assert values_table.PAGE.read_text() == values_table.page(), "run make generate"


def test_every_value_is_described() -> None:
    assert len(DESCRIBED) == len(set(DESCRIBED))

    def bare(data: Any, path: str) -> list[str]:
        if path in DESCRIBED:
            return []
        return [item for name, value in data.items() for item in bare(value, f"{path}.{name}".lstrip("."))]

    assert bare(DEFAULTS, "") == []


def changes(data: Any, path: str = "") -> list[str]:
    """The described values that a file of values sets."""
    if path in DESCRIBED:
        return [path]
    return [found for name, value in data.items() for found in changes(value, f"{path}.{name}".lstrip("."))]


def without(data: Any, path: str) -> Any:
    data = copy.deepcopy(data)
    *parents, last = path.split(".")
    node = data
    for part in parents:
        node = node[part]
    del node[last]
    return data


def test_every_value_does_something(chart: Chart) -> None:
    """Each value is set in some file of values, and taking it out of there changes what is rendered."""
    files = {file: merged(FIXED_KEY, yaml.safe_load(file.read_text())) for file in FILES}
    places: dict[str, list[Path]] = {}
    for file, data in files.items():
        for path in changes(data):
            places.setdefault(path, []).append(file)
    assert set(DESCRIBED) - set(places) == set(), "set in no file of tests/chart/values"
    with ThreadPoolExecutor(4) as pool:

        def shown(data: Any) -> str:
            return RANDOM.sub("", chart.template(data).stdout)

        whole = dict(zip(files, pool.map(shown, files.values()), strict=True))

        def matters(path: str) -> bool:
            return any(shown(without(files[file], path)) != whole[file] for file in places[path])

        assert [path for path, seen in zip(places, pool.map(matters, places), strict=True) if not seen] == []


def merged(one: Any, two: Any) -> Any:
    if isinstance(one, dict) and isinstance(two, dict):
        return {**one, **two} | {name: merged(one[name], two[name]) for name in one.keys() & two.keys()}
    return two


# What is wrong, the values, and words that the message has to have.
WRONG: dict[str, tuple[dict[str, Any], list[str]]] = {
    "an unknown value": ({"mlfow": {}}, ["mlfow"]),
    "an unknown value deep down": ({"inference": {"cache": {"sizeLimit": "1Gi"}}}, ["/inference/cache", "sizeLimit"]),
    "the former image": ({"controller": {"image": "nanochat-operator:dev"}}, ["/controller/image", "want object"]),
    "no repository": ({"trainer": {"image": {"repository": ""}}}, ["/trainer/image/repository", "pattern"]),
    "a digest that is none": ({"trainer": {"image": {"digest": "latest"}}}, ["/trainer/image/digest", "sha256"]),
    "a pull policy": ({"images": {"pullPolicy": "Sometimes"}}, ["/images/pullPolicy", "IfNotPresent"]),
    "a scope": ({"scope": "global"}, ["/scope", "namespaced"]),
    "a namespace": ({"namespaces": ["Team_A"]}, ["/namespaces/0", "pattern"]),
    "text for a list": ({"namespaces": "team-a"}, ["/namespaces", "want array"]),
    "text for a truth": ({"crds": {"install": "yes"}}, ["/crds/install", "want boolean"]),
    "a profile without root": ({"profiles": {"team": {"secret": "k"}}}, ["/profiles/team", "root"]),
    "a profile's typo": ({"profiles": {"default": {"root": "s3://b", "endpont": "x"}}}, ["default", "endpont"]),
    "a profile's name": ({"profiles": {"My Store": {"root": "s3://b"}}}, ["propertyName", "My Store"]),
    "a setting of pods": ({"pools": {"gpu": {"pods": {"nodeselector": {}}}}}, ["/pools/gpu/pods", "nodeselector"]),
    "a network of pods": ({"pools": {"gpu": {"pods": {"network": "ib"}}}}, ["/pools/gpu/pods/network", "rdma-host"]),
    "a pool": ({"pools": {"tpu": {}}}, ["/pools", "tpu"]),
    "a quantity": ({"pools": {"cpu": {"memoryLimit": "64 GB"}}}, ["/pools/cpu/memoryLimit"]),
    "a port": ({"controller": {"port": 80}}, ["/controller/port", "minimum"]),
    "a log level": ({"controller": {"logLevel": "debug"}}, ["/controller/logLevel", "DEBUG"]),
    "a toleration": (
        {"mlflow": {"tolerations": [{"effect": "Never"}]}},
        ["/mlflow/tolerations/0/effect", "NoSchedule"],
    ),
    "an S3 address without a known scheme": (
        {"profiles": {"default": {"root": "s3a://b"}}},
        ["/profiles/default/root", "pattern"],
    ),
    "an endpoint without a scheme": (
        {"profiles": {"default": {"endpoint": "minio:9000"}}},
        ["/profiles/default/endpoint", "https?"],
    ),
    "an endpoint with a password": (
        {"profiles": {"default": {"endpoint": "http://user:hunter2@minio:9000"}}},
        ["/profiles/default/endpoint", "https?"],
    ),
    "a tracking address without a scheme": (
        {"profiles": {"default": {"tracking": "mlflow:5000"}}},
        ["/profiles/default/tracking", "sqlite"],
    ),
    "a number that is too large": ({"storePatienceSeconds": 10**12}, ["/storePatienceSeconds", "maximum"]),
    "a text that is too long": ({"images": {"tag": "a" * 200}}, ["/images/tag", "maxLength"]),
    "an MLflow address": ({"mlflow": {"external": {"uri": "mlflow:5000"}}}, ["/mlflow/external/uri", "https?"]),
    "an artifact destination": ({"mlflow": {"artifacts": {"destination": "/data"}}}, ["destination", "s3://"]),
    "an allowed host with a port": ({"mlflow": {"allowedHosts": ["a:5000"]}}, ["/mlflow/allowedHosts/0"]),
    "a volume's size": ({"mlflow": {"persistence": {"size": 10}}}, ["/mlflow/persistence/size", "want string"]),
    "a store that is neither": ({"devStore": {"enabled": "yes"}}, ["/devStore/enabled", "auto"]),
    "a store of 12 bytes": ({"devStore": {"persistence": {"size": "12"}}}, ["/devStore/persistence/size"]),
    "a bucket": ({"devStore": {"bucket": "My_Bucket"}}, ["/devStore/bucket", "pattern"]),
    "a short key": ({"devStore": {"secretKey": "short"}}, ["/devStore/secretKey", "8"]),
    "a model's address": (
        {"inference": {"modelUri": "models:/nanochat@champion"}},
        ["/inference/modelUri", "(s3|gs|abfs)://"],
    ),
    "negative replicas": ({"inference": {"replicas": -1}}, ["/inference/replicas", "minimum"]),
    "half a GPU": ({"inference": {"gpus": 0.5}}, ["/inference/gpus", "want integer"]),
    "an autoscaler": ({"inference": {"autoscaling": {"kind": "vpa"}}}, ["/inference/autoscaling/kind", "keda"]),
    "a service type": ({"inference": {"service": {"type": "ExternalName"}}}, ["/inference/service/type", "NodePort"]),
    "a variable without a name": ({"inference": {"env": [{"value": "x"}]}}, ["/inference/env/0", "name"]),
    "an interval": ({"monitoring": {"interval": "often"}}, ["/monitoring/interval", "pattern"]),
    "extra rules of an unknown part": ({"networkPolicy": {"extra": {"redis": {}}}}, ["/networkPolicy/extra", "redis"]),
    "a registry with a scheme": ({"images": {"registry": "https://ghcr.io/us"}}, ["/images/registry", "pattern"]),
    "an image's registry with a scheme": (
        {"controller": {"image": {"registry": "oci://ghcr.io"}}},
        ["/controller/image/registry", "pattern"],
    ),
    "a volume of 12 bytes": ({"mlflow": {"persistence": {"size": "12"}}}, ["/mlflow/persistence/size", "pattern"]),
    "a cache of 12 bytes": ({"inference": {"cache": {"size": "12"}}}, ["/inference/cache/size", "pattern"]),
    "a label's name": ({"commonLabels": {"a b": "c"}}, ["/commonLabels", "a b"]),
    "a label's value": ({"inference": {"podLabels": {"a": "b c"}}}, ["/inference/podLabels/a", "pattern"]),
    "an annotation's name": ({"mlflow": {"podAnnotations": {"a b": "c"}}}, ["/mlflow/podAnnotations", "a b"]),
    "a variable's name": ({"mlflow": {"env": [{"name": "A-B", "value": "c"}]}}, ["/mlflow/env/0/name", "pattern"]),
    "a variable of the chart's own": (
        {"inference": {"env": [{"name": "NANOCHAT_MODEL_URI", "value": "s3://b/x"}]}},
        ["/inference/env/0/name", "not"],
    ),
    "a variable from nowhere": ({"mlflow": {"env": [{"name": "A", "valueFrom": {}}]}}, ["/mlflow/env/0/valueFrom"]),
    "a resource that is none": (
        {"controller": {"resources": {"limits": {"memroy": "1Gi"}}}},
        ["/controller/resources/limits", "memroy"],
    ),
    "GPUs by their name": (
        {"inference": {"resources": {"limits": {"nvidia.com/gpu": 1}}}},
        ["inference.resources: GPUs are asked for by inference.gpus"],
    ),
    "half a device": (
        {"pools": {"gpu": {"pods": {"resources": {"limits": {"rdma/hca": "0.5"}}}}}},
        ["/pools/gpu/pods/resources/limits/rdma~1hca"],
    ),
    "a toleration without a key": (
        {"inference": {"tolerations": [{"value": "a"}]}},
        ["/inference/tolerations/0", "key"],
    ),
    "a toleration with a value that exists": (
        {"inference": {"tolerations": [{"operator": "Exists", "value": "a"}]}},
        ["/inference/tolerations/0/value"],
    ),
    "a while of no effect": (
        {"inference": {"tolerations": [{"key": "a", "tolerationSeconds": 5}]}},
        ["/inference/tolerations/0", "effect"],
    ),
    "a topology's key": ({"inference": {"topologyKey": "a b"}}, ["/inference/topologyKey", "pattern"]),
    "a route's host": ({"inference": {"httpRoute": {"hostnames": ["https://a"]}}}, ["hostnames/0", "pattern"]),
    # Refused by the templates.
    "a memory of 12 bytes": (
        {"controller": {"resources": {"requests": {"memory": 12}}}},
        ["controller.resources: memory is 12, and 16Mi are the least"],
    ),
    "a processor of four gigabytes": (
        {"inference": {"resources": {"requests": {"cpu": "4Gi"}}}},
        ["inference.resources: cpu 4Gi is more than 4096 cores"],
    ),
    "a pool's memory of 12 bytes": (
        {"pools": {"cpu": {"pods": {"resources": {"limits": {"memory": "12"}}}}}},
        ["pools.cpu.pods.resources: memory is 12"],
    ),
    "a memory limit of 64 bytes": ({"pools": {"gpu": {"memoryLimit": 64}}}, ["pools.gpu.memoryLimit is 64"]),
    "a shared memory of 12 bytes": (
        {"pools": {"gpu": {"pods": {"sharedMemory": "12k"}}}},
        ["pools.gpu.pods.sharedMemory is 12k"],
    ),
    "a request above its limit": (
        {"mlflow": {"resources": {"requests": {"memory": "3Gi"}}}},
        ["mlflow.resources: the request of memory (3Gi) is above its limit (2Gi)"],
    ),
    "a device whose request is not its limit": (
        {"pools": {"gpu": {"pods": {"resources": {"requests": {"a/b": 1}, "limits": {"a/b": 2}}}}}},
        ["the request of a/b (1) must be its limit (2)"],
    ),
    "a label of the chart's own": (
        {"commonLabels": {"app.kubernetes.io/name": "x"}},
        ["commonLabels: the chart sets the label app.kubernetes.io/name itself"],
    ),
    "no store": ({"profiles": None, "devStore": {"enabled": False}}, ["profiles.default.root", "devStore.enabled"]),
    "no registry": (
        {"images": {"registry": ""}},
        [
            "no registry to pull nanochat-",
            "make push REGISTRY=",
            "helm install nanochat helm/nanochat -n ns",
            "images.loaded",
        ],
    ),
    "an unknown profile": ({"inference": {"profile": "team"}}, ["inference.profile", "'team'", "default"]),
    "an unknown profile of MLflow": (
        {"mlflow": {"artifacts": {"destination": "s3://b", "profile": "team"}}},
        ["mlflow.artifacts.profile", "'team'"],
    ),
    "a registry that is not there": ({"mlflow": {"enabled": False}}, ["mlflow.external.uri", "inference.modelUri"]),
    "too short a grace": ({"inference": {"lingerSeconds": 30}}, ["terminationGracePeriodSeconds", "95"]),
    "an Ingress without host": ({"inference": {"ingress": {"enabled": True}}}, ["inference.ingress.host"]),
    "a route without a gateway": ({"inference": {"httpRoute": {"enabled": True}}}, ["inference.httpRoute.parentRefs"]),
    "an autoscaler without a target": (
        {"inference": {"autoscaling": {"kind": "hpa", "targetWaiting": 0}}},
        ["targetCPU", "targetWaiting"],
    ),
    "more at least than at most": (
        {"inference": {"autoscaling": {"kind": "hpa", "minReplicas": 9}}},
        ["minReplicas", "maxReplicas"],
    ),
    "KEDA without Prometheus": ({"inference": {"autoscaling": {"kind": "keda"}}}, ["inference.autoscaling.prometheus"]),
}


@pytest.mark.parametrize("name", WRONG)
def test_wrong_values_are_refused(chart: Chart, name: str) -> None:
    values, words = WRONG[name]
    done = chart.template(merged(S3, values))
    assert done.returncode != 0
    assert [word for word in words if word not in done.stderr] == [], done.stderr


def test_the_files_are_complete() -> None:
    assert {path.parent for path in FILES} == {VALUES, CHART}
