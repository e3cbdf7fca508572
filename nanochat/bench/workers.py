"""Measured processes from outside: start them, let them take turns, and turn what goes wrong into one sentence.

with Workers() as workers:
    ours = workers.start("ours", {"module": "steps", ...})
    theirs = workers.start("peer", {"module": "peer", ...})
    found = take_turns([ours, theirs], rounds=5)
"""

from __future__ import annotations

import json
import math
import os
import selectors
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nanochat.bench.figures import Measured
from nanochat.spec.errors import UserError

PATIENCE = 1800.0  # seconds for one answer; compiling is part of the first
LARGEST_ANSWER = 1 << 20  # bytes of a line
KILLED = -9
ENDING = 10.0  # seconds to end after the last answer


class Workers(ExitStack):
    """The measured processes of one command; all end with it, and answer before `ends`."""

    def __init__(self, *, ends: float = math.inf) -> None:
        super().__init__()
        self.ends = ends

    def __enter__(self) -> Workers:
        super().__enter__()
        self.logs = Path(self.enter_context(tempfile.TemporaryDirectory()))
        return self

    def start(
        self, name: str, task: Mapping[str, Any], environment: Mapping[str, str], *, processes: int = 1
    ) -> Worker:
        """Start a process that will measure, or several that train together, of which the first is told and answers;
        it goes on while others are started."""
        if processes == 1:
            return self._start(name, task, environment)
        port = str(free_port())
        *_, first = [
            self._start(name, task, {**environment, **rank_variables(rank, processes, port)})
            for rank in reversed(range(processes))
        ]
        return first

    def _start(self, name: str, task: Mapping[str, Any], environment: Mapping[str, str]) -> Worker:
        log = self.logs / f"{len(list(self.logs.iterdir()))}.log"
        began = time.monotonic()
        with log.open("wb") as output:
            process = subprocess.Popen(
                [sys.executable, "-P", "-m", "nanochat.bench.worker"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=output,
                text=True,
                env=with_package(environment),
            )
        worker = Worker(name, process, log, self.ends)
        self.callback(worker.close)
        worker.tell(json.dumps({**task, "started": began}))
        return worker


def asleep(threads: int) -> dict[str, str]:
    """The environment of a process that computes on so many threads, which wait asleep."""
    return {"OMP_NUM_THREADS": str(threads), "OMP_WAIT_POLICY": "PASSIVE"}


def rank_variables(rank: int, processes: int, port: str) -> dict[str, str]:
    """torchrun's variables for one of several processes on this machine."""
    place = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    return {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(processes), **place}


def free_port() -> int:
    """A port of this machine that nobody listens on."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def with_package(variables: Mapping[str, str]) -> dict[str, str]:
    """The environment of a Python process that imports this package, wherever it lies."""
    places = [str(Path(__file__).parents[2]), os.environ.get("PYTHONPATH", "")]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, places)), **variables}


@dataclass(frozen=True, slots=True)
class Worker:
    """One measured process."""

    name: str
    process: subprocess.Popen[str]
    log: Path
    ends: float = math.inf  # by the monotonic clock

    def tell(self, line: str) -> None:
        """Give it a command."""
        assert self.process.stdin is not None
        try:
            self.process.stdin.write(f"{line}\n")
            self.process.stdin.flush()
        except BrokenPipeError:
            raise self._failure() from None

    def answer(self) -> dict[str, Any]:
        """The next answer; UserError where there is none, in the words of the process where it had some."""
        assert self.process.stdout is not None
        with selectors.DefaultSelector() as selector:
            selector.register(self.process.stdout, selectors.EVENT_READ)
            if not selector.select(max(0.0, min(PATIENCE, self.ends - time.monotonic()))):
                raise UserError(f"{self.name} took longer than there is time for: measure a smaller model")
        line = self.process.stdout.readline(LARGEST_ANSWER)
        if not line:
            raise self._failure()
        found = json.loads(line)
        if "error" in found:
            raise UserError(f"{self.name}: {found['error']}")
        return found

    def ask(self, command: str) -> dict[str, Any]:
        self.tell(command)
        return self.answer()

    def close(self) -> None:
        """Let it end, or make it."""
        assert self.process.stdin is not None and self.process.stdout is not None
        with suppress(BrokenPipeError):
            self.process.stdin.close()
        try:
            self.process.wait(ENDING)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self.process.stdout.close()

    def _failure(self) -> UserError:
        code = self.process.wait()
        if code == KILLED:
            return UserError(
                f"{self.name} was killed, most likely by the kernel for memory: measure fewer rows "
                "(--set stages.base.deviceBatchSize=4) or a smaller model (--set model.depth=4)"
            )
        said = self.log.read_text(errors="replace").strip().splitlines()
        last = said[-1] if said else "it said nothing"
        return UserError(f"{self.name} ended with exit code {code}: {last[:300]}")


def take_turns(workers: Sequence[Worker], *, rounds: int, warm: int = 1, profile: bool = True) -> list[Measured]:
    """Each does a step in each round, in turn, and every second round from the last to the first."""
    starts = [worker.answer()["parts"] for worker in workers]
    for _ in range(warm):
        for worker in workers:
            worker.ask("step")
    found: list[list[dict[str, Any]]] = [[] for _ in workers]
    for number in range(rounds):
        order = list(zip(workers, found, strict=True))
        for worker, answers in order if number % 2 == 0 else reversed(order):
            answers.append(worker.ask("step"))
    costs = [worker.ask("profile")["costs"] if profile else [] for worker in workers]
    return [
        Measured(worker.name, answers, parts, cost)
        for worker, answers, parts, cost in zip(workers, found, starts, costs, strict=True)
    ]
