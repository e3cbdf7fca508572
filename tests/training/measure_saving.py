"""What saving costs: python -m tests.training.measure_saving [--seconds 60] [--rounds 5]

The state of depth 6, width 384 and a vocabulary of 32,768, 387 MB, goes to an S3 server on the same cores. First alone,
for the CPU seconds of the copy and of all else, the server's included. Then every so many seconds in training, in
intervals that alternate with ones without: the share of the time in which the loop waits, and what a step takes more,
of time and of CPU. Printed is one JSON object, with medians.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import torch
from s3_server import S3Server

from nanochat.model.sizes import ModelConfig
from nanochat.model.transformer import Transformer
from nanochat.training.host_copy import HostCopy
from nanochat.training.trainer import Trainer
from tests.training.rig import FakeLoader, Rig

CONFIG = ModelConfig(depth=6, width=384, heads=3, kv_heads=3, sequence_length=16, vocab_size=32768)
ROWS = 64  # of 16 tokens


@dataclass(frozen=True)
class Interval:
    """What happened in some seconds."""

    steps: int
    seconds: float
    waited: float  # seconds, by the loop, for saving
    cpu: float  # seconds of this process, and of the server


class Measured:
    """A training that is about to go on, and the server's process."""

    def __init__(self, trainer: Trainer, server: psutil.Process) -> None:
        self.trainer, self.server, self.copy = trainer, server, HostCopy()

    def cpu(self) -> float:
        times = self.server.cpu_times()
        return time.process_time() + times.user + times.system

    def save(self) -> tuple[float, float]:
        """Save alone -> CPU seconds of the copy, and of all else."""
        before = self.cpu()
        self.copy.take({"model": self.trainer.model.state_dict(), "optimizer": self.trainer.optimizer.own_state()})
        copy = self.cpu() - before
        before = self.cpu()
        self.trainer._save(due=True)
        self.trainer.checkpointer.wait()
        self.trainer.state.step += 1  # so that the next save is another one
        return copy, self.cpu() - before - copy

    def interval(self, seconds: float, *, saves: bool) -> Interval:
        began, before, steps, waited = time.perf_counter(), self.cpu(), 0, 0.0
        if saves:
            self.trainer._save(due=True)
            waited = time.perf_counter() - began
        while not steps or time.perf_counter() - began < seconds:
            self.trainer._advance()
            steps += 1
        left = time.perf_counter()
        self.trainer.checkpointer.wait()  # as the next save would
        waited += time.perf_counter() - left
        return Interval(steps, time.perf_counter() - began, waited, self.cpu() - before)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, S3Server.start(Path(folder)) as server:
        os.environ.update(server.credentials)
        assert server.process is not None
        rig = Rig(
            Path(folder),
            profile=server.profile("measure"),
            model=Transformer(CONFIG),
            loader=FakeLoader(rows=ROWS),
            device_rows=ROWS,
            steps=10**9,
        )
        trainer = rig.loop()
        trainer._restore()
        trainer._advance()
        measured = Measured(trainer, psutil.Process(server.process.pid))
        measured.save()  # makes the buffers
        alone = [measured.save() for _ in range(3)]
        results: dict[str, Any] = {
            "threads": torch.get_num_threads(),
            "load": os.getloadavg()[0],
            "cpu_of_a_copy": statistics.median(copy for copy, _ in alone),
            "cpu_of_the_rest": statistics.median(rest for _, rest in alone),
        }
        kinds: dict[bool, list[Interval]] = {True: [], False: []}
        for number in range(2 * options.rounds):
            kinds[number % 2 == 0].append(measured.interval(options.seconds, saves=number % 2 == 0))
        if options.rounds:
            results |= compare(kinds[True], kinds[False])
        print(json.dumps(results, indent=1), flush=True)


def compare(saving: list[Interval], alone: list[Interval]) -> dict[str, Any]:
    def more(name: str) -> float:
        of = [statistics.median(getattr(each, name) / each.steps for each in kind) for kind in (saving, alone)]
        return of[0] / of[1] - 1

    return {
        "waited": [round(each.waited / each.seconds, 4) for each in saving],
        "steps": [each.steps for each in saving],
        "more_seconds_a_step": more("seconds"),
        "more_cpu_a_step": more("cpu"),
    }


if __name__ == "__main__":
    main()
