"""What a run on this machine costs, and a budget that ends in the middle of it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from small_pipeline import UNTRACKED, called, nanochat
from test_kill import PIPELINE as TRAINING
from test_kill import weights

from nanochat.pipeline import local
from nanochat.pipeline.local import LocalRunner, RunProgress
from nanochat.pipeline.planner import Phase, Status
from nanochat.pipeline.profiles import ResolvedProfile
from nanochat.pipeline.spending import Spending
from nanochat.report.record import gather
from nanochat.spec.cost import Prices
from nanochat.spec.load import check_pipeline
from nanochat.storage import Profile
from nanochat.storage.artifacts import Artifacts

HOUR = 3600.0


class Clock:
    """The time of a run, which a test sets forward."""

    def __init__(self) -> None:
        self.ahead, self._dates = 0.0, local.Dates()

    def __call__(self) -> float:
        return self._dates() + self.ahead


def runner_of(home: Path, **spec: Any) -> LocalRunner:
    """A runner of base and mid on two cores for 1 USD an hour each."""
    data = yaml.safe_load(TRAINING)
    data["spec"] |= spec
    data["spec"]["stages"]["sft"] = {"enabled": False}
    for stage in ("base", "mid"):
        data["spec"]["stages"][stage] |= {"checkpointEverySeconds": 1000, "logEvery": 1, "steps": 100}
    resolved = ResolvedProfile(
        name="default", profile=Profile(root=str(home)), tracking="", home=home, prices=Prices(cpu_hour=1.0)
    )
    return LocalRunner(check_pipeline(data, where="test"), resolved, devices=local.Devices(cores=2, gpus=0))


def run_until(runner: LocalRunner, stage: str, step: int, *, hours: float) -> Status:
    """Run to the end; once a stage has made these steps the clock is set forward."""
    clock = Clock()
    runner._dates = clock  # type: ignore[assignment]

    def look(view: RunProgress) -> None:
        state = view.progress.get(stage)
        if state is not None and state.step >= step:
            clock.ahead = hours * HOUR

    return runner.run(look)


@pytest.fixture
def attentive(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(local, "OBSERVE_SECONDS", 0.1)
    yield


@pytest.mark.usefixtures("attentive")
def test_a_budget_that_ends_in_mid_training(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """It is suspended with a checkpoint, raised, and ends with the weights of a run that never stopped."""
    undisturbed = runner_of(tmp_path / "undisturbed").run()
    assert undisturbed.phase is Phase.SUCCEEDED
    home = tmp_path / "home"
    runner = runner_of(home, budget={"money": 10.0})
    status = run_until(runner, "base", 20, hours=5)
    why = "the budget of 10 USD is spent: raise spec.budget.money, and it goes on where it was"
    assert (status.phase, status.message, status.of("base").reason) == (Phase.SUSPENDED, why, "BudgetSpent")
    (attempt,) = runner.attempts.of("base")
    assert (attempt.stopping, attempt.reason) == ("suspended", "Preempted")
    assert 20 <= attempt.reached < 100, "a checkpoint of where it was"
    assert attempt.lost == 0.0
    assert runner_of(home, budget={"money": 10.0}).run().phase is Phase.SUSPENDED, "and again"
    assert len(runner.attempts.of("base")) == 1
    runner = runner_of(home, budget={"money": 16.0})
    caplog.clear()
    status = run_until(runner, "mid", 20, hours=1.5)
    assert status.phase is Phase.SUCCEEDED
    assert [r.getMessage() for r in caplog.records if "budget" in r.getMessage()] == [
        "80 % of the budget of 16 USD are spent: raise spec.budget.money, or all stages are suspended at 100 %"
    ]
    assert weights(home) == weights(tmp_path / "undisturbed")
    spent = gather(runner.store, Artifacts(runner.store, tmp_path / "cache"), run=runner.paths.root).spent
    assert spent.cost == pytest.approx(13, abs=0.2) and spent.gpu_hours == 0.0
    assert spent == Spending.of(runner.attempts.all(), None, 0.0)


def test_a_run_says_how_to_raise_its_budget(tmp_path: Path) -> None:
    """The budget is spent at once: whoever raises it goes on, and reads what it cost."""
    (tmp_path / "killed.yaml").write_text(TRAINING)
    (tmp_path / "profiles.yaml").write_text("default: {prices: {cpuHour: 1000000}}\n")
    own = UNTRACKED | {"NANOCHAT_PROFILES": str(tmp_path / "profiles.yaml")}
    few = [f"--set=stages.{stage}.steps=2" for stage in ("base", "mid", "sft")]
    done = nanochat(tmp_path, "run", "killed.yaml", *few, "--set=budget.money=0.5", **own)
    assert done.returncode == 1, done.stdout + done.stderr
    said = " ".join(done.stdout.split())
    assert "Stopped: the budget of 0.5 USD is spent: raise spec.budget.money, and it goes on where it was" in said
    assert "--set stages.sft.steps=2 --set budget.money=0.5 --set budget.money=1" in said
    done = nanochat(tmp_path, "run", "killed.yaml", *few, "--set=budget.money=1e9", **own)
    assert done.returncode == 0, done.stdout + done.stderr
    told = called(tmp_path, "status", "killed", **own)
    assert " USD" in told.stdout, told.stdout
    document = json.loads(called(tmp_path, "status", "killed", "--json", **own).stdout)
    assert document["phase"] == "Succeeded"
