"""What a training says in its log: the first steps, one line each half a minute, measurements and saves."""

from __future__ import annotations

import logging
import re
from pathlib import Path

import pytest
import torch

from nanochat.cli.cluster_run import STEP_LINE
from nanochat.runtime.device import Device
from nanochat.training.plan import Measurement, Rates, TrainerPlan
from nanochat.training.state import TrainerState
from nanochat.training.step_log import StepLog
from tests.training.rig import Rig

CPU = torch.device("cpu")


def lines_of(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records]


def test_first_steps_then_one_line_in_half_a_minute_and_the_last(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    now = 0.0
    plan = TrainerPlan(steps=100, schedule=lambda step: Rates(0.5), learning_rate=0.02, flops_per_token=1e6)
    lines = StepLog(plan, Device(CPU, torch.float32), processes=2, clock=lambda: now)
    for step in range(41, 101):  # of a launch that went on after step 40
        now += 1.0
        lines.add(2000, 1.0)
        lines.step(TrainerState(step=step, smooth_loss=3.25), {}, left=90.0)
    said = lines_of(caplog)
    assert [line.split(":")[0] for line in said] == [
        f"step {step} of 100" for step in (41, 42, 43, 73, 100)
    ]  # fmt: skip
    assert re.fullmatch(
        r"step 73 of 100: loss 3.2500, learning rate 0.01, 2,000 tokens/s, 2.000 GFLOP/s, "
        r"[\d.]+ [MG]iB of memory, 1 min 30 s left",
        said[3],
    )
    assert said[4].endswith("of memory")  # nothing is left


def test_a_device_whose_peak_is_known_has_its_share_of_all_processes(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    plan = TrainerPlan(steps=2, schedule=lambda step: Rates(1.0), flops_per_token=1e9)
    lines = StepLog(plan, Device(CPU, torch.bfloat16, peak=1e12), processes=4)
    lines.add(2000, 1.0)
    lines.step(TrainerState(step=1), {"train/sample_length": 31.5}, left=None)
    assert "step 1 of 2: sample length 31.50, learning rate 1, 2,000 tokens/s, MFU 50.0 %" in lines_of(caplog)[0]


def test_a_measured_loss_is_not_read_as_that_of_training(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    plan = TrainerPlan(steps=2, schedule=lambda step: Rates(1.0))
    lines = StepLog(plan, Device(CPU, torch.bfloat16), processes=1)
    lines.measured(1, {"val/loss": 0.4103, "val/pass_at_4": 0.5, "val/core": 0.25, "task/arc-easy": 0.75})
    (said,) = lines_of(caplog)
    assert said == "step 1 of 2: validation loss 0.4103, pass@4 0.5000, CORE 0.2500, arc-easy 0.7500"
    assert STEP_LINE.findall(said.encode()) == []


def test_a_training_logs_steps_measurements_and_saves(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    bits = Measurement(5, lambda step: {"val/bpb": 1.5})
    Rig(tmp_path, steps=12, checkpoint_steps=6, measurements=(bits, Measurement(5, lambda step: {}))).run()
    said = lines_of(caplog)
    steps = [line for line in said if re.match(r"step \d+ of 12: loss \d", line)]
    assert [int(line.split()[1]) for line in steps] == [1, 2, 3, 12]
    assert [int(step) for step, _ in STEP_LINE.findall("\n".join(said).encode())] == [
        1,
        2,
        3,
        12,
    ]  # as `status` reads it
    assert "tokens/s" not in steps[0] and all("tokens/s" in line for line in steps[1:])
    assert [line for line in said if "bpb" in line] == [f"step {step} of 12: bpb 1.500" for step in (5, 10, 12)]
    assert "the checkpoint of step 6 is stored" in said
