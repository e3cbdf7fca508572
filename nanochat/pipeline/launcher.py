"""The first process of every launch: `python -m nanochat.pipeline.launcher PLAN.json`.

It starts the stage (one process) or torchrun (several), keeps each rank's log in the run's folder, forwards SIGTERM to
the ranks, gathers their outcomes, and ends with 0, 143 (stopped after a checkpoint) or 1. It imports no torch.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import IO

from nanochat.pipeline.orphan import die_with_parent
from nanochat.pipeline.outcomes import EXIT_STOPPED, Outcome, Reason, from_exit
from nanochat.pipeline.plan import StagePlan
from nanochat.pipeline.runs import RunPaths
from nanochat.storage.store import Profile, Store, open_store

LOG_SECONDS = 3.0


class LogUploader:
    """Copies the growing log files of a launch into the run's folder, in numbered pieces that never change."""

    def __init__(self, store: Store, folder: str, work: Path) -> None:
        self._store, self._folder, self._work = store, folder, work
        self._files: dict[Path, tuple[IO[bytes], int]] = {}
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._run, name="logs", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Upload what is left and stop."""
        self._done.set()
        self._thread.join(timeout=60)

    def _run(self) -> None:
        warned = False
        while True:
            last = self._done.wait(LOG_SECONDS)
            try:
                self._upload()
            except Exception as error:  # a log that cannot be stored must not stop the stage
                if not warned:
                    print(f"logs cannot be stored now: {error}", file=sys.stderr)
                warned = True
            if last:
                return

    def _upload(self) -> None:
        for path in sorted(self._work.glob("*.log")):
            handle, pieces = self._files.get(path) or (path.open("rb"), 0)
            position = handle.tell()
            data = handle.read()
            if data:
                try:
                    self._store.write(f"{self._folder}/{path.stem}/{pieces:06d}.log", data)
                except Exception:
                    handle.seek(position)
                    self._files[path] = (handle, pieces)
                    raise
                pieces += 1
            self._files[path] = (handle, pieces)


def main() -> int:
    """Launch the plan; returns the exit code."""
    path = Path(sys.argv[1])
    plan = StagePlan.read(path)
    work = Path(plan.work)
    work.mkdir(parents=True, exist_ok=True)
    store = open_store(Profile(**plan.profile))
    stopping = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stopping.set())
    uploader = LogUploader(store, RunPaths(plan.run).logs(plan.stage, plan.launch), work)
    child = start(plan, path, work)
    die_with_parent(cleanup=lambda: kill_group(child))
    forwarded = False
    while child.poll() is None:
        if stopping.is_set() and not forwarded:
            forwarded = forward(work, plan.processes)
        time.sleep(0.1)
    kill_group(child)  # nothing of a launch outlives it
    outcome = from_exit(child.returncode, read_outcomes(work))
    uploader.close()
    try:
        store.write_json(RunPaths(plan.run).outcome(plan.stage, plan.launch), outcome.to_dict())
    except Exception as error:
        print(f"the outcome could not be stored: {error}", file=sys.stderr)
    (work / "outcome.json").write_text(json.dumps(outcome.to_dict()))
    if outcome.reason is Reason.SUCCEEDED:
        return 0
    return EXIT_STOPPED if outcome.reason is Reason.PREEMPTED else 1


def start(plan: StagePlan, path: Path, work: Path) -> subprocess.Popen[bytes]:
    """Start the stage in a session of its own, its output in the work folder."""
    environment = dict(os.environ)
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
            stdin=subprocess.DEVNULL,
            env=environment,
            start_new_session=True,
        )


def forward(work: Path, processes: int) -> bool:
    """Send SIGTERM to the ranks, never to torchrun (it would kill them after 30 s); False while they still start."""
    pids = [int(p.read_text() or 0) for p in work.glob("rank*.pid")]
    if len(pids) < processes:
        return False
    for pid in pids:
        try:
            if pid:
                os.kill(pid, signal.SIGTERM)
        except ProcessLookupError:
            continue
    return True


def kill_group(child: subprocess.Popen[bytes]) -> None:
    """End every process of the launch's session."""
    try:
        os.killpg(child.pid, signal.SIGKILL)
    except (ProcessLookupError, PermissionError):
        return


def read_outcomes(work: Path) -> list[Outcome]:
    """The ranks' own outcomes."""
    found = []
    for path in sorted(work.glob("outcome-rank*.json")):
        try:
            found.append(Outcome.from_dict(json.loads(path.read_text())))
        except (ValueError, KeyError):
            continue
    return found


if __name__ == "__main__":
    sys.exit(main())
