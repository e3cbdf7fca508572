"""The heart of it: a pipeline on two nodes through a lost pod and a killed controller (make test-cluster-smoke)."""

from __future__ import annotations

import pytest
from documents import WORLD, document
from site_of_tests import NAMESPACE, Site, Status, check_keys

pytestmark = pytest.mark.cluster

STEPS = 800


def outcomes(status: Status, stage: str) -> list[str]:
    """The outcomes of a stage's attempts, in their order."""
    return [attempt["reason"] for attempt in status["attempts"] if attempt["stage"] == stage]


def test_smoke(site: Site) -> None:
    """It succeeds, with the right outcomes, the keys of a local run, and its logs and report at hand."""
    pipeline = document(WORLD, "smoke", **{"stages.base.steps": STEPS})
    site.delete("smoke")
    site.apply(pipeline)

    site.at_step("smoke", "base", 15)
    pod = site.pods("smoke", "base")[1]["metadata"]["name"]
    site.kubectl("-n", NAMESPACE, "delete", "pod", pod, "--wait=false")
    site.wait("smoke", lambda s: "Preempted" in outcomes(s, "base"), seconds=120, what="the lost pod's outcome")

    site.at_step("smoke", "base", 200)
    site.kill_controller()

    status = site.wait("smoke", lambda s: s["phase"] == "Succeeded", seconds=400, what="the end")
    assert outcomes(status, "base") == ["Preempted", "Succeeded"]
    # What an earlier test made is not made again.
    assert all(set(outcomes(status, stage)) <= {"Succeeded"} for stage in ("tokens", "mid", "sft", "report"))
    conditions = {item["type"]: item["status"] for item in status["conditions"]}
    assert conditions == {"Accepted": "True", "StorageReachable": "True", "Succeeded": "True"}

    check_keys(site, status, pipeline)

    assert "smoke: Succeeded" in site.nanochat("status", "smoke")
    first = site.nanochat("logs", "smoke", "base", "--attempt", "1")
    assert f"parameters, {STEPS:,} steps, on 2 x cpu" in first
    assert "resumed after step" in site.nanochat("logs", "smoke", "base")
    assert "smoke: report" in site.nanochat("report", "smoke")
