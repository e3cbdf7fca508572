"""The first process of every launch: `python -m nanochat.pipeline.launcher PLAN.json`.

It starts the stage (one process) or torchrun (several), keeps each rank's log in the run's folder, forwards SIGTERM to
the ranks, gathers their outcomes, and ends with 0, 143 (stopped after a checkpoint) or 1. It imports no torch.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path

from nanochat.pipeline.logs import LogUploader
from nanochat.pipeline.orphan import LIFELINE, die_with_starter, end_launches
from nanochat.pipeline.outcomes import (
    EXIT_DISK_FULL,
    EXIT_STOPPED,
    Outcome,
    Reason,
    from_exit,
    read_outcome,
    write_outcome,
)
from nanochat.pipeline.plan import StagePlan
from nanochat.pipeline.runs import RunPaths
from nanochat.storage.store import Profile, open_store


def main() -> int:
    """Launch the plan; returns the exit code."""
    path = Path(sys.argv[1])
    plan = StagePlan.read(path)
    work = Path(plan.work)
    stopping = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stopping.set())
    die_with_starter(cleanup=lambda: end_launches(work))
    store = open_store(Profile(**plan.profile))
    uploader = LogUploader(store, RunPaths(plan.run).logs(plan.stage, plan.launch), work)
    child = start(plan, path, work)
    forwarded = False
    while child.poll() is None:
        if stopping.is_set() and not forwarded:
            forwarded = forward(work, plan.processes)
        time.sleep(0.1)
    end_launches(work)  # nothing of a launch outlives it
    outcome = from_exit(
        child.returncode, read_outcomes(work), processes=plan.processes, asked_to_stop=stopping.is_set()
    )
    told = write_outcome(work / "outcome.json", outcome)
    uploader.close()
    try:
        store.write_json(RunPaths(plan.run).outcome(plan.stage, plan.launch), outcome.to_dict())
    except Exception as error:
        say(f"the outcome could not be stored: {error}")
    if outcome.reason is Reason.SUCCEEDED:
        return 0
    if not told:
        return EXIT_DISK_FULL
    return EXIT_STOPPED if outcome.reason is Reason.PREEMPTED else 1


def start(plan: StagePlan, path: Path, work: Path) -> subprocess.Popen[bytes]:
    """Start the stage in a session of its own and with a lifeline, its output in the work folder."""
    environment = {**os.environ, LIFELINE: "1"}
    environment.update(OMP_NUM_THREADS=str(plan.threads), PYTHONUNBUFFERED="1", TOKENIZERS_PARALLELISM="false")
    # Threads that wait asleep cost a stage alone 2 to 4 % and halve the time of two that share the cores.
    environment.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    stage = ["-m", "nanochat.stages", str(path)]
    if plan.processes == 1:
        command = [sys.executable, *stage]
    else:
        command = [
            sys.executable,
            "-m",
            "torch.distributed.run",
            "--standalone",
            "--nnodes=1",
            f"--nproc-per-node={plan.processes}",
            "--max-restarts=0",
            *stage,
        ]
    with (work / "launch.log").open("ab") as output:  # each rank has a log of its own
        return subprocess.Popen(
            command,
            stdout=output,
            stderr=subprocess.STDOUT,
            stdin=subprocess.PIPE,
            env=environment,
            start_new_session=True,
        )


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
