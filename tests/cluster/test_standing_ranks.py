"""A node on which ranks stand: it is said, the next attempt trains soon, and its pods run elsewhere."""

from __future__ import annotations

import time
from collections.abc import Iterator
from datetime import datetime
from typing import Any

import pytest
from documents import SEED, WORLD, document
from site_of_tests import NAMESPACE, Site, Status, say
from test_faults import FREEZE

pytestmark = pytest.mark.cluster

NAME, TIMES = "suspects", 3


@pytest.fixture
def run(site: Site) -> Iterator[str]:
    """A stage on two of three nodes that trains until the test is over."""
    site.delete(NAME)
    retries = {"delaySeconds": 2, "stallSeconds": 20, "limit": 10}
    site.apply(document(WORLD, NAME, retries=retries, seed=SEED + 11, **{"stages.base.steps": 1_000_000}))
    yield NAME
    site.delete(NAME)


def trained(status: Status, number: int) -> bool:
    """Whether an attempt of base has trained a step that no other had."""
    base = next((stage for stage in status["stages"] if stage["name"] == "base"), {})
    return base.get("phase") == "Running" and base.get("attempts") == number and bool(base.get("step"))


def seconds_of(pods: list[dict[str, Any]]) -> tuple[float, float]:
    """The time at which the first pod was made, and at which the last one's container ran."""
    made = [pod["metadata"]["creationTimestamp"] for pod in pods]
    ran = [pod["status"]["containerStatuses"][0]["state"]["running"]["startedAt"] for pod in pods]
    return datetime.fromisoformat(min(made)).timestamp(), datetime.fromisoformat(max(ran)).timestamp()


def attempt(status: Status, number: int) -> dict[str, Any]:
    """An attempt of base, by its number from 1."""
    return [attempt for attempt in status["attempts"] if attempt["stage"] == "base"][number - 1]


def test_a_node_whose_ranks_stand_is_left_out(site: Site, run: str) -> None:
    """Each node has one pod of a stage at most, so that there is a third one to go to."""
    site.wait(run, lambda status: trained(status, 1), seconds=300, what="the first step")
    pods = site.pods(run, "base")
    victim = next(pod["spec"]["nodeName"] for pod in pods if pod["spec"]["nodeName"] != site.nodes()[-1])
    for number in range(1, TIMES + 1):
        pods = site.pods(run, "base")
        there = [pod for pod in pods if pod["spec"]["nodeName"] == victim]
        if not there:
            break
        (stood,) = there
        site.kubectl("-n", NAMESPACE, "exec", stood["metadata"]["name"], "--", "python", "-c", FREEZE)
        began = time.time()
        status = site.wait(run, lambda s, n=number: attempt(s, n)["reason"] != "Running", seconds=200, what="its end")
        found, end = time.time(), attempt(status, number)
        assert (end["reason"], end["suspects"]) == ("Stalled", [victim])
        site.wait(run, lambda s, n=number + 1: trained(s, n), seconds=200, what="the next first step")
        stepped = time.time()
        made, ran = seconds_of(site.pods(run, "base"))
        say(f"{victim} stood: found after {found - began:.0f} s, then pods {made - found:.0f} s,")
        say(f"their start {ran - made:.0f} s, first step {stepped - ran:.0f} s: in all {stepped - found:.0f} s")
    else:
        raise AssertionError(f"{victim} was taken again when ranks had stood on it {TIMES - 1} times")
