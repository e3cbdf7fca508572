"""What clusters do to a run, each once in the middle of training; and the same weights in the end."""

from __future__ import annotations

import json
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from documents import SEED, WORLD, document
from evidence import check_checkpoints, check_lineage, weights
from site_of_tests import CONTROLLER, NAMESPACE, SYSTEM, Site, Status

pytestmark = pytest.mark.cluster

STEPS = 6000
AHEAD = 60  # steps that are trained between two faults: more than from checkpoint to checkpoint


# Programs in a pod. When its memory is used up the kernel kills the process with the highest score, which is its share
# of the memory and an adjustment: many small eaters have less of a share than a rank.
RANKS = (
    "import os, pathlib, signal, time\n"
    "ranks = [p.read_text() for p in pathlib.Path('/work/launches').glob('*/rank*.pid')]\n"
)
FREEZE = RANKS + "for rank in ranks: os.kill(int(rank), signal.SIGSTOP)"
EAT_MEMORY = RANKS + (
    "for rank in ranks: pathlib.Path(f'/proc/{rank}/oom_score_adj').write_text('1000')\n"
    "for _ in range(100):\n"
    "    if os.fork() == 0:\n"
    "        eaten = bytearray(24 << 20)\n"
    "        for page in range(0, len(eaten), 4096): eaten[page] = 1\n"
    "        time.sleep(10)\n"
    "        os._exit(0)\n"
    "time.sleep(10)"
)


def reasons(status: Status, stage: str = "base") -> list[str]:
    return [attempt["reason"] for attempt in status["attempts"] if attempt["stage"] == stage]


def outcome(site: Site, name: str, number: int, *, seconds: float = 150) -> str:
    """How an attempt of base ended, as soon as it has."""

    def ended(status: Status) -> bool:
        found = reasons(status)
        return len(found) >= number and found[number - 1] != "Running"

    return reasons(site.wait(name, ended, seconds=seconds, what=f"the end of attempt {number}"))[number - 1]


def go_on(site: Site, name: str) -> Status:
    """Wait until base has trained some steps since it began to run."""
    status = site.at_step(name, "base", 1)
    number = len(reasons(status))
    step = next(stage["step"] for stage in status["stages"] if stage["name"] == "base")

    def there(status: Status) -> bool:
        own = next(stage for stage in status["stages"] if stage["name"] == "base")
        return len(reasons(status)) == number and own["phase"] == "Running" and own.get("step", 0) >= step + AHEAD

    return site.wait(name, there, seconds=240, what=f"{AHEAD} more steps")


def node_of(site: Site, name: str, rank: int) -> str:
    return site.pods(name, "base")[rank]["spec"]["nodeName"]


def pod_of(site: Site, name: str, rank: int) -> str:
    return site.pods(name, "base")[rank]["metadata"]["name"]


def rank_beside_storage(site: Site, name: str) -> int:
    """A rank whose node is not the one with storage."""
    return next(rank for rank in (0, 1) if node_of(site, name, rank) != site.nodes()[-1])


@pytest.fixture(scope="module")
def calm(site: Site) -> Iterator[Status]:
    """The same pipeline undisturbed, in a store of its own."""
    name = "calm"
    site.delete(name)
    site.apply(document(WORLD, name, **{"stages.base.steps": STEPS, "store": "other"}))
    yield site.wait(name, lambda s: s["phase"] == "Succeeded", seconds=900)


def test_faults(site: Site, calm: Status, tmp_path: Path) -> None:
    """All that may happen, once each; every outcome is the right one."""
    name, system = "faults", ("-n", SYSTEM)
    site.delete(name)
    site.apply(document(WORLD, name, **{"stages.base.steps": STEPS, "retries.stallSeconds": 30}))
    expected: list[str] = []

    def disturbed(as_: str, *, seconds: float = 150) -> None:
        expected.append(as_)
        assert outcome(site, name, len(expected), seconds=seconds) == as_

    go_on(site, name)
    site.kill_controller()
    go_on(site, name)  # the same attempt
    assert reasons(site.status(name)) == ["Running"]

    site.kubectl("-n", NAMESPACE, "delete", "pod", pod_of(site, name, 1), "--wait=false")
    disturbed("Preempted")

    go_on(site, name)
    site.evict(pod_of(site, name, 0))
    disturbed("Preempted")

    go_on(site, name)
    node = node_of(site, name, rank_beside_storage(site, name))
    site.kubectl("drain", node, "--ignore-daemonsets", "--delete-emptydir-data", "--force", "--timeout=120s")
    disturbed("Preempted")
    site.kubectl("uncordon", node)

    go_on(site, name)
    job = site.pods(name, "base")[0]["metadata"]["labels"]["training.kubeflow.org/job-name"]
    site.kubectl("-n", NAMESPACE, "delete", "pytorchjob", job, "--wait=false")
    disturbed("Preempted")

    go_on(site, name)
    site.exec(pod_of(site, name, 1), EAT_MEMORY, check=False)
    disturbed("OutOfMemory")

    go_on(site, name)
    site.exec(pod_of(site, name, 1), FREEZE)
    disturbed("Stalled")

    go_on(site, name)
    site.scale("storage", "s3", 0)
    time.sleep(60)
    site.scale("storage", "s3", 1)
    go_on(site, name)  # stages wait for storage: the same attempt
    assert reasons(site.status(name)) == [*expected, "Running"]

    site.run("kind", "stop-program", "kube-apiserver")
    time.sleep(30)
    site.run("kind", "start-program", "kube-apiserver")
    go_on(site, name)
    assert reasons(site.status(name)) == [*expected, "Running"]

    # Kueue's webhook judges Deployments, and its pod begins anew when the API server was away.
    restart, deadline = ("rollout", "restart", "deployment/training-operator"), time.monotonic() + 180
    while not site.kubectl("-n", "kubeflow", *restart, check=False):
        assert time.monotonic() < deadline, "the training operator's Deployment can be changed"
        time.sleep(2)
    site.kubectl("-n", "kubeflow", "rollout", "status", "deployment/training-operator", "--timeout=120s")
    go_on(site, name)
    assert reasons(site.status(name)) == [*expected, "Running"]

    node = node_of(site, name, rank_beside_storage(site, name))
    site.run("kind", "stop-node", node)
    disturbed("Preempted", seconds=240)
    site.run("kind", "start-node", node)

    site.at_step(name, "base", 1)
    site.kubectl(*system, "scale", f"deployment/{CONTROLLER}", "--replicas=0")
    deadline = time.monotonic() + 600
    job = site.pods(name, "base")[0]["metadata"]["labels"]["training.kubeflow.org/job-name"]
    while "Succeeded" not in [c["type"] for c in site.get("pytorchjob", job, "-n", NAMESPACE)["status"]["conditions"]]:
        assert time.monotonic() < deadline, "the stage goes on without the controller"
        time.sleep(2)
    site.scale(SYSTEM, CONTROLLER, 1)

    status = site.wait(name, lambda s: s["phase"] == "Succeeded", seconds=600)
    assert reasons(status) == [*expected, "Succeeded"]
    names = [attempt["job"] for attempt in status["attempts"]]
    assert len(names) == len(set(names)), "no job was doubled"
    check_lineage(site, status, STEPS)
    check_checkpoints(site, status, STEPS, tmp_path / "cache")
    assert weights(site, status, tmp_path) == weights(site, calm, tmp_path)


def test_a_node_that_was_cut_off_comes_back(site: Site, tmp_path: Path) -> None:
    """Its pod goes on and writes beside the one that replaced it; what is committed stays whole."""
    name = "zombie"
    site.delete(name)
    changes: dict[str, Any] = {"stages.base.steps": 4000, "stages.base.nodes": 1, "seed": SEED + 7}
    site.apply(document(WORLD, name, **changes, **{"pods.nodeSelector": {"kubernetes.io/hostname": site.nodes()[0]}}))
    go_on(site, name)
    node = node_of(site, name, 0)
    assert node != site.nodes()[-1]
    site.apply(document(WORLD, name, **changes))  # the next attempt may run elsewhere
    site.kubelet(node, signal.SIGSTOP)
    try:
        assert outcome(site, name, 1, seconds=240) == "Preempted"
        go_on(site, name)
    finally:
        site.kubelet(node, signal.SIGCONT)
    status = site.wait(name, lambda s: s["phase"] == "Succeeded", seconds=600)
    check_lineage(site, status, 4000)
    check_checkpoints(site, status, 4000, tmp_path / "cache")
    assert weights(site, status, tmp_path)


def test_a_pipeline_made_again_takes_nothing_of_the_former(site: Site) -> None:
    """The same name is another pipeline; deleting one leaves nothing behind."""
    name = "again"
    site.delete(name)
    changes: dict[str, Any] = {"stages.base.steps": 3000, "seed": SEED + 11}
    site.apply(document(WORLD, name, **changes))
    site.at_step(name, "base", 5)
    first = site.status(name)["run"]
    site.delete(name)
    site.apply(document(WORLD, name, **changes))
    status = site.wait(name, lambda s: s.get("run") and s["stages"][3]["attempts"], seconds=120)
    assert status["run"] != first
    assert {attempt["number"] for attempt in status["attempts"] if attempt["stage"] == "base"} == {1}
    site.delete(name)
    deadline = time.monotonic() + 120
    while site.get("pytorchjobs,pods,configmaps", "-n", NAMESPACE, "-l", f"nanochat.dev/pipeline={name}")["items"]:
        assert time.monotonic() < deadline, "all that a pipeline had goes with it"
        time.sleep(1)


def test_deletion_without_the_controller(site: Site) -> None:
    """Nothing waits for a controller that is gone."""
    site.apply(document(WORLD, "gone", **{"stages.base.steps": 3000, "seed": SEED + 12}))
    site.wait("gone", lambda s: s.get("attempts"), seconds=60)
    site.scale(SYSTEM, CONTROLLER, 0)
    try:
        site.kubectl("-n", NAMESPACE, "delete", "cp", "gone", "--timeout=30s")
        kept = json.loads(site.kubectl("get", "crd", "chatpipelines.nanochat.dev", "-o", "json"))
        site.kubectl("delete", "crd", "chatpipelines.nanochat.dev", "--timeout=60s")
        assert kept["spec"]["names"]["kind"] == "ChatPipeline"
    finally:
        site.kubectl("apply", "--server-side", "-f", "helm/nanochat/files/chatpipelines.nanochat.dev.yaml")
        site.scale(SYSTEM, CONTROLLER, 1)
