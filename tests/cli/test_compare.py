"""`nanochat compare`: which evaluations its words mean, and what it prints."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import pytest
from small_pipeline import called

from nanochat.evaluation.items import ITEMS, Item, ItemWriter
from nanochat.pipeline.ref import ArtifactRef
from nanochat.pipeline.run_status import RunStatus, StageRunStatus
from nanochat.storage import Artifacts, Profile, open_store
from nanochat.tracking.journal import Journal

KEYS = {"base": "0" * 32, "mid": "1" * 32, "sft": "2" * 32, "rl": "3" * 32}


def write(folder: Path, right: int) -> None:
    with ItemWriter(folder / ITEMS) as writer:
        for task in ("sums", "[red]counts\x1b[2J"):
            writer.add(
                Item.of(task, i, prompt=f"{i}?\x1b[2J", answers=["\x1b[2Jyes"], verdicts=[i < right]) for i in range(4)
            )


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """A home with a run whose mid and sft are evaluated, base by a version without items, and rl not yet."""
    store = open_store(Profile(root=str(tmp_path / "state")))
    artifacts = Artifacts(store, tmp_path / "cache")
    for right, stage in enumerate(("base", "mid", "sft")):
        with artifacts.writer("evaluation", KEYS[stage], "01-a") as writer:
            (writer.folder / "results.json").write_text("{}")
            if stage != "base":
                write(writer.folder, right)
            writer.commit(recipe={}, inputs={})
    stages = tuple(
        StageRunStatus(f"eval-{made}", "Succeeded", keys={ArtifactRef.of("evaluation", made): key})
        for made, key in KEYS.items()
    )
    store.write_json("runs/default.demo/uid/status.json", asdict(RunStatus("demo", "default", stages=stages)))
    store.write_json("runs/default.demo/uid/pipeline.json", {"metadata": {"name": "demo"}, "spec": {}})
    (tmp_path / "own").mkdir()
    write(tmp_path / "own", 4)
    return tmp_path


def test_scores_stand_side_by_side_with_paired_errors(home: Path) -> None:
    uri = f"file://{home}/state/artifacts/evaluation/{KEYS['sft']}"
    for second in ("demo/sft", uri, f"{uri}/01-a"):
        done = called(home, "compare", "demo/mid", second)
        rows = {line.split()[0]: line.split() for line in done.stdout.splitlines() if line.strip()}
        assert rows["sums"] == ["sums", "25.0", "50.0", "+25.0", "±", "25.0", "0", "1", "4"]
        assert (
            "chat, 2 tasks above guessing  0.2500  0.5000  +0.2500 ± 0.1768" in done.stdout
            and "[red]counts\\x1b[2J" in done.stdout
        )
    assert "Left out" not in done.stdout and "verdict" not in done.stdout


def test_items_of_another_verdict_are_shown_without_their_commands(home: Path) -> None:
    done = called(home, "compare", "own", "demo/sft", "--items", "3")
    assert done.stdout.count("expected") == 3 and "sums 2: " in done.stdout
    assert "\x1b" not in done.stdout and "A 100 %: '\\x1b[2Jyes'" in done.stdout


@pytest.mark.parametrize(
    ("word", "said"),
    [
        ("demo", "demo/rl is not measured yet"),
        ("demo/base", "demo/base was measured by a version that kept no items: measure it again with 'nanochat eval'"),
        ("demo/pre", "demo has no evaluation of pre: it has rl, sft, mid, base"),
        ("nobody", "no run of 'nobody' in this store"),
        ("s3://bucket/elsewhere", "is not an evaluation's address: it ends in artifacts/evaluation/<key>"),
        ("file:///x/artifacts/evaluation/..", "is not an evaluation's address"),
    ],
)
def test_what_cannot_be_compared_is_said(home: Path, word: str, said: str) -> None:
    done = called(home, "compare", "demo/sft", word)
    assert done.returncode == 2 and said in done.stderr


def told_of(home: Path, uid: str, depth: int, *, data: str, loss: float | None) -> None:
    """A run of the pipeline `other` without evaluations, with a journal of base where it has a loss."""
    store = open_store(Profile(root=str(home / "state")))
    keys = {ArtifactRef.of("text", f"shard_{n}"): str(n) * 32 for n in range(3)}
    keys[ArtifactRef.of("task-data", "gsm8k")] = data * 32
    made = StageRunStatus("base", "Succeeded" if loss else "Cached")
    stages = (StageRunStatus("dataset", "Succeeded", keys=keys), made)
    run = f"runs/default.other/{uid}"
    spec = {"model": {"depth": depth}, "stages": {"base": {"steps": 10}}, "note\x1b[2J": depth}
    store.write_json(f"{run}/pipeline.json", {"metadata": {"name": "other"}, "spec": spec})
    if loss is not None:
        journal = Journal(store, run, stage="base", launch="01-a")
        for step in range(1, 101):
            journal.metrics(step, {"train/loss": loss + 5 / step})
        journal.close()
    store.write_json(f"{run}/status.json", asdict(RunStatus("other", "default", stages=stages)))


def test_two_runs_differ_in_settings_data_and_curves(home: Path) -> None:
    told_of(home, "aaaa1111", 4, data="a", loss=2.0)
    told_of(home, "bbbb2222", 6, data="b", loss=1.0)
    for first, second in (("aaaa", "bbbb"), ("other/aaaa1111", "bbbb2222/base")):
        done = called(home, "compare", first, second, COLUMNS="80")
        assert done.returncode == 0, done.stderr
        lines = done.stdout.splitlines()
        assert lines[:7] == [
            "Settings: 2 differ",
            "               A  B",
            "  model.depth  4  6",
            "  note [2J     4  6",
            "Data: it differs",
            "  task-data: 0 the same, 1 of other content (gsm8k)",
            "Loss of base: A ends at 2.0500, B at 1.0500",
        ]
        frame = [line for line in lines if "|" in line]
        assert len(frame) == 10 and {"A", "B"} <= set("".join(frame)) and frame[-1].endswith("B")
        assert all(len(line) <= 80 for line in lines[:-1])
        assert lines[-1].startswith("Scores: none to compare, for there is no evaluation of other/any stage and other/")


def test_a_run_is_the_same_as_itself_and_has_the_curve_of_who_made_its_model(home: Path) -> None:
    told_of(home, "aaaa1111", 4, data="a", loss=2.0)
    told_of(home, "bbbb2222", 4, data="a", loss=None)
    done = called(home, "compare", "aaaa1111", "bbbb2222")
    assert done.stdout.startswith("Settings: the same\nData: the same\nLoss of base: A ends at 2.0500, B at 2.0500\n")
