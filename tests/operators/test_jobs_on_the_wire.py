"""The jobs that the API server is sent for requests that together use every setting of pods.

`pytorchjobs.json` has them under the names here, field by field: another client library must not change them.
"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from test_jobs import CONFIG, SMALL, build, request, training

from nanochat.spec.chatpipeline import ATTEMPT
from operators.pytorchjob import PyTorchJobs

POD = {
    "image": "mine:2",
    "imagePullPolicy": "Always",
    "imagePullSecrets": ["pull", "other"],
    "serviceAccount": "trainer",
    "nodeSelector": {"zone": "a"},
    "tolerations": [{"key": "a", "effect": "NoExecute", "tolerationSeconds": 5}, {"operator": "Exists"}],
    "resources": {"requests": {"cpu": "1500m", "rdma/shared": 1}, "limits": {"cpu": 2, "ephemeral-storage": "4Gi"}},
    "priorityClass": "high",
    "sharedMemory": 67108864,
    "annotations": {"a/b": "c"},
    "labels": {"team": "x"},
    "topologyKey": "topology.kubernetes.io/zone",
    "env": [
        {"name": "HOME", "value": "/other"},
        {"name": "EMPTY", "value": ""},
        {"name": "SECRET", "valueFrom": {"secretKeyRef": {"name": "s", "key": "k"}}},
        {"name": "MAP", "valueFrom": {"configMapKeyRef": {"name": "m", "key": "k"}}},
    ],
    "envFrom": [{"secretRef": {"name": "all"}}, {"configMapRef": {"name": "all"}}],
    "runAsUser": 7,
}
IDENTITY = training()
IDENTITY["stages"]["mid"] = {**IDENTITY["stages"]["mid"], "identity": "configmap://who/ami.jsonl"}

CASES = {
    "one node": request(**training()),
    "gpus": request(**training(nodes=2, gpusPerNode=8)),
    "queue": request(**SMALL | {"stages": training()["stages"], "queue": "team", "priority": "urgent"}),
    "a queue without priority": request(**SMALL | {"stages": training()["stages"], "queue": "team"}),
    "rdma": request(**training(nodes=2, gpusPerNode=1, pod={"network": "rdma"})),
    "the host's network": request(**training(nodes=2, pod={"network": "rdma-host"})),
    "efa": request(**training(nodes=2, pod={"network": "efa"})),
    "every setting": request(memory=2.0, **training(nodes=2, pod=POD)),
    "identity": request("dataset", **IDENTITY),
    "report": request("report", **training()),
    "suspects": replace(request(**training(nodes=2)), avoid={"worse": 1.0, "bad": 0.5}),
    "a service account instead of a secret": replace(
        request(**training()),
        accepted=replace(
            request(**training()).accepted,
            profile=CONFIG.profiles["default"].model_copy(update={"secret": None, "service_account": "cloud"}),
        ),
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_the_job_on_the_wire(name: str) -> None:
    expected = json.loads(Path(__file__).with_name("pytorchjobs.json").read_text())
    job = json.loads(json.dumps(build(CASES[name])[1]))
    annotations = job["metadata"]["annotations"]
    told = json.loads(annotations[ATTEMPT])
    assert len(told.pop("form")) == 16, "a digest of what is compared here"
    annotations[ATTEMPT] = json.dumps(told)
    assert job == expected[name]


def test_the_form_of_a_job_tells_settings_and_not_nodes() -> None:
    backend, asked = PyTorchJobs(None), CASES["suspects"]  # type: ignore[arg-type]
    form = backend.form(asked)
    assert backend.form(replace(asked, avoid={"other": 3.0}, started=7.0)) == form
    others = [request(**training(nodes=2, pod={"image": "mine:2"})), request(**training(nodes=3))]
    assert form not in {backend.form(other) for other in others}
