"""`nanochat eval`: any model measured outside of its pipeline, and what it does with items that are there."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
from test_core import bundle

from nanochat.cli.main import main
from nanochat.evaluation import chat, core
from nanochat.evaluation.items import ITEMS, Item, ItemWriter, read_items
from nanochat.model.export import save_model
from nanochat.model.transformer import Transformer
from nanochat.runtime import native_code
from nanochat.tokenizer import Tokenizer

__all__ = ["bundle"]
TASKS = "world-sums,world-facts"


@pytest.fixture
def folder(tmp_path: Path, model: Transformer, tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A model in a folder, and a home of its own."""
    for name in ("NANOCHAT_ROOT", "NANOCHAT_ENDPOINT", "NANOCHAT_PROFILES", "MLFLOW_TRACKING_URI"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NANOCHAT_HOME", str(tmp_path / "home"))
    (tmp_path / "model").mkdir()
    save_model(tmp_path / "model", model, {"stage": "sft", "step": 7})
    tokenizer.save(tmp_path / "model")
    return tmp_path / "model"


def evaluate(monkeypatch: pytest.MonkeyPatch, *words: object) -> int:
    """Run the command in this process; the exit code."""
    monkeypatch.setattr(sys, "argv", ["nanochat", "eval", *map(str, words)])
    with pytest.raises(SystemExit) as ended:
        main()
    return int(ended.value.code or 0)


def by_place(out: Path) -> dict[tuple[str, int], Item]:
    return {(item.task, item.index): item for item in read_items(out / ITEMS)}


def test_tasks_and_rows_are_added_to_what_is_there(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    measured: list[tuple[str, int]] = []
    item = chat.Asked.item

    def noted(self: chat.Asked, *words: object, **named: object) -> Item:
        measured.append((self.task.name, self.place))
        return item(self, *words, **named)  # type: ignore[arg-type]

    monkeypatch.setattr(chat.Asked, "item", noted)
    common = (folder, "--max-tokens", 4, "--batch-size", 3, "--out", tmp_path / "out", "--tasks")
    assert evaluate(monkeypatch, *common, "world-sums", "--rows", 4) == 0
    (tmp_path / "out" / ITEMS).write_bytes((tmp_path / "out" / ITEMS).read_bytes()[:-9])  # as if it had been killed
    lost = measured.pop()
    assert evaluate(monkeypatch, *common, TASKS, "--rows", 6) == 0
    wanted = {(task, place) for task in TASKS.split(",") for place in range(6)}
    assert sorted(measured) == sorted(wanted) and lost in measured
    assert evaluate(monkeypatch, *common, TASKS, "--rows", 6) == 0
    assert len(measured) == len(wanted), "nothing is measured twice"
    assert "world-facts: " in capsys.readouterr().out

    monkeypatch.undo()
    monkeypatch.setenv("NANOCHAT_HOME", str(tmp_path / "home"))
    assert evaluate(monkeypatch, *common[:-2], tmp_path / "at-once", "--tasks", TASKS, "--rows", 6) == 0
    assert by_place(tmp_path / "at-once") == by_place(tmp_path / "out")
    figures = [json.loads((tmp_path / name / "results.json").read_text()) for name in ("out", "at-once")]
    assert figures[0] == figures[1] and figures[0]["metrics"]["world-sums"]["n"] == 6


def test_it_is_said_once_where_no_fast_code_answers(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(native_code, "cxx_compiler", lambda: None)
    common = (folder, "--tasks", TASKS, "--rows", 1, "--max-tokens", 4)
    assert evaluate(monkeypatch, *common) == 0
    told = capsys.readouterr()
    why = "warning: answers are computed by PyTorch, which is slower: there is no C++ compiler; install g++"
    assert told.err.count(why) == 1 and "PyTorch" not in told.out


def test_two_ways_to_answer_are_compared(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    common = (folder, "--tasks", TASKS, "--rows", 5, "--max-tokens", 4, "--out")
    assert evaluate(monkeypatch, *common, tmp_path / "greedy") == 0
    assert evaluate(monkeypatch, *common, tmp_path / "drawn", "--samples", 4, "--temperature", 0.8) == 0
    assert "world-sums-pass4: 0.0000 +- 0.0000 (n 5)" in capsys.readouterr().out
    monkeypatch.setattr(sys, "argv", ["nanochat", "compare", str(tmp_path / "greedy"), str(tmp_path / "drawn")])
    with pytest.raises(SystemExit):
        main()
    (line,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith("world-facts")]
    assert line.split() == ["world-facts", "0.0", "0.0", "+0.0", "±", "0.0", "0", "0", "5"]


def test_core_of_a_bundle(
    folder: Path, bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    mirror = tmp_path / "mirror"
    mirror.mkdir()
    (mirror / "eval_bundle").symlink_to(bundle)
    words = (folder, "--tasks", "core", "--rows", 5, "--set", f"sources.mirror={mirror}")
    assert evaluate(monkeypatch, *words) == 0
    said = capsys.readouterr()
    assert "core: " in said.out
    (out,) = (tmp_path / "home" / "evaluations").iterdir()
    assert str(out) in said.err and len(by_place(out)) == 9 * 5
    (mirror / "eval_bundle").unlink()  # its data is in the store now, and nothing is left to compute
    monkeypatch.setattr(core, "score", None)
    assert evaluate(monkeypatch, *words) == 0
    assert capsys.readouterr().out == said.out


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--tasks", "world-sumz"], "world-sums"),
        (["--tasks", "world-talk"], "task world-talk cannot be measured: its answers cannot be graded"),
        (["--tasks", ","], "--tasks names 0 tasks: name 1 to 64"),
        (["--tasks", "world-sums", "--samples", "4"], "several samples of temperature 0 are all the same"),
        (["--tasks", "world-sums", "--rows", "0"], "--rows"),
        (["--tasks", "world-sums", "--set", "sources.mirorr=x"], "mirror"),
    ],
)
def test_what_cannot_be_measured_is_said(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], words: list[str], said: str
) -> None:
    assert evaluate(monkeypatch, folder, *words) == 2
    assert said in capsys.readouterr().err


def test_a_folder_of_other_settings_is_refused(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    common = (folder, "--tasks", "world-sums", "--rows", 1, "--out", tmp_path / "out", "--max-tokens")
    assert evaluate(monkeypatch, *common, 4) == 0
    assert evaluate(monkeypatch, *common, 5) == 2
    assert "has items that were measured with another model or other settings" in capsys.readouterr().err
    with ItemWriter(tmp_path / "out" / ITEMS):
        assert evaluate(monkeypatch, *common, 4) == 2
    assert "is being written by another process" in capsys.readouterr().err
    assert evaluate(monkeypatch, folder, "--tasks", "world-sums", "--rows", 1, "--out", tmp_path / "out" / ITEMS) == 2
    assert f"{tmp_path / 'out' / ITEMS} cannot be used: Not a directory" in capsys.readouterr().err
