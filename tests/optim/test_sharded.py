"""Several processes make what one makes. All jobs run in one set of processes, for starting them takes longest."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from optim_worker import saved_state, train
from safetensors.torch import load_file

WORLD = 3
CLIP = 0.5
TOLERANCE = {"rtol": 1e-5, "atol": 2e-6}

Results = dict[str, list[dict[str, float]]]  # by the job's file, in order of rank


def run_together(jobs: list[dict[str, Any]]) -> Results:
    worker = Path(__file__).with_name("optim_worker.py")
    processes = [
        subprocess.Popen(
            [sys.executable, worker, str(rank), json.dumps(jobs)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(WORLD)
    ]
    try:
        outputs = [process.communicate(timeout=120) for process in processes]
    finally:
        for process in processes:
            process.kill()
    results: Results = {Path(job["save"]).name: [] for job in jobs}
    for rank, (process, (printed, errors)) in enumerate(zip(processes, outputs, strict=True)):
        assert process.returncode == 0, errors
        mine = [job for job in jobs if rank < job["world"]]
        for job, result in zip(mine, json.loads(printed.splitlines()[-1]), strict=True):
            results[Path(job["save"]).name].append(result)
    return results


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("optim")


@pytest.fixture(scope="module")
def results(folder: Path) -> Results:
    alone = [
        {"world": 1, "steps": 4, "clip": CLIP, "save": str(folder / "one")},
        {"world": 1, "steps": 2, "clip": CLIP, "save": str(folder / "one-half")},
    ]
    results: Results = {Path(job["save"]).name: [train(0, **job)] for job in alone}
    two = {"world": 2, "clip": CLIP}
    results |= run_together(
        [
            two | {"steps": 4, "save": str(folder / "two")},
            two | {"steps": 4, "save": str(folder / "two-idle"), "idle": 1},
            two | {"steps": 2, "save": str(folder / "two-half")},
            two | {"steps": 2, "first": 2, "load": str(folder / "one-half"), "save": str(folder / "one-two")},
            {"world": 3, "clip": CLIP, "steps": 4, "save": str(folder / "three")},
        ]
    )
    train(0, world=1, clip=CLIP, steps=2, first=2, load=str(folder / "two-half"), save=str(folder / "two-one"))
    return results


def whole(path: Path) -> dict[str, torch.Tensor]:
    """Weights and state that a job has saved."""
    return load_file(path) | {f"state of {name}": tensor for name, tensor in saved_state(str(path)).items()}


@pytest.mark.parametrize("name", ["two", "three", "two-idle"])
def test_several_processes_equal_one(folder: Path, results: Results, name: str) -> None:
    """Weights, state and the norm before clipping, where neither rows nor matrices divide by the processes."""
    torch.testing.assert_close(whole(folder / name), whole(folder / "one"), **TOLERANCE)
    ranks = results[name]
    for rank in ranks:
        assert rank["norm"] == pytest.approx(results["one"][0]["norm"], rel=1e-5)
        assert rank["digest"] == ranks[0]["digest"]
    assert sum(rank["state"] for rank in ranks) == results["one"][0]["state"], "each has a part, and none has another's"
    assert all(0 < rank["state"] < results["one"][0]["state"] for rank in ranks)


@pytest.mark.usefixtures("results")
@pytest.mark.parametrize("name", ["two-one", "one-two"])
def test_what_some_saved_others_resume(folder: Path, name: str) -> None:
    torch.testing.assert_close(whole(folder / name), whole(folder / "one"), **TOLERANCE)
