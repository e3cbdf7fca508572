"""Stages of two processes (torchrun, gloo): the same losses as one, a clean stop, and no end without a word."""

from __future__ import annotations

import json
import shutil
import signal
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest
from small_pipeline import (
    UNTRACKED,
    launch_processes,
    lines,
    nanochat,
    output,
    started,
    stored,
    wait_until,
    write_pipeline,
)

TRAINING = ("base", "mid", "sft")
OFF = {"enabled": False}
ONLY_BASE = {name: OFF for name in ("mid", "sft", "rl", "evalBase", "evalChat", "report", "release")}


def training(processes: int) -> dict[str, dict[str, object]]:
    """All stages on so many processes; what they print along the way costs time and changes nothing."""
    common = {"processesPerNode": processes, "precision": "fp32"}
    sections = {name: {**common, "evalEvery": 0} for name in TRAINING} | {"evalBase": common, "evalChat": common}
    sections["base"] |= {"steps": 20, "sampleEvery": 0, "deviceBatchSize": 2}
    return sections | {"rl": {**common, "evalEvery": 2}}


def only(*stages: str) -> list[str]:
    """Options of `nanochat run`."""
    return [word for stage in stages for word in ("--only", stage)]


def losses(home: Path, stage: str) -> dict[int, float]:
    """Step -> loss, of all launches."""
    found = {}
    for path in sorted((home / "state").glob(f"runs/*/*/metrics/{stage}/*/*.jsonl")):
        for record in map(json.loads, path.read_text().splitlines()):
            if "train/loss" in record.get("metrics", {}):
                found[record["step"]] = record["metrics"]["train/loss"]
    return found


@pytest.fixture
def fresh(trained: Path, tmp_path: Path) -> Callable[[str], Path]:
    """Makes homes that have all data and no model."""

    def make(name: str) -> Path:
        later = shutil.ignore_patterns("model", "evaluation", "report", "release")
        shutil.copytree(trained / "state" / "artifacts", tmp_path / name / "state" / "artifacts", ignore=later)
        return tmp_path / name

    return make


def test_two_processes_make_every_kind_of_model_with_the_losses_of_one(fresh: Callable[[str], Path]) -> None:
    one, two = fresh("one"), fresh("two")
    write_pipeline(one, **training(1))
    write_pipeline(two, **training(2))
    done = nanochat(two, "run", "small.yaml", *only(*TRAINING, "rl", "eval-base", "eval-rl"), **UNTRACKED)
    assert done.returncode == 0, done.stdout + done.stderr
    assert {attempt["number"] for attempt in stored(two, "runs/*/*/attempts/*/*.json")} == {1}
    assert nanochat(one, "run", "small.yaml", *only(*TRAINING), **UNTRACKED).returncode == 0
    for stage in TRAINING:
        expected = losses(one, stage)
        assert expected and losses(two, stage) == pytest.approx(expected, rel=1e-5), stage
    assert not launch_processes(two)


def long_run(home: Path, processes: int) -> None:
    section = {"processesPerNode": processes, "precision": "fp32", "steps": 200_000, "checkpointEverySeconds": 1}
    write_pipeline(home, retries={"delaySeconds": 0.1}, base={**section, "evalEvery": 0, "sampleEvery": 0}, **ONLY_BASE)


def module(process: psutil.Process) -> str:
    """The module that `python -m` was told to run."""
    words = process.cmdline()
    return words[words.index("-m") + 1]


def checkpoint_steps(home: Path) -> list[int]:
    found = (home / "state").glob("checkpoints/base/*/step-*/manifest.json")
    return sorted(int(path.parent.name.split("-")[1]) for path in found)


@pytest.mark.slow
def test_a_rank_torchrun_or_launcher_that_is_killed_is_replaced_and_a_stop_is_agreed_on(
    fresh: Callable[[str], Path],
) -> None:
    home = fresh("killed")
    long_run(home, 2)
    process = started(home, "run", "small.yaml", **UNTRACKED)
    victims = ("nanochat.stages", "torch.distributed.run", "nanochat.pipeline.launcher")
    try:
        for turn, word in enumerate(victims, start=1):
            before = max(checkpoint_steps(home), default=0)
            wait_until(lambda: max(checkpoint_steps(home), default=0) > before, process=process, home=home)  # noqa: B023
            running = launch_processes(home)
            victim = next(p for p in running if module(p) == word)
            victim.send_signal(signal.SIGKILL)
            pattern = f"runs/*/*/attempts/base/{turn:04d}.json"
            ended = wait_until(
                lambda: [a for a in stored(home, pattern) if a["outcome"]],  # noqa: B023
                process=process,
                home=home,
            )
            assert ended[0]["outcome"]["reason"] == "Infrastructure", ended
            _, alive = psutil.wait_procs(running, timeout=10)
            assert not alive
        before = max(checkpoint_steps(home))
        wait_until(lambda: max(checkpoint_steps(home)) > before, process=process, home=home)
        assert nanochat(home, "cancel", "small").returncode == 0
        assert process.wait(timeout=60) == 1, output(home)
    finally:
        process.kill()
    assert "Go on with" in output(home)
    assert not launch_processes(home)
    outcomes = [item["outcome"]["reason"] for item in stored(home, "runs/*/*/attempts/base/*.json")]
    assert outcomes == ["Infrastructure"] * 3 + ["Preempted"]
    logs = "".join(path.read_text() for path in (home / "state").glob("runs/*/*/logs/base/04-*/rank0/*.log"))
    assert "resumed after step" in logs

    # One process goes on from where two stopped, and an interrupt of it is as clean.
    reached = max(checkpoint_steps(home))
    long_run(home, 1)
    process = started(home, "run", "small.yaml", **UNTRACKED)
    try:
        wait_until(lambda: max(checkpoint_steps(home)) > reached, process=process, home=home)
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=60) == 130, output(home)
    finally:
        process.kill()
    logs = "".join(path.read_text() for path in (home / "state").glob("runs/*/*/logs/base/05-*/rank0/*.log"))
    assert f"resumed after step {reached:,}" in logs
    assert lines(output(home))["base"].startswith("stopping")
    assert not launch_processes(home)
