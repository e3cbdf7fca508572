"""Pipelines that cannot run, each beside a younger one that needs its data: the reason is said, and both succeed."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import pytest
from documents import SEED, WORLD, document
from site_of_tests import BUSY, NAMESPACE, Site, Status, say

pytestmark = pytest.mark.cluster

# Four short stages, whose pods find room beside each other.
SHORT = {f"stages.{name}.enabled": False for name in ("mid", "sft", "evalBase", "evalChat", "report")}
SHORT |= {"stages.base.steps": 3, "stages.base.nodes": 1}
SHORT |= {"pods.resources": {"requests": {"cpu": "50m", "memory": "256Mi"}}}
LATE = {"pods.nodeSelector": {"pool": "late"}}  # no node has this label, until a test gives it to one
WORKLOADS = "workloads.kueue.x-k8s.io"

# What each lacks, and the words in which `kubectl get cp` says so.
SITUATIONS: Mapping[str, tuple[dict[str, Any], str]] = {
    "queued": ({"queue": "nowhere"}, "the cluster has no Kueue"),
    "unranked": ({"pods.priorityClass": "nowhere"}, "no PriorityClass with name nowhere was found"),
    "unserved": ({"pods.serviceAccount": "nobody"}, 'serviceaccount "nobody" not found'),
    "imageless": ({"pods.image": "registry.invalid/nowhere:1"}, "cannot be pulled"),
    "secretless": ({"pods.envFrom": [{"secretRef": {"name": "nowhere"}}]}, 'secret "nowhere" not found'),
    "nodeless": ({"pods.nodeSelector": {"pool": "nowhere"}}, "cannot be scheduled"),
    "halted": ({"pods.nodeSelector": {"pool": "nowhere"}}, "cannot be scheduled"),
    "planless": (LATE, "cannot be scheduled"),
}


def short(name: str, number: int, **changes: Any) -> dict[str, Any]:
    """A pipeline; those of one number need the same, which no other has made, the data included."""
    characters = 300_000 + (16 * SEED + number) % 100_000
    return document(WORLD, name, **SHORT, **changes, **{"sources.text.charactersPerShard": characters})


def lines(site: Site) -> dict[str, str]:
    """What `kubectl get cp` says, by pipeline."""
    table = site.kubectl("-n", NAMESPACE, "get", "cp", "--no-headers")
    return {line.split()[0]: line for line in table.splitlines()}


def when_said(site: Site, words: Mapping[str, str], *, seconds: float) -> dict[str, float]:
    """Seconds until each pipeline's line had its words; the test fails where one never has."""
    began = time.monotonic()
    said: dict[str, float] = {}
    while lacking := words.keys() - said.keys():
        found, passed = lines(site), time.monotonic() - began
        said |= {name: round(passed, 1) for name in lacking if words[name] in found.get(name, "")}
        assert passed < BUSY * seconds, {name: found.get(name) for name in lacking}
        time.sleep(1)
    return said


def ends(status: Status) -> list[dict[str, Any]]:
    """The attempts that ended of the stage that began first."""
    attempts = status.get("attempts") or []
    return [item for item in attempts if item["stage"] == attempts[0]["stage"] and item["reason"] != "Running"]


@contextmanager
def without_kueue(site: Site) -> Iterator[None]:
    """For a while the API server knows no Workloads, as where Kueue is not installed."""

    def serve(served: bool) -> None:
        versions = [version["name"] for version in site.get("crd", WORKLOADS)["spec"]["versions"]]
        path = f"/spec/versions/{versions.index('v1beta1')}/served"
        patch = json.dumps([{"op": "replace", "path": path, "value": served}])
        site.kubectl("patch", "crd", WORKLOADS, "--type=json", "-p", patch)

    serve(False)
    try:
        yield
    finally:
        serve(True)


@contextmanager
def late_node(site: Site) -> Iterator[None]:
    """For a while a node has the label that LATE asks for."""
    node = site.nodes()[0]
    site.kubectl("label", "node", node, "pool=late", "--overwrite")
    try:
        yield
    finally:
        site.kubectl("label", "node", node, "pool-")


def test_who_cannot_run_keeps_nobody_waiting(site: Site) -> None:
    """Each younger one makes what the older one cannot, which finds all of it then."""
    younger = {name: f"after-{name}" for name in SITUATIONS}
    for name in (*SITUATIONS, *younger.values()):
        site.delete(name)
    with without_kueue(site):
        for number, (name, (changes, _)) in enumerate(SITUATIONS.items()):
            site.apply(short(name, number, **changes))
        said = when_said(site, {name: words for name, (_, words) in SITUATIONS.items()}, seconds=120)
        say(f"seconds until it was said: {said}")

        (job,) = site.get("pytorchjobs", "-n", NAMESPACE, "-l", "nanochat.dev/pipeline=halted")["items"]
        halt = '{"spec": {"runPolicy": {"suspend": true}}}'
        site.kubectl("-n", NAMESPACE, "patch", "pytorchjob", job["metadata"]["name"], "--type=merge", "-p", halt)
        halted = site.wait("halted", ends, seconds=60, what="the end of the attempt")
        assert "somebody else suspended the job" in ends(halted)[0]["message"]

        site.kubectl("-n", NAMESPACE, "delete", "configmap", "-l", "nanochat.dev/pipeline=planless")
        with late_node(site):
            planless = site.wait("planless", ends, seconds=120, what="the end of the attempt")
        assert "with its plan was deleted" in ends(planless)[0]["message"]

        for number, name in enumerate(SITUATIONS):
            site.apply(short(younger[name], number))
        for name in (*younger.values(), *SITUATIONS):
            site.wait(name, lambda status: status["phase"] == "Succeeded", seconds=400)
    for name in (*SITUATIONS, *younger.values()):
        site.delete(name)


def test_a_request_above_its_limit_is_refused_at_the_door(site: Site) -> None:
    amounts = {"requests": {"memory": "8Gi"}, "limits": {"memory": "4Gi"}}
    with pytest.raises(AssertionError, match="a request is above its limit"):
        site.apply(short("greedy", 0) | {"spec": {"pods": {"resources": amounts}}})


def test_six_suspends_in_a_row_are_no_failures(site: Site) -> None:
    """More than `retries.limit` attempts end without progress, and none of them counts."""
    name = "restless"
    site.delete(name)
    site.apply(short(name, 15, **LATE))
    began = time.monotonic()
    site.wait(name, lambda status: status["phase"] == "Pending", seconds=60)
    for _ in range(6):
        for command, phase in (("suspend", "Suspended"), ("resume", "Pending")):
            site.nanochat(command, name)
            site.wait(name, lambda status, wanted=phase: status["phase"] == wanted, seconds=60)
    say(f"six suspends took {time.monotonic() - began:.0f} s")
    with late_node(site):
        status = site.wait(name, lambda status: status["phase"] == "Succeeded", seconds=300)
    assert [end["reason"] for end in ends(status)] == ["Preempted"] * 6 + ["Succeeded"]
    site.delete(name)
