"""`nanochat doctor --cluster` on ten broken clusters: it names the cause of each, and calls nothing else broken."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any

import pytest
import yaml
from documents import WORLD, document
from site_of_tests import MLFLOW, NAMESPACE, SYSTEM, Site, say

pytestmark = pytest.mark.cluster

OPERATOR = "training-operator"
SMALL = {"pods.resources": {"requests": {"cpu": "50m", "memory": "256Mi"}}}
Broken = Callable[[Site], AbstractContextManager[None]]


@contextmanager
def scaled_to_none(site: Site, namespace: str, deployment: str) -> Iterator[None]:
    """A Deployment without pods."""
    where = ("-n", namespace)
    site.kubectl(*where, "scale", f"deployment/{deployment}", "--replicas=0")
    try:
        labels = site.get("deployment", deployment, *where)["spec"]["selector"]["matchLabels"]
        chosen = ",".join(f"{name}={value}" for name, value in labels.items())
        site.kubectl(*where, "wait", "pod", "-l", chosen, "--for=delete", "--timeout=120s", check=False)
        yield
    finally:
        site.kubectl(*where, "scale", f"deployment/{deployment}", "--replicas=1")
        site.kubectl(*where, "rollout", "status", f"deployment/{deployment}", "--timeout=180s")


@contextmanager
def other_secret(site: Site, data: dict[str, str] | None) -> Iterator[None]:
    """The Secret of the store's keys with other ones, or none."""
    kept = site.get("secret", "s3", "-n", NAMESPACE)
    body = {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "s3", "namespace": NAMESPACE}}
    site.kubectl("-n", NAMESPACE, "delete", "secret", "s3")
    try:
        if data is not None:
            encoded = {name: base64.b64encode(value.encode()).decode() for name, value in data.items()}
            site.kubectl("apply", "-f", "-", input=json.dumps(body | {"data": encoded}))
        yield
    finally:
        site.kubectl("-n", NAMESPACE, "delete", "secret", "s3", "--ignore-not-found")
        site.kubectl("apply", "-f", "-", input=json.dumps(body | {"data": kept["data"]}))


@contextmanager
def full_quota(site: Site) -> Iterator[None]:
    """A quota that leaves no room for a pod."""
    body = {"apiVersion": "v1", "kind": "ResourceQuota", "metadata": {"name": "full", "namespace": NAMESPACE}}
    site.kubectl("apply", "-f", "-", input=json.dumps(body | {"spec": {"hard": {"pods": "0"}}}))
    try:
        counted = "jsonpath={.status.hard.pods}=0"
        site.kubectl("-n", NAMESPACE, "wait", "resourcequota/full", f"--for={counted}", "--timeout=60s")
        yield
    finally:
        site.kubectl("-n", NAMESPACE, "delete", "resourcequota", "full")


@contextmanager
def tainted(site: Site) -> Iterator[None]:
    """All nodes kept for others."""
    try:
        for node in site.nodes():
            site.kubectl("taint", "node", node, "dedicated=research:NoSchedule", "--overwrite")
        yield
    finally:
        for node in site.nodes():
            site.kubectl("taint", "node", node, "dedicated-", check=False)


def as_it_is(_site: Site) -> AbstractContextManager[None]:
    """The cluster as it is: it lacks what the pipeline asks for."""
    return nullcontext()


# How it is broken, what the pipeline asks for, the check that fails, and what that says.
SITUATIONS: dict[str, tuple[Broken, dict[str, Any], str, str]] = {
    "no operator": (lambda site: scaled_to_none(site, "kubeflow", OPERATOR), {}, "operator", "it is scaled to no pod"),
    "no Secret": (lambda site: other_secret(site, None), {}, "secret", f"there is no Secret {NAMESPACE}/s3"),
    "wrong keys": (
        lambda site: other_secret(site, {"AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "another"}),
        {},
        "store",
        f"correct the keys of Secret {NAMESPACE}/s3",
    ),
    "full quota": (full_quota, {}, "quota", "ResourceQuota full"),
    "no such GPU": (as_it_is, {"stages.base.gpusPerNode": 8}, "stages", "offers no nvidia.com/gpu"),
    "taint": (tainted, {}, "stages", "the taint dedicated=research:NoSchedule"),
    "Pod Security": (as_it_is, {"pods.network": "rdma-host"}, "podsecurity", "enforces restricted"),
    "wrong image": (as_it_is, {"pods.image": "registry.invalid/nowhere:1"}, "images", "registry.invalid/nowhere:1"),
    "MLflow away": (lambda site: scaled_to_none(site, SYSTEM, MLFLOW), {}, "mlflow", "is ready"),
    "no queue": (as_it_is, {"queue": "nowhere"}, "queue", f"there is no LocalQueue {NAMESPACE}/nowhere"),
}


def examined(site: Site, folder: Path, changes: dict[str, Any]) -> list[dict[str, str]]:
    """What the command finds for a small pipeline with these changes."""
    file = folder / "examined.yaml"
    file.write_text(yaml.safe_dump(document(WORLD, "examined", **SMALL, **changes)))
    return json.loads(site.nanochat("doctor", "--cluster", "--json", str(file), check=False))


def failures(found: list[dict[str, str]]) -> dict[str, str]:
    return {item["name"]: f"{item['found']} | {item['advice']}" for item in found if item["level"] == "fail"}


def probes(site: Site) -> list[str]:
    """The pods that the command has left."""
    found = site.get("pods", "-n", NAMESPACE, "-l", "nanochat.dev/probe")["items"]
    return [pod["metadata"]["name"] for pod in found if "deletionTimestamp" not in pod["metadata"]]


def test_nothing_is_broken_at_first(site: Site, chat: str, tmp_path: Path) -> None:
    found = examined(site, tmp_path, {})
    say("\n".join(f"{item['level']:<5} {item['name']:<11} {item['found']}" for item in found))
    assert not failures(found)
    assert {"images", "store", "mlflow", "stages", "operator"} <= {i["name"] for i in found if i["level"] == "ok"}
    assert probes(site) == []


@pytest.mark.parametrize("situation", SITUATIONS)
def test_the_cause_is_named_and_nothing_else(site: Site, chat: str, tmp_path: Path, situation: str) -> None:
    broken, changes, name, says = SITUATIONS[situation]
    with broken(site):
        found = failures(examined(site, tmp_path, changes))
    say(f"{situation}: {found}")
    assert found.keys() == {name}, found
    assert says in found[name]
    assert probes(site) == []


def test_nothing_is_broken_in_the_end(site: Site, chat: str, tmp_path: Path) -> None:
    """What the tests broke is whole again."""
    assert not failures(examined(site, tmp_path, {}))
