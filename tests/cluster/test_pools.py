"""Stages land on the pools that they name; what cannot be had is said within half a minute."""

from __future__ import annotations

import time
from collections.abc import Callable

import pytest
from documents import SEED, WORLD, document
from site_of_tests import NAMESPACE, Site, Status

pytestmark = pytest.mark.cluster


def test_gpu_pools(site: Site) -> None:
    """Nodes that claim GPUs, with a label and a taint: training goes there, the rest does not."""
    first, second, last = site.nodes()
    for node in (first, second):
        site.run("kind", "set-gpus", node, "2")
        site.kubectl("label", "node", node, "pool=gpu", "--overwrite")
        site.kubectl("taint", "node", node, "nvidia.com/gpu=present:NoSchedule", "--overwrite")
    name = "pools"
    site.delete(name)
    changes = {"stages.base.gpusPerNode": 1, "stages.base.steps": 40, "stages.base.precision": "fp32"}
    small = {"requests": {"cpu": "250m", "memory": "1Gi"}}
    site.apply(document(WORLD, name, **changes, **{"stages.base.pod": {"resources": small}}))
    try:
        status = site.wait(name, lambda s: s["phase"] == "Succeeded", seconds=400)
        where = {attempt["stage"]: set(attempt["nodes"]) for attempt in status["attempts"]}
        assert where["base"] == {first, second}
        assert all(nodes == {last} for stage, nodes in where.items() if stage != "base")
        assert status["gpuHours"] > 0

        site.delete("greedy")
        site.apply(document(WORLD, "greedy", **(changes | {"stages.base.gpusPerNode": 4, "stages.base.steps": 41})))
        told = site.wait("greedy", lambda s: "cannot be scheduled" in s.get("message", ""), seconds=60)
        assert "Insufficient nvidia.com/gpu" in told["message"]
        asked = site.get("pods", "-n", NAMESPACE, "-l", "nanochat.dev/pipeline=greedy,nanochat.dev/stage=base")["items"]
        assert asked, "the pods are there, and wait"
    finally:
        site.delete("greedy")
        for node in (first, second):
            site.run("kind", "set-gpus", node, "0")
            site.kubectl("label", "node", node, "pool-")
            site.kubectl("taint", "node", node, "nvidia.com/gpu-")


def pending(reason: str, words: str) -> Callable[[Status], bool]:
    """Whether a stage waits for this reason and the pipeline says so in these words."""

    def holds(status: Status) -> bool:
        waits = [stage for stage in status.get("stages", ()) if stage.get("reason") == reason]
        return bool(waits) and status["phase"] == "Pending" and words in status.get("message", "")

    return holds


def first_ends(status: Status) -> list[str]:
    """How the attempts of the stage ended that began first."""
    attempts = status.get("attempts") or []
    return [attempt["reason"] for attempt in attempts if attempt["stage"] == attempts[0]["stage"]]


def test_a_secret_that_is_missing_is_said_and_may_come(site: Site) -> None:
    name = "lacking"
    site.delete(name)
    site.kubectl("delete", "secret", "absent", "-n", NAMESPACE, "--ignore-not-found")
    site.apply(document(WORLD, name, **{"pods.envFrom": [{"secretRef": {"name": "absent"}}], "seed": SEED + 3}))
    site.wait(name, pending("CreateContainerConfigError", 'secret "absent" not found'), seconds=60)
    site.kubectl("create", "secret", "generic", "absent", "-n", NAMESPACE, "--from-literal=WORD=one")
    site.wait(name, lambda s: first_ends(s) == ["Succeeded"], seconds=180, what="its first attempt's success")
    site.delete(name)
    site.kubectl("delete", "secret", "absent", "-n", NAMESPACE)


def test_pods_that_the_api_server_refuses_are_said_in_its_words(site: Site) -> None:
    """The reason stands in an Event of the job alone. An edit mends it at once."""
    name = "refused"
    site.delete(name)
    changes = {"seed": SEED + 4, "stages.base.steps": 20}
    site.apply(document(WORLD, name, **changes, **{"pods.serviceAccount": "nobody"}))
    site.wait(name, pending("PodsRefused", 'serviceaccount "nobody" not found'), seconds=60)
    site.apply(document(WORLD, name, **changes))
    site.wait(name, lambda s: first_ends(s) == ["Preempted", "Succeeded"], seconds=180)
    site.delete(name)


def test_a_plan_that_is_gone_is_made_anew(site: Site) -> None:
    """The pod cannot be scheduled before the plan is deleted, so that it has not mounted it."""
    name = "planless"
    site.delete(name)
    nodes = [node["metadata"]["name"] for node in site.get("nodes")["items"]]
    site.kubectl("cordon", *nodes)
    try:
        site.apply(document(WORLD, name, **{"seed": SEED + 5, "stages.base.steps": 20}))
        site.wait(name, pending("Unschedulable", "cannot be scheduled"), seconds=60)
        site.kubectl("delete", "configmap", "-n", NAMESPACE, "-l", f"nanochat.dev/pipeline={name}")
    finally:
        site.kubectl("uncordon", *nodes)
    told = site.wait(name, lambda s: first_ends(s) == ["Preempted", "Succeeded"], seconds=180)
    assert "with its plan was deleted" in told["attempts"][0]["message"]
    site.delete(name)


def test_two_that_need_the_same_make_it_once(site: Site) -> None:
    """The older one makes it; the younger one waits, and finds it."""
    for name in ("elder", "younger"):
        site.delete(name)
    changes = {"stages.base.steps": 200, "seed": SEED + 77}
    for name in ("elder", "younger"):
        site.apply(document(WORLD, name, **changes))
        time.sleep(1.1)  # creation times have whole seconds
    told = site.wait(
        "younger", lambda s: any("elder" in x.get("message", "") for x in s.get("stages", ())), seconds=120
    )
    assert told["phase"] == "Waiting"
    elder = site.wait("elder", lambda s: s["phase"] == "Succeeded", seconds=300)
    younger = site.wait("younger", lambda s: s["phase"] == "Succeeded", seconds=120)
    trained = [
        [a["stage"] for a in status["attempts"] if a["stage"] in ("base", "mid", "sft")] for status in (elder, younger)
    ]
    assert trained == [["base", "mid", "sft"], []]


def test_suspend_edit_cancel_retry(site: Site) -> None:
    """What a user asks in the middle of training."""
    name = "steered"
    site.delete(name)
    site.apply(document(WORLD, name, **{"stages.base.steps": 3000, "seed": SEED + 78}))
    site.at_step(name, "base", 60)

    site.nanochat("suspend", name)
    status = site.wait(name, lambda s: s["phase"] == "Suspended", seconds=120)
    assert not site.pods(name, "base") or all(p["status"]["phase"] != "Running" for p in site.pods(name, "base"))
    site.nanochat("resume", name)
    site.at_step(name, "base", 60)

    # An edit that changes what base makes: the attempt is stopped, and its successor starts from nothing.
    site.kubectl(
        "-n", NAMESPACE, "patch", "cp", name, "--type=merge", "-p", '{"spec": {"stages": {"base": {"steps": 2500}}}}'
    )
    status = site.wait(name, lambda s: len([a for a in s["attempts"] if a["stage"] == "base"]) == 3, seconds=120)
    assert [a.get("message") for a in status["attempts"] if a["stage"] == "base"][1] == "edited"

    # One that is refused leaves what runs alone.
    site.at_step(name, "base", 1)
    bad = '{"spec": {"stages": {"release": {"enabled": true, "gates": ["nonsense"]}}}}'
    site.kubectl("-n", NAMESPACE, "patch", "cp", name, "--type=merge", "-p", bad)

    def refused(status: dict) -> bool:
        return any(c["type"] == "Accepted" and c["status"] == "False" for c in status.get("conditions", ()))

    status = site.wait(name, refused, seconds=60)
    assert status["attempts"][-1]["reason"] == "Running"
    good = '{"spec": {"stages": {"release": {"enabled": false, "gates": []}}}}'
    site.kubectl("-n", NAMESPACE, "patch", "cp", name, "--type=merge", "-p", good)
    site.wait(name, lambda s: not refused(s), seconds=60)

    site.nanochat("cancel", name)
    site.wait(name, lambda s: s["phase"] == "Cancelled", seconds=120)
    site.kubectl("-n", NAMESPACE, "patch", "cp", name, "--type=merge", "-p", '{"spec": {"jobTtlSeconds": 0}}')
    site.nanochat("retry", name)
    site.wait(name, lambda s: s["phase"] == "Succeeded", seconds=400)
    deadline = time.monotonic() + 150
    while site.get("pytorchjobs", "-n", NAMESPACE, "-l", f"nanochat.dev/pipeline={name}")["items"]:
        assert time.monotonic() < deadline, "jobs of finished attempts are deleted when their time has passed"
        time.sleep(2)
