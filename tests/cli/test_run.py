"""`nanochat run` as a user meets it: run again, one setting changed, one stage alone, mistakes."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from small_pipeline import called, lines, nanochat, output, started, wait_until


def test_run_again_does_nothing_and_says_why(home: Path) -> None:
    done = nanochat(home, "run", "small.yaml")
    assert done.returncode == 0
    said = lines(done.stdout)
    stages = ("dataset", "tokenizer", "tokens", "base", "mid", "sft", "rl", "eval-rl", "report", "release")
    for stage in stages:
        assert said[stage].startswith("cached"), done.stdout
    assert "report.html" in done.stdout


def test_where_all_is_made_and_told_nothing_large_is_imported(home: Path) -> None:
    assert nanochat(home, "run", "small.yaml").returncode == 0  # tells MLflow of the home's new place
    done = nanochat(home, "run", "small.yaml", PYTHONPROFILEIMPORTTIME="1")
    imported = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines() if line.startswith("import time:")}
    assert done.returncode == 0 and "nanochat.pipeline.local" in imported
    assert imported & {"torch", "mlflow", "numpy", "kubernetes"} == set(), "each takes as long as all the rest"


def test_one_setting_changed_runs_what_depends_on_it_and_names_it(home: Path) -> None:
    done = nanochat(home, "run", "small.yaml", "--set", "stages.sft.initLrFraction=0.5")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "initLrFraction 0.02 -> 0.5" in done.stdout
    said = lines(done.stdout)
    assert said["mid"].startswith("cached") and said["eval-mid"].startswith("cached")
    assert said["sft"].startswith("done") and said["eval-rl"].startswith("done")


def test_status_and_logs(home: Path) -> None:
    done = called(home, "status", "small")
    assert "Succeeded" in done.stdout and "eval-rl" in done.stdout
    assert "base" in called(home, "logs", "small", "base").stdout
    missing = called(home, "status", "nothing")
    assert missing.returncode == 2 and "it has runs of small" in missing.stderr


def test_a_chat_model_has_example_questions_of_what_it_learned(home: Path) -> None:
    found = {}
    for path in home.rglob("artifacts/model/*/*/config.json"):
        values = json.loads(path.read_text())
        found[values["stage"]] = values.get("questions", [])
    assert found["base"] == [] and len(found["mid"]) == len(found["sft"]) == 6
    assert not set(found["mid"]) & set(found["sft"]) and found["rl"] == found["sft"]
    (card, *_) = home.rglob("artifacts/report/*/*/model-card.md")
    assert found["sft"][0][:12] in card.read_text().partition("## Questions to ask it\n")[2]


def test_one_stage_alone_names_what_it_misses(home: Path) -> None:
    before = sorted((home / "state" / "runs").glob("*/*"))
    done = called(home, "run", "small.yaml", "--set", "stages.base.matrixLr=0.5", "--only", "sft")
    assert done.returncode == 2
    assert "--only mid" in done.stderr
    assert sorted((home / "state" / "runs").glob("*/*")) == before, "no run is marked as failed, for none began"
    assert called(home, "status", "small").stdout.startswith("small: Succeeded\n")


def test_a_second_run_of_a_live_one_is_refused_and_cancel_ends_it(home: Path) -> None:
    live = started(home, "run", "small.yaml", "--set", "stages.base.steps=100000")
    try:
        wait_until(lambda: "training" in called(home, "status", "small").stdout, process=live, home=home)
        second = called(home, "run", "small.yaml")
        assert second.returncode == 2
        assert "already running" in second.stderr and "nanochat cancel small" in second.stderr
        assert called(home, "cancel", "small").returncode == 0
        assert live.wait(120) == 1
        assert "Go on with: nanochat run small.yaml --set stages.base.steps=100000" in output(home)
    finally:
        live.kill()


def test_gc_keeps_what_runs_refer_to(home: Path) -> None:
    done = nanochat(home, "gc", "--dry-run")
    assert done.returncode == 0 and done.stdout == "nothing to remove\n"
    assert nanochat(home, "gc").returncode == 0
    assert lines(nanochat(home, "run", "small.yaml").stdout)["release"].startswith("cached")


def test_gc_keeps_the_runs_of_champions(home: Path) -> None:
    """A run whose model was released may be served for years; a later run of the same files is not needed for it."""
    assert nanochat(home, "run", "small.yaml", "--set", "stages.release.enabled=false").returncode == 0
    every = {str(path.parent.relative_to(home)) for path in home.rglob("runs/*/*/status.json")}
    released = {str(path.parent.relative_to(home)) for path in home.rglob("runs/*/*/release.json")}
    assert released and released < every

    def gone(*options: str) -> set[str]:
        done = nanochat(home, "gc", "--dry-run", "--keep-runs", "0", *options)
        told = re.findall(r"(runs/\S+): [\d,]+ bytes, not among the latest 0", done.stdout)
        return {run for run in every if f"runs/{run.partition('runs/')[2]}" in told}

    assert gone() == every - released
    assert gone("--champions") == every - released, "it is champion"
    assert gone("--keep-releases", "--champions") == every - released, "it was released"


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["modle.depth=3"], "Did you mean 'model'?"),
        (["stages.base.totalBatchTokens=100"], "set it to 64 or 128"),
        (["stages.tokenizer.vocabSize=60000"], "vocabSize"),
        (["stages.mid.identity=absent.jsonl"], "cannot read"),
        (["stages.rl.tasks=[{task: world-sum}]"], "world-sums"),
        (["store=elsewhere"], "not declared"),
    ],
    ids=lambda value: str(value)[:30],
)
def test_mistakes_are_one_sentence(home: Path, overrides: list[str], message: str) -> None:
    done = nanochat(home, "run", "small.yaml", *(word for item in overrides for word in ("--set", item)))
    assert done.returncode in (1, 2)
    assert message in done.stdout + done.stderr
    assert "Traceback" not in done.stdout + done.stderr
