"""What saving costs: python -m tests.training.measure_saving [--seconds 60] [--rounds 5]

The state of depth 6, width 384 and a vocabulary of 32,768, 387 MB, goes to an S3 server on the same cores every so many
seconds. Such intervals alternate with intervals of training alone; printed is one JSON object with medians: the share
of time that the loop waits, and what an interval's steps take more of time and of CPU, the server's included.
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

import psutil
import torch
from s3_server import S3Server

from nanochat.model.sizes import ModelConfig
from nanochat.model.transformer import Transformer
from nanochat.training.trainer import Trainer
from tests.training.rig import FakeLoader, Rig

CONFIG = ModelConfig(depth=6, width=384, heads=3, kv_heads=3, sequence_length=16, vocab_size=32768)
ROWS = 64  # of 16 tokens


@dataclass(frozen=True)
class Interval:
    """What happened in some seconds."""

    steps: int
    seconds: float
    waited: float  # by the loop, for saving
    cpu: float  # seconds of this process, and of the server

    @property
    def share(self) -> float:
        return self.waited / self.seconds


def measure(trainer: Trainer, server: psutil.Process, *, seconds: float, saves: bool) -> Interval:
    def cpu() -> float:
        times = server.cpu_times()
        return time.process_time() + times.user + times.system

    began, cpu_before, steps, waited = time.perf_counter(), cpu(), 0, 0.0
    if saves:
        trainer._save(due=True)
        waited = time.perf_counter() - began
    while time.perf_counter() - began < seconds:
        trainer._advance()
        steps += 1
    if saves:  # the next save would wait for it
        left = time.perf_counter()
        trainer.checkpointer.wait()
        waited += time.perf_counter() - left
    return Interval(steps, time.perf_counter() - began, waited, cpu() - cpu_before)


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
        process = psutil.Process(server.process.pid)
        measure(trainer, process, seconds=0.0, saves=True)  # makes the buffers
        kinds: dict[bool, list[Interval]] = {True: [], False: []}
        for number in range(2 * options.rounds):
            saves = number % 2 == 0
            kinds[saves].append(measure(trainer, process, seconds=options.seconds, saves=saves))

        def median(saves: bool, name: str) -> float:
            return statistics.median(getattr(each, name) / each.steps for each in kinds[saves])

        print(
            json.dumps(
                {
                    "threads": torch.get_num_threads(),
                    "load": os.getloadavg()[0],
                    "waited_share": [round(each.share, 5) for each in kinds[True]],
                    "waited_share_median": statistics.median(each.share for each in kinds[True]),
                    "steps": [each.steps for each in kinds[True]],
                    "seconds_a_step": median(True, "seconds") / median(False, "seconds"),
                    "cpu_a_step": median(True, "cpu") / median(False, "cpu"),
                    "cpu_of_a_save": statistics.median(each.cpu for each in kinds[True])
                    - statistics.median(each.steps for each in kinds[True]) * median(False, "cpu"),
                },
                indent=1,
            )
        )
        os._exit(0)


if __name__ == "__main__":
    main()
