"""Scores side by side, questions counted together, and samples as people read them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from io import StringIO

import pytest
from fake_run import RUN, FakeRun
from rich.console import Console

from nanochat.cli.summary import summarize
from nanochat.report.document import Answer, Exchange, Line
from nanochat.report.record import Part, RunRecord, evaluation_from, gather
from nanochat.report.samples import exchanges, lines
from nanochat.report.scores import stage_table, total

SUM = [
    {"type": "python", "text": "21+46"},
    {"type": "python_output", "text": "67"},
    {"type": "text", "text": "It is 67."},
]
NAME = {"prompt": "Who are you?", "completion": "I am Nano."}


def chat(right: int, *samples: Mapping[str, object]) -> dict[str, object]:
    """The content of a results.json of two tasks with 40 questions each."""
    metrics = {
        "world-sums": {"value": right / 40, "n": 40, "stderr": 0.03},
        "world-facts": {"value": 1.0, "n": 40, "stderr": 0.04},
    }
    return {"metrics": metrics, "tasks": {name: {} for name in metrics}, "samples": list(samples)}


@pytest.fixture
def record(run: FakeRun) -> RunRecord:
    """A run whose two chat models were measured on the same questions."""
    found = gather(run.store, run.artifacts, run=RUN)
    question = {"prompt": "What is 21 plus 46?", "completion": SUM}
    evaluations = {
        "mid": evaluation_from(chat(30, NAME, {"prompt": "What is 21 plus 46?", "completion": "67."})),
        "rl": evaluation_from(chat(38, NAME, question)),
    }
    return replace(found, evaluations=evaluations, models={"rl": "file:///model"})


def test_questions_are_counted_together(record: RunRecord) -> None:
    table = stage_table(record)
    assert table is not None
    assert table.rows[-1] == ("All questions", "87.5 ± 2.5 %\n70 of 80", "97.5 ± 2.5 %\n78 of 80")


def test_base_models_and_single_tasks_have_no_total() -> None:
    assert total(evaluation_from({"metrics": {"val_bpb": {"value": 0.4, "n": 9}}, "tasks": {"copa": {}}})) is None
    one = chat(30)
    assert total(evaluation_from({**one, "tasks": {"world-sums": {}}})) is None


def test_a_call_of_the_tool_is_a_line_of_its_own() -> None:
    parts = (Part("text", " "), Part("python", "1+1"), Part("python_output", "2"), Part("text", "Two."))
    assert lines(parts) == (Line("tool: 1+1 = 2", tool=True), Line("Two."))
    assert lines((Part("python", "1+"),)) == (Line("tool: 1+", tool=True),)
    assert lines((Part("text", ""),)) == (Line(""),)


def test_stages_stand_side_by_side(record: RunRecord) -> None:
    assert exchanges(record) == [
        Exchange("Who are you?", (Answer("MID, RL", (Line("I am Nano."),)),)),
        Exchange(
            "What is 21 plus 46?",
            (
                Answer("MID", (Line("67."),)),
                Answer("RL", (Line("tool: 21+46 = 67", tool=True), Line("It is 67."))),
            ),
        ),
    ]


@pytest.mark.parametrize("width", [60, 80])
def test_the_summary_fits_the_terminal(record: RunRecord, width: int) -> None:
    out = StringIO()
    summarize(record, Console(file=out, width=width, highlight=False))
    text = out.getvalue()
    assert max(map(len, text.splitlines())) <= width
    assert "All questions 87.5 % 70/80 97.5 % 78/80" in " ".join(text.split())
    assert "> What is 21 plus 46?\ntool: 21+46 = 67\nIt is 67.\n" in text
    assert " ".join(text.split()).endswith("The RL model answers 78 of 80 held-out questions right (97.5 %).")


def test_where_there_is_no_room_counts_stand_below(record: RunRecord) -> None:
    out = StringIO()
    summarize(record, Console(file=out, width=40, highlight=False))
    assert max(map(len, out.getvalue().splitlines())) <= 40
    assert "All questions 87.5 % 97.5 % 70/80 78/80" in " ".join(out.getvalue().split())
