"""`nanochat plan` and `nanochat run --dry-run`: what they print, and that they start and write nothing."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from small_pipeline import PIPELINE, UNTRACKED, called, mistake

STAGES = ("dataset", "tokenizer", "tokens", "base", "eval-base", "mid", "eval-mid", "sft", "eval-sft", "rl", "eval-rl")
SPEEDRUN = Path(__file__).parents[2] / "k8s" / "pipelines" / "speedrun.yaml"


@pytest.fixture
def home(tmp_path: Path) -> Path:
    (tmp_path / "small.yaml").write_text(PIPELINE)
    return tmp_path


def test_a_plan_is_one_screen_and_leaves_nothing_behind(home: Path) -> None:
    done = called(home, "plan", "small.yaml", "--set", "budget.money=5", COLUMNS="80", **UNTRACKED)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines[0].startswith("small: ") and "4 steps" in lines[0]
    assert [line.split()[0] for line in lines[2:15]] == [*STAGES, "report", "release"]
    assert len(lines) < 24 and max(map(len, lines[1:15])) <= 80
    assert lines[1].split() == ["STAGE", "STEPS", "TOKENS", "FLOPS", "TIME"], "no GPU, and no price of a core"
    assert "* assumed" in lines[17] and "USD" not in done.stdout
    assert not list((home / "state").glob("**/*")), "nothing was written"


def test_why_stages_run_is_a_column_or_stands_below(home: Path) -> None:
    def said(columns: int, file: Path) -> list[str]:
        done = called(home, "plan", str(file), COLUMNS=str(columns), **UNTRACKED)
        assert done.returncode == 0, done.stderr
        return done.stdout.splitlines()

    new = "nothing like it was made before"
    for file in (home / "small.yaml", SPEEDRUN):
        wide, narrow = said(160, file), said(80, file)
        assert wide[1].endswith("  WHY") and wide[5].startswith("base") and wide[5].endswith(f"  {new}")
        assert "Why they run:" not in wide
        below = narrow[narrow.index("Why they run:") + 1 :]
        assert [line[:74].rstrip() for line in narrow[1:15]] == [
            line.rpartition("  ")[0].rstrip() for line in wide[1:15]
        ]
        told = " ".join(line.strip() for line in below if line.startswith("  "))
        assert f"tokenizer, {', '.join([*STAGES[3:], 'report', 'release'])}: {new}" in told
        assert all(len(line) <= 80 for line in below)


def test_gpus_have_prices_and_a_budget_is_compared(home: Path) -> None:
    done = called(home, "plan", str(SPEEDRUN), "--set", "budget.money=5", "--device", "A100", **UNTRACKED)
    assert done.returncode == 0, done.stderr
    assert "21,400" in done.stdout and "That is more than the budget: 5 USD" in done.stdout
    table = {line.split()[0]: line for line in done.stdout.splitlines()[-11:]}
    assert {"H100", "A100", "L4", "B200"} <= table.keys()
    told = json.loads(called(home, "plan", str(SPEEDRUN), "--device", "A100", "--json", **UNTRACKED).stdout)
    base = next(stage for stage in told["stages"] if stage["stage"] == "base")
    assert (base["work"]["steps"], base["device"], base["gpus"]) == (21_400, "A100", 8)
    known = {item["device"]: item for item in told["devices"]}
    assert told["gpu_hours"] == pytest.approx(known["A100"]["gpu_hours"])
    assert told["cost"] == pytest.approx(1.79 * told["gpu_hours"]) and known["H100"]["seconds"] < told["seconds"]


def test_a_dry_run_is_of_this_machine(home: Path) -> None:
    done = called(home, "run", "small.yaml", "--dry-run", **UNTRACKED)
    assert done.returncode == 0 and "In all" in done.stdout
    assert "error" not in done.stderr and not list((home / "state").glob("**/*"))


def test_mistakes_are_one_sentence(home: Path) -> None:
    assert "stages.base.steps" in mistake(called(home, "plan", "small.yaml", "--set", "stages.base.steps=-1"))
    assert "'nowhere'" in mistake(called(home, "plan", "small.yaml", "--set", "store=nowhere"))
    wrong = mistake(called(home, "plan", "small.yaml", "--device", "banana", **UNTRACKED))
    assert "--device banana" in wrong and "H100" in wrong
    for option in ("--only", "--from"):
        assert "leave out --only" in mistake(
            called(home, "run", "small.yaml", "--dry-run", option, "base", **UNTRACKED)
        )
