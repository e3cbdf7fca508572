"""The launcher as the first process of a pod: of one node, and of two that train together over gloo."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import pytest

from nanochat.pipeline.graph import build_graph
from nanochat.pipeline.plan import StagePlan
from nanochat.pipeline.runs import RunPaths
from nanochat.pipeline.standstill import Standstill, read_standstill
from nanochat.spec.load import check_pipeline
from nanochat.storage.opening import open_store
from nanochat.storage.store import Profile

SPEC = {
    "model": {"depth": 1, "width": 32, "headDim": 16, "sequenceLength": 64},
    "sources": {"text": {"kind": "world", "charactersPerShard": 200000, "shards": 1, "validationShard": 9}},
    "stages": {
        "tokenizer": {"vocabSize": 400, "maxChars": 200000},
        "base": {
            "nodes": 2, "steps": 6, "totalBatchTokens": 256, "deviceBatchSize": 2, "compile": "never",
            "evalTokens": 512, "checkpointEvery": 5,
        },
        **{name: {"enabled": False} for name in ("rl", "evalBase", "evalChat", "report", "release")},
        "mid": {"enabled": False, "totalBatchTokens": 256},
        "sft": {"enabled": False},
    },
}  # fmt: skip


@dataclass
class Attempt:
    """An attempt of a stage on this machine's make-believe nodes."""

    folder: Path
    stage: str
    nodes: int = 1
    number: int = 1
    steps: int = 6
    stall_seconds: float = 900.0
    processes: list[subprocess.Popen[bytes]] = field(default_factory=list)

    def plan(self) -> StagePlan:
        spec = json.loads(json.dumps(SPEC))
        spec["stages"]["base"]["steps"] = self.steps
        spec["retries"] = {"stallSeconds": self.stall_seconds}
        head = {
            "apiVersion": "nanochat.dev/v1alpha1",
            "kind": "ChatPipeline",
            "metadata": {"name": "demo"},
            "spec": spec,
        }
        pipeline = check_pipeline(head)
        graph = build_graph(pipeline.spec)
        node = graph.node(self.stage)
        return StagePlan(
            stage=self.stage, name="demo", namespace="team", run="runs/team.demo/x", attempt=self.number, launch="",
            outputs=node.outputs, inputs=dict(node.needs), spec=pipeline.spec.to_yaml_dict(),
            horizon=graph.horizon.to_dict(), profile=asdict(Profile(root=str(self.folder / "store"))),
            cache=str(self.folder / "cache"), work="", nodes=self.nodes,
        )  # fmt: skip

    def start(self, *, master: str = "localhost", ranks: list[int] | None = None) -> Attempt:
        with socket.socket() as probe:
            probe.bind(("", 0))
            port = probe.getsockname()[1]
        path = self.folder / f"{self.stage}-{self.number}.json"
        self.plan().write(path)
        for rank in ranks if ranks is not None else range(self.nodes):
            (self.folder / f"node{rank}").mkdir(exist_ok=True)
            own = {
                "NANOCHAT_POD_UID": f"pod{rank}{self.number}-aaaa-bbbb",
                "NANOCHAT_NODE_RANK": str(rank),
                "NANOCHAT_MASTER": master,
                "NANOCHAT_MASTER_PORT": str(port),
                "NANOCHAT_WORK": str(self.folder / f"node{rank}"),
                "NANOCHAT_TERMINATION_LOG": str(self.folder / f"last-words-{rank}"),
                "NANOCHAT_MACHINE": str(self.folder / "machine"),
            }
            command = [sys.executable, "-m", "nanochat.pipeline.launcher", str(path)]
            process = subprocess.Popen(command, env={**os.environ, **own}, stderr=subprocess.DEVNULL)
            self.processes.append(process)
        return self

    def codes(self) -> list[int]:
        return [process.wait(timeout=120) for process in self.processes]

    def words(self, rank: int) -> dict[str, Any]:
        text = (self.folder / f"last-words-{rank}").read_bytes()
        assert len(text) <= 4096
        return json.loads(text)

    def until(self, holds: Callable[[], Any], what: str) -> None:
        deadline = time.monotonic() + 60
        while not holds():
            assert time.monotonic() < deadline, what
            assert all(process.poll() is None for process in self.processes), "a launcher ended"
            time.sleep(0.05)

    def trains(self) -> bool:
        """Whether a checkpoint was saved."""
        return any((self.folder / "store" / "checkpoints").glob("base/*/step-*/manifest.json"))

    def rank_pid(self, rank: int) -> int:
        (path,) = (self.folder / f"node{rank}").glob("launches/*/rank*.pid")
        return int(path.read_text())


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store with what `base` reads."""
    folder = tmp_path_factory.mktemp("prepared")
    for stage in ("dataset", "tokenizer", "tokens"):
        assert Attempt(folder, stage).start().codes() == [0]
    return folder / "store"


@pytest.fixture
def data(prepared: Path, tmp_path: Path) -> None:
    """The test's store has what `base` reads."""
    shutil.copytree(prepared, tmp_path / "store")


@pytest.fixture
def attempt(tmp_path: Path) -> Iterator[Callable[..., Attempt]]:
    """Makes attempts in one store; nothing of them outlives the test."""
    made: list[Attempt] = []

    def make(stage: str, **settings: Any) -> Attempt:
        made.append(Attempt(tmp_path, stage, **settings))
        return made[-1]

    yield make
    for item in made:
        for process in item.processes:
            process.kill()
            process.wait()


@pytest.mark.usefixtures("data")
def test_two_nodes_train_stop_and_go_on(attempt: Callable[..., Attempt]) -> None:
    """SIGTERM at one node stops both after a checkpoint; the next attempt goes on from there and succeeds."""
    first = attempt("base", nodes=2, steps=100_000).start()
    first.until(first.trains, "no checkpoint came")
    first.processes[1].send_signal(signal.SIGTERM)
    assert first.codes() == [143, 143]
    assert [first.words(rank)["reason"] for rank in (0, 1)] == ["Preempted", "Preempted"]
    assert first.words(0)["launch"] == "01-pod01-aa"

    lost = attempt("base", nodes=2, steps=100_000, number=2).start()
    lost.until(lambda: list(lost.folder.glob("node1/launches/02-*/rank1.pid")), "no rank came")
    pid = int(next(lost.folder.glob("node1/launches/02-*/rank1.pid")).read_text())
    before = sum(1 for _ in (lost.folder / "store" / "checkpoints").glob("base/*/step-*/manifest.json"))
    newest = (lost.folder / "store" / "checkpoints").glob
    lost.until(lambda: any("02-pod02" in str(p) for p in newest("base/*/step-*/manifest.json")), f"none after {before}")
    os.kill(pid, signal.SIGKILL)
    assert all(code not in (0, 143) for code in lost.codes())
    assert lost.words(1)["reason"] == "Infrastructure" and "rank 1" in lost.words(1)["message"]
    assert lost.words(0)["reason"] == "Infrastructure", "its peer was lost; that is no fault of the program"

    store = open_store(Profile(root=str(lost.folder / "store")))
    paths = RunPaths("runs/team.demo/x")
    assert store.read_json(paths.outcome("base", "01-pod11-aa"), 1 << 20)["reason"] == "Preempted", (
        "each node has its own"
    )
    assert store.children(paths.logs("base", "01-pod01-aa")) == ["launch", "rank0"]
    assert "rank0" not in store.children(paths.logs("base", "01-pod11-aa"))


@pytest.mark.usefixtures("data")
@pytest.mark.parametrize("stopped", [0, 1])
def test_each_node_tells_whether_its_rank_stands(attempt: Callable[..., Attempt], stopped: int) -> None:
    run = attempt("base", nodes=2, steps=100_000, stall_seconds=10.0).start()
    run.until(run.trains, "no checkpoint came")
    (pid,) = (run.folder / f"node{stopped}").glob("launches/*/rank*.pid")
    os.kill(int(pid.read_text()), signal.SIGSTOP)
    store, paths = open_store(Profile(root=str(run.folder / "store"))), RunPaths("runs/team.demo/x")
    seen = [Standstill((rank,)) if rank != stopped else Standstill((), (rank,)) for rank in (0, 1)]

    def told() -> list[Standstill]:
        return [read_standstill(store, paths.standstill("base", f"01-pod{rank}1-aa")) for rank in (0, 1)]

    run.until(lambda: told() == seen, "the nodes told of the standstill")
    os.kill(int(pid.read_text()), signal.SIGCONT)
    run.until(lambda: told() == [Standstill(), Standstill()], "that it moves again")


@pytest.mark.usefixtures("data")
def test_two_nodes_finish(attempt: Callable[..., Attempt]) -> None:
    done = attempt("base", nodes=2).start()
    assert done.codes() == [0, 0]
    manifests = list((done.folder / "store" / "artifacts" / "model").glob("*/manifest.json"))
    assert [json.loads(path.read_text())["launch"] for path in manifests] == ["01-pod01-aa"], "rank 0's launch commits"


def test_a_node_whose_peers_never_come_can_be_stopped(attempt: Callable[..., Attempt]) -> None:
    alone = attempt("base", nodes=2).start(master="nobody.invalid", ranks=[1])
    alone.until(lambda: list(alone.folder.glob("node1/launches/*/plan.json")), "it did not start")
    time.sleep(1)  # it looks for the name by now
    alone.processes[0].send_signal(signal.SIGTERM)
    assert alone.codes() == [143]
    assert alone.words(1)["reason"] == "Preempted"


def test_memory_that_the_pod_used_up_is_said(attempt: Callable[..., Attempt], tmp_path: Path) -> None:
    """A process that the kernel killed for memory, by the container's own count."""
    for path, text in (("proc/self/cgroup", "0::/"), ("sys/fs/cgroup/memory.events", "")):
        (tmp_path / "machine" / path).parent.mkdir(parents=True)
        (tmp_path / "machine" / path).write_text(text)
    events = tmp_path / "machine/sys/fs/cgroup/memory.events"
    events.write_text("low 0\noom 2\noom_kill 2\n")
    killed = attempt("dataset").start()
    killed.until(lambda: list(tmp_path.glob("node0/launches/*/rank0.pid")), "no rank came")
    events.write_text("low 0\noom 3\noom_kill 3\n")
    os.kill(killed.rank_pid(0), signal.SIGKILL)
    assert killed.codes() == [1]
    assert (killed.words(0)["reason"], killed.words(0)["host"]) == ("OutOfMemory", True)
