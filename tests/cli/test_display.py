"""The display of `nanochat run`: an opening, a line for each change, warnings among them, and bars that fit."""

from __future__ import annotations

import logging
from dataclasses import replace
from io import StringIO
from types import SimpleNamespace
from typing import Any

import pytest
from rich.console import Console

from nanochat.cli.display import Display, details_of, quantity
from nanochat.pipeline.explain import NEW
from nanochat.pipeline.planner import Phase
from nanochat.tracking.progress import State

HORIZON = {"parameters": 2_000_000, "tokens": 614_400, "steps": 150}


class FakeRunner:
    """A runner, as far as a display asks it."""

    pipeline = SimpleNamespace(metadata=SimpleNamespace(name="demo"))
    graph = SimpleNamespace(
        horizon=SimpleNamespace(summary=lambda: HORIZON),
        node=lambda stage: SimpleNamespace(outputs=[SimpleNamespace(key="0123456789ab")]),
    )


def view(
    phases: dict[str, Phase], *, progress: dict[str, State] | None = None, why: str = "", message: str = ""
) -> Any:
    """A runner's view with each stage in a phase."""
    stages = [SimpleNamespace(stage=name, phase=phase, message=message) for name, phase in phases.items()]
    status = SimpleNamespace(stages=stages, of=lambda name: next(item for item in stages if item.stage == name))
    explanations = dict.fromkeys(phases, why)
    return SimpleNamespace(
        status=status, progress=progress or {}, explanations=explanations, took={}, trouble="", interrupts=0
    )


def shown(*views: Any, terminal: bool = False, width: int = 100) -> str:
    """The output for views in turn."""
    out = StringIO()
    console = Console(file=out, force_terminal=terminal, width=width, highlight=False, color_system=None)
    runner: Any = FakeRunner()
    with Display(runner, console=console) as display:
        for item in views:
            display.update(item)
            display._bars.refresh()
    return out.getvalue()


def test_the_first_line_says_what_will_run() -> None:
    lines = shown(view({"dataset": Phase.CACHED, "base": Phase.WAITING})).splitlines()
    assert lines == [
        "demo: 2.0 million parameters, pretraining on 614,400 tokens in 150 steps; 2 stages, 1 of them cached",
        "dataset    cached      same settings and inputs as artifact 01234567",
    ]


def test_a_reason_is_given_where_there_is_something_to_say() -> None:
    assert shown(view({"base": Phase.RUNNING}, why=NEW)).endswith("\nbase       starts\n")
    again = [view({"base": Phase.RUNNING}, message=message) for message in ("", "out of memory: again with 2 rows", "")]
    assert shown(*again).endswith("\nbase       starts\nbase       starts      out of memory: again with 2 rows\n")
    changed = "changed: steps 3 -> 4"
    assert shown(view({"base": Phase.RUNNING}, why=changed)).endswith("starts      changed: steps 3 -> 4\n")


def test_no_line_ends_in_blanks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("nanochat.cli.display.LINE_SECONDS", 0.0)
    text = shown(view({"base": Phase.RUNNING}, progress={"base": State(stage="base", launch="a", phase="loading")}))
    assert "base       loading\n" in text
    assert all(line == line.rstrip() for line in text.splitlines())


@pytest.mark.parametrize("width", [60, 100])
def test_bars_keep_to_one_line(width: int) -> None:
    state = State(
        stage="base", launch="a", phase="training", step=75, total=150, losses={"loss": 1.5}, eta=3700.0,
        rates={"tokens/s": 12345.0},
    )  # fmt: skip
    assert details_of(state) == "loss 1.500, 12.3k tokens/s, 1 h 2 min left"
    paused = replace(state, rates={}, eta=None, pause="measuring CORE, task 3 of 22")
    assert details_of(paused) == "measuring CORE, task 3 of 22, loss 1.500"
    text = shown(view({"base": Phase.RUNNING}, progress={"base": state}), terminal=True, width=width)
    assert "training 75/150" in text
    frame = text.replace("\x1b[2K", "").replace("\r", "\n").splitlines()
    assert max(len(line) for line in frame if "training 75" in line) <= width


def test_warnings_are_lines_of_their_own() -> None:
    out = StringIO()
    runner: Any = FakeRunner()
    with Display(runner, console=Console(file=out)):
        logging.getLogger("nanochat.test").warning("it is late\nSELECT *")
        logging.getLogger("nanochat.test").info("nobody needs this")
    assert out.getvalue() == "warning: it is late\n"


def test_quantities_are_short() -> None:
    assert [quantity(value) for value in (7, 600, 12345, 4.56e6, 7e9)] == ["7", "600", "12.3k", "4.56M", "7G"]
