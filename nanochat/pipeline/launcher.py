"""The first process of every launch: `python -m nanochat.pipeline.launcher PLAN.json`.

It starts the stage (one process; a fork, where the launcher is one) or torchrun (several), keeps each rank's log in
the run's folder, forwards SIGTERM to the ranks, gathers their outcomes, and ends with 0, 143 (stopped after a
checkpoint) or 1. It imports no torch.

On a cluster it is the first process of every pod. There the plan is that of the whole attempt; which launch and which
of its nodes this is, the pod's environment tells:

    NANOCHAT_POD_UID     names the launch: each node's logs and outcome lie under its own
    NANOCHAT_NODE_RANK   0 is the node that reports and commits
    NANOCHAT_MASTER      name of node 0, and NANOCHAT_MASTER_PORT
    NANOCHAT_WORK        folder for the work folders
"""

from __future__ import annotations

import json
import os
import signal
import socket
import sys
import threading
import time
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from nanochat.pipeline.forking import Child, StartChild
from nanochat.pipeline.logs import LogEcho, LogUploader
from nanochat.pipeline.orphan import PLAN, STAGE, die_with_starter, end_launches, start_child
from nanochat.pipeline.outcomes import (
    EXIT_DISK_FULL,
    EXIT_STOPPED,
    Outcome,
    Reason,
    blamed_on_memory,
    from_exit,
    last_lines,
    read_outcome,
    write_outcome,
)
from nanochat.pipeline.plan import StagePlan
from nanochat.pipeline.runs import RunPaths
from nanochat.pipeline.standstill import StandstillReporter
from nanochat.runtime.cgroup import kernel_kills
from nanochat.runtime.stopping import on_stop
from nanochat.spec.environment import integer
from nanochat.storage.opening import open_store
from nanochat.storage.store import Profile, Store
from nanochat.tracking.system import Machine

POD = "NANOCHAT_POD_UID"
MASTER_SECONDS = 300.0  # that node 0 may take to have a name
START_SECONDS = 10.0  # that ranks may take to begin once the launch is to stop: before, they have nothing to save
TERMINATION_BYTES = 4096  # what Kubernetes keeps of a container's last words


def main(start_child: StartChild = start_child) -> int:
    """Launch the plan; returns the exit code. `start_child` starts the stage."""
    path = Path(sys.argv[1])
    plan = StagePlan.read(path)
    if POD in os.environ:
        plan, path = in_pod(plan)
    work = Path(plan.work)
    stopping = threading.Event()
    on_stop(lambda *_: stopping.set())
    die_with_starter(cleanup=lambda: end_launches(work))
    store = open_store(Profile(**plan.profile))
    echo = None
    if POD in os.environ:  # what `kubectl logs` shows: the launch's own words, and those of the node's first rank
        first = node_rank() * plan.processes
        echo = LogEcho(sys.stdout.buffer, [work / "launch.log", work / f"rank{first}.log"])
    uploader = LogUploader(store, RunPaths(plan.run).logs(plan.stage, plan.launch), work, echo=echo)
    reporter = report_standstills(plan, store, work) if plan.processes * plan.nodes > 1 else None
    node = node_rank() if plan.nodes > 1 else None
    sampled = Machine.of(store, plan.run, stage=plan.stage, launch=plan.launch, node=node)
    machine = Path(os.environ.get("NANOCHAT_MACHINE", "/"))
    kills = kernel_kills(machine)
    outcome = await_master(stopping) if plan.nodes > 1 else None
    if outcome is None:
        outcome = watch(plan, start(plan, path, work, start_child), work, stopping)
    outcome = blamed_on_memory(outcome, kills=kernel_kills(machine) - kills, pod=POD in os.environ)
    outcome = replace(outcome, time=outcome.time or time.time())
    told = write_outcome(work / "outcome.json", outcome)
    uploader.close()
    for background in (reporter, sampled):
        if background is not None:
            background.close()
    try:
        store.write_json(RunPaths(plan.run).outcome(plan.stage, plan.launch), outcome.to_dict())
    except Exception as error:
        say(f"the outcome could not be stored: {error}")
    if POD in os.environ:
        last_words(Path(os.environ.get("NANOCHAT_TERMINATION_LOG", "/dev/termination-log")), outcome, plan.launch)
    if outcome.reason is Reason.SUCCEEDED:
        return 0
    if not told:
        return EXIT_DISK_FULL
    return EXIT_STOPPED if outcome.reason is Reason.PREEMPTED else 1


def report_standstills(plan: StagePlan, store: Store, work: Path) -> StandstillReporter:
    """Tell of ranks of this node that stand still, long before that is taken for a stall."""
    path, first = RunPaths(plan.run).standstill(plan.stage, plan.launch), node_rank() * plan.processes
    seconds = plan.spec["retries"]["stallSeconds"] / 3
    return StandstillReporter(store, path, work, ranks=range(first, first + plan.processes), seconds=seconds)


def in_pod(plan: StagePlan) -> tuple[StagePlan, Path]:
    """The plan of this pod's own launch, and the file it is written to."""
    launch = f"{plan.attempt:02d}-{os.environ[POD][:8]}"
    work = Path(os.environ["NANOCHAT_WORK"]) / "launches" / launch
    work.mkdir(parents=True, exist_ok=True)
    plan = replace(plan, launch=launch, work=str(work))
    plan.write(work / PLAN)
    return plan, work / PLAN


def await_master(stopping: threading.Event) -> Outcome | None:
    """Wait until node 0's name is known; the outcome where it never is, or where the launch is to stop."""
    name, deadline = os.environ["NANOCHAT_MASTER"], time.monotonic() + MASTER_SECONDS
    while not stopping.is_set():
        try:
            socket.getaddrinfo(name, None)
            return None
        except OSError as error:
            if time.monotonic() > deadline:
                return Outcome(Reason.INFRASTRUCTURE, f"the first node's name {name} does not resolve: {error}")
        stopping.wait(1.0)
    return Outcome(Reason.PREEMPTED, "stopped while it waited for its peers")


def watch(plan: StagePlan, child: Child, work: Path, stopping: threading.Event) -> Outcome:
    """Wait for the stage's end, forwarding a stop."""
    forwarded, asked = False, 0.0
    while (code := child.poll()) is None:
        if stopping.is_set() and not forwarded:
            asked = asked or time.monotonic()
            forwarded = forward(work, plan.processes)
            if not forwarded and plan.nodes > 1 and time.monotonic() - asked > START_SECONDS:
                end_launches(work)  # its peers may never come
                child.wait()
                return Outcome(Reason.PREEMPTED, "stopped while it started")
        time.sleep(0.1)
    end_launches(work)  # nothing of a launch outlives it
    return from_exit(
        code,
        read_outcomes(work),
        processes=plan.processes,
        first=node_rank() * plan.processes,
        begun=len(list(work.glob("rank*.pid"))) if plan.processes * plan.nodes > 1 else 0,
        asked_to_stop=stopping.is_set(),
        last_words=read_last_lines(work / "launch.log"),
    )


def read_last_lines(log: Path) -> str:
    """The last lines of what the launch itself wrote, before and beside its ranks."""
    try:
        with log.open("rb") as file:
            file.seek(max(0, log.stat().st_size - TERMINATION_BYTES))
            return last_lines(file.read().decode(errors="replace"))
    except OSError:
        return ""


def node_rank() -> int:
    """Which of the attempt's nodes this is."""
    return integer("NANOCHAT_NODE_RANK", 0)


def last_words(path: Path, outcome: Outcome, launch: str) -> None:
    """The outcome as the container's termination message."""
    words = replace(outcome, message=outcome.message[:1000], detail="").to_dict() | {"launch": launch}
    text = json.dumps(words).encode()
    if len(text) > TERMINATION_BYTES:
        text = json.dumps(words | {"message": outcome.message[:300]}).encode()
    try:
        path.write_bytes(text)
    except OSError as error:
        say(f"the termination message could not be written: {error}")


def start(plan: StagePlan, path: Path, work: Path, start_child: StartChild) -> Child:
    """Start the stage, its output in the work folder."""
    variables = {"OMP_NUM_THREADS": str(plan.threads), "PYTHONUNBUFFERED": "1", "TOKENIZERS_PARALLELISM": "false"}
    variables["USER"] = os.environ.get("USER", "nanochat")  # PyTorch asks for it, and a pod's user may have no name
    arguments = ["-m", STAGE, str(path)]
    if plan.processes * plan.nodes > 1:
        meeting = ["--standalone", "--nnodes=1"]
        if plan.nodes > 1:
            meeting = [
                f"--nnodes={plan.nodes}",
                f"--node-rank={node_rank()}",
                f"--master-addr={os.environ['NANOCHAT_MASTER']}",
                f"--master-port={os.environ['NANOCHAT_MASTER_PORT']}",
            ]
        processes = [f"--nproc-per-node={plan.processes}", "--max-restarts=0"]
        arguments = ["-m", "torch.distributed.run", *meeting, *processes, *arguments]
    return start_child(arguments, log=work / "launch.log", variables=variables)  # each rank has a log of its own


def forward(work: Path, processes: int) -> bool:
    """Send SIGTERM to the ranks, never to torchrun (it would kill them after 30 s); False while they still start."""
    pids = [path.read_text() for path in work.glob("rank*.pid")]
    if len(pids) < processes or not all(pids):
        return False
    for pid in pids:
        with suppress(ProcessLookupError):
            os.kill(int(pid), signal.SIGTERM)
    return True


def read_outcomes(work: Path) -> list[Outcome]:
    """The ranks' own outcomes."""
    found = (read_outcome(path) for path in sorted(work.glob("outcome-rank*.json")))
    return [outcome for outcome in found if outcome is not None]


def say(text: str) -> None:
    """A line in the launcher's own log, which may lie on a disk that is full."""
    with suppress(OSError):
        print(text, file=sys.stderr)


if __name__ == "__main__":
    # Without the interpreter's own end, which changes the code where the log cannot be written.
    os._exit(main())
