"""Stages of two processes (torchrun, gloo): the same losses as one."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from small_pipeline import (
    launch_processes,
    nanochat,
    stored,
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


def losses(home: Path, stage: str) -> dict[int, float]:
    """Step -> loss, of all launches."""
    found = {}
    for path in sorted((home / "state").glob(f"runs/*/*/metrics/{stage}/*/*.jsonl")):
        for record in map(json.loads, path.read_text().splitlines()):
            if "train/loss" in record.get("metrics", {}):
                found[record["step"]] = record["metrics"]["train/loss"]
    return found


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A home that has everything but models."""
    folder = tmp_path_factory.mktemp("data")
    write_pipeline(folder)
    done = nanochat(folder, "run", "small.yaml", "--only", "dataset", "--only", "tokenizer", "--only", "tokens")
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


@pytest.fixture
def fresh(data: Path, tmp_path: Path) -> Callable[[str], Path]:
    """Makes homes that have everything but models."""

    def make(name: str) -> Path:
        shutil.copytree(data / "state" / "artifacts", tmp_path / name / "state" / "artifacts")
        return tmp_path / name

    return make


def test_two_processes_make_the_whole_pipeline_with_the_losses_of_one(fresh: Callable[[str], Path]) -> None:
    one, two = fresh("one"), fresh("two")
    write_pipeline(one, **training(1))
    write_pipeline(two, **training(2))
    done = nanochat(two, "run", "small.yaml")
    assert done.returncode == 0, done.stdout + done.stderr
    assert {attempt["number"] for attempt in stored(two, "runs/*/*/attempts/*/*.json")} == {1}
    only = [word for stage in TRAINING for word in ("--only", stage)]
    assert nanochat(one, "run", "small.yaml", *only).returncode == 0
    for stage in TRAINING:
        expected = losses(one, stage)
        assert expected and losses(two, stage) == pytest.approx(expected, rel=1e-5), stage
    assert not launch_processes(two)
