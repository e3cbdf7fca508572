"""A stage on two nodes that loses one: it goes on with the other, grows back, and learns the same."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from documents import SEED, WORLD, document
from evidence import check_checkpoints, check_lineage
from site_of_tests import NAMESPACE, SYSTEM, Site, Status

from nanochat.spec.quantity import amount
from nanochat.tracking.journal import JournalReader

pytestmark = pytest.mark.cluster

STEPS = 1200
AHEAD = 12  # steps that are trained between two events: more than from checkpoint to checkpoint
PATIENCE = 20  # seconds
ROUNDING = 1e-3  # nats: with other numbers of processes sums round in another way
LABEL = "nanochat.test/pool"


@pytest.fixture(scope="module")
def changes(site: Site) -> Iterator[dict[str, Any]]:
    """Settings with which base runs on the nodes without storage, each of which has room for one of its pods."""
    pool = site.nodes()[:2]
    for node in pool:
        site.kubectl("label", "node", node, f"{LABEL}=elastic", "--overwrite")
    cores = min(amount(site.get("node", node)["status"]["allocatable"]["cpu"]) for node in pool)
    requests = {"cpu": f"{int(550 * cores)}m"}  # more than half of a node's cores
    yield {
        "stages.base.steps": STEPS,
        "stages.base.totalBatchTokens": 16_384,
        "stages.base.checkpointEvery": 10,
        "stages.base.precision": "fp32",
        "stages.base.pod": {"nodeSelector": {LABEL: "elastic"}, "resources": {"requests": requests}},
        "retries.stallSeconds": 30,
        "seed": SEED + 31,
    }
    for node in pool:
        site.kubectl("label", "node", node, f"{LABEL}-")


def base_attempts(status: Status) -> list[tuple[str, int]]:
    """How each attempt of base ended, and for how many nodes it was."""
    attempts = [attempt for attempt in status.get("attempts") or () if attempt["stage"] == "base"]
    return [(attempt["reason"], attempt["nodeCount"]) for attempt in attempts]


def go_on(site: Site, name: str, nodes: int) -> Status:
    """Wait until an attempt on so many nodes has trained some steps."""

    def step(status: Status) -> int:
        own = next((stage for stage in status.get("stages") or () if stage["name"] == "base"), {})
        runs = own.get("phase") == "Running" and base_attempts(status)[-1:] == [("Running", nodes)]
        return own.get("step", 0) if runs else 0

    reached = step(site.wait(name, step, seconds=400, what=f"a step on {nodes} of 2 nodes"))
    return site.wait(name, lambda status: step(status) >= reached + AHEAD, seconds=240, what=f"{AHEAD} more steps")


def losses(site: Site, status: Status) -> list[float]:
    """The loss of each step, of the attempt that counts."""
    reader = JournalReader(site.store(root=status["profile"]["root"]), status["run"])
    return [point.value for point in reader.history("base").metrics["train/loss"]]


def disturb(
    site: Site, name: str, take: Callable[[str, str], object], give: Callable[[str], object], *, kill: bool = False
) -> None:
    """Take one of the two nodes, and give it back when training goes on with the other one."""
    go_on(site, name, 2)
    # Not that with the controllers, if there is another: what was lost would then be they.
    namespaces = (SYSTEM, "kubeflow", "kueue-system")
    needed = {pod["spec"].get("nodeName") for each in namespaces for pod in site.get("pods", "-n", each)["items"]}
    pod = min(site.pods(name, "base"), key=lambda pod: pod["spec"]["nodeName"] in needed)
    node = pod["spec"]["nodeName"]
    take(node, pod["metadata"]["name"])
    try:
        assert "runs on 1 of 2 nodes" in go_on(site, name, 1)["message"]
        if kill:
            site.kill_controller()
            go_on(site, name, 1)
    finally:
        give(node)


def test_a_stage_shrinks_and_grows(site: Site, changes: dict[str, Any], tmp_path: Path) -> None:
    calm, name = "steady", "elastic"
    for each in (calm, name):
        site.delete(each)
    elastic = {"stages.base.minNodes": 1, "stages.base.patienceSeconds": PATIENCE}
    site.apply(document(WORLD, name, **changes, **elastic))

    def cordon(node: str, pod: str) -> None:
        site.kubectl("cordon", node)
        site.kubectl("-n", NAMESPACE, "delete", "pod", pod, "--wait=false")

    disturb(site, name, cordon, lambda node: site.kubectl("uncordon", node), kill=True)
    disturb(
        site,
        name,
        lambda node, _: site.run("kind", "stop-node", node),
        lambda node: site.run("kind", "start-node", node),
    )
    reached = next(stage["step"] for stage in go_on(site, name, 2)["stages"] if stage["name"] == "base")
    status = site.wait(name, lambda s: s["phase"] == "Succeeded", seconds=900)
    ended = base_attempts(status)
    assert {reason for reason, _ in ended[:-1]} == {"Preempted"} and ended[-1] == ("Succeeded", 2), ended
    sizes = [nodes for nodes, _ in itertools.groupby(nodes for _, nodes in ended)]
    assert sizes == [2, 1, 2, 1, 2], "it shrank and grew back, twice"
    check_lineage(site, status, STEPS)
    check_checkpoints(site, status, STEPS, tmp_path / "cache")
    jobs = [job["metadata"]["name"] for job in site.get("pytorchjobs", "-n", NAMESPACE)["items"]]
    assert not [job for job in jobs if job.endswith("-room")], "nothing holds room any more"

    site.apply(document(WORLD, calm, **changes, store="other"))  # undisturbed
    undisturbed = site.wait(calm, lambda s: s["phase"] == "Succeeded", seconds=900)
    # What training makes of a difference in the last bit comes to a hundredth after a thousand steps more.
    assert losses(site, status)[:reached] == pytest.approx(losses(site, undisturbed)[:reached], abs=ROUNDING)
