"""`nanochat status --watch`, in a terminal and without one."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from small_pipeline import variables_of
from terminal import Terminal

from nanochat.cli import watch
from nanochat.cli.run_handle import Happened, StageProgress, Unanswered
from nanochat.cli.watch import Watch
from nanochat.pipeline.leases import Lease
from nanochat.pipeline.run_status import StageRunStatus
from nanochat.pipeline.runs import RunPaths
from nanochat.spec.errors import UserError
from nanochat.storage.opening import open_store
from nanochat.storage.store import Profile

PATHS = RunPaths.of(namespace="default", name="demo", uid="0123")
EVIL = "\x1b]0;owned\x07\x1b[2J"


@dataclass
class Story:
    """A run that is another one at each look: its moments in turn, of which the last is its end."""

    moments: list[dict[str, Any]]
    told: int = -1
    name: str = "demo"
    lines: list[str] = field(default_factory=list)

    def look(self) -> tuple[bool, Any]:
        self.told += 1
        if error := self.now.get("error"):
            raise error
        return self.told < len(self.moments) - 1, self.stages

    @property
    def now(self) -> dict[str, Any]:
        return self.moments[min(self.told, len(self.moments) - 1)]

    @property
    def phase(self) -> str:
        return self.now["phase"]

    @property
    def headline(self) -> str:
        return f"demo: {self.phase}"

    @property
    def stages(self) -> list[StageRunStatus]:
        return [StageRunStatus(stage, **found) for stage, found in self.now["stages"].items()]

    def progress(self, stage: str) -> StageProgress | None:
        return self.now.get("progress")

    def losses(self, stage: str) -> list[tuple[int, float]]:
        return [(1, 10.0), (2, 8.0), (3, 6.0)]

    def events(self, most: int) -> list[Happened]:
        return [Happened(0.0, f"{EVIL}base, attempt 1: started")][:most]

    def remarks(self) -> Iterator[str]:
        yield f"{self.told}.5 GPU hours"


def running(step: int) -> dict[str, Any]:
    progress = StageProgress(f"training {step}/100, loss 4.0, 9 tokens/s, 1 min left", step, 4.0)
    return {"phase": "Running", "stages": {"base": {"phase": "Running", "attempts": 1}}, "progress": progress}


END = {"phase": "Succeeded", "stages": {"base": {"phase": "Succeeded", "attempts": 1, "why": "new"}}}


@pytest.fixture(autouse=True)
def no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watch, "SECONDS", 0.001)


def test_without_a_terminal_each_change_is_a_line(capsys: pytest.CaptureFixture[str]) -> None:
    now = iter(range(0, 1000, 8))  # seconds, at each look at the clock
    away = {"error": Unanswered(f"the server{EVIL} is away"), **running(9)}
    story: Any = Story([running(5), running(6), away, running(7), running(8), running(9), END])
    code = Watch(story, Console(force_terminal=False), clock=lambda: float(next(now))).show()
    said = [line[9:] for line in capsys.readouterr().out.splitlines()]
    assert code == 0 and all(line.isprintable() for line in said)
    progress = [line for line in said if "loss" in line]
    assert 1 <= len(progress) < 5 and all(line.startswith("base Running: training ") for line in progress)
    assert [line for line in said if line not in progress] == [
        "demo: Running",
        "base Running",
        "0.5 GPU hours",
        "the server ]0;owned  [2J is away; trying again",
        "demo: Succeeded",
        "base Succeeded: new",
    ]


def test_a_run_that_fails_or_is_deleted_ends_it(capsys: pytest.CaptureFixture[str]) -> None:
    failed = {"phase": "Failed", "stages": {"base": {"phase": "Failed", "message": "it diverged"}}}
    story: Any = Story([running(5), failed])
    assert Watch(story, Console(force_terminal=False)).show() == 1
    assert "base Failed: it diverged" in capsys.readouterr().out
    gone: Any = Story([running(5), running(6) | {"error": UserError("there is no pipeline team/demo")}, END])
    with pytest.raises(UserError, match="there is no pipeline"):
        Watch(gone, Console(force_terminal=False)).show()


def test_a_terminal_is_left_with_the_last_picture(capsys: pytest.CaptureFixture[str]) -> None:
    story: Any = Story([running(5), running(50), END])
    assert Watch(story, Console(force_terminal=True, width=70, legacy_windows=False)).show() == 0
    first, _, last = capsys.readouterr().out.partition("\x1b[?1049l")
    assert "training 5/100" in first and "1 min left" in first
    assert "demo: Succeeded" in last and "owned" in last and "\x1b]" not in first + last and "\x07" not in first + last
    (curve,) = [line for line in last.splitlines() if "base loss" in line]
    assert curve.startswith("base loss 10.00 █") and curve.rstrip().endswith("▁ 4.000") and len(curve) < 70


def test_resizing_and_control_c_leave_the_terminal_as_it_was(tmp_path: Path) -> None:
    store = open_store(Profile(str(tmp_path / "state")))
    stage = {"stage": "base", "phase": "Running", "message": EVIL, "attempts": 1, "started": 100.0}
    status = {"name": "demo", "namespace": "team", "phase": "Running", "message": EVIL, "stages": [stage]}
    store.write_json(PATHS.status, status)
    store.write_json(PATHS.pipeline, {"metadata": {"name": "demo"}, "spec": {}})
    with Lease(store, runs=[PATHS.root]):  # as a controller holds it
        terminal = look_resize_and_interrupt(tmp_path)
    assert terminal.process.returncode == 130
    assert terminal.seen.rindex("\x1b[?1049l") > terminal.seen.rindex("\x1b[?1049h")
    assert "\x1b[?25h" in terminal.seen and "Traceback" not in terminal.seen  # the cursor is shown again


def look_resize_and_interrupt(folder: Path) -> Terminal:
    variables = variables_of(folder, {"KUBECONFIG": str(folder / "absent")})
    terminal = Terminal(["status", "demo", "--watch"], variables)
    try:
        terminal.until(lambda seen: ("STAGE" in seen and "base" in seen) or "error" in seen)
        assert "\x1b[?1049h" in terminal.seen and "\x1b]0" not in terminal.seen and "\x07" not in terminal.seen
        before = len(terminal.seen)
        terminal.resize(30, 60)
        terminal.until(lambda seen: "STAGE" in seen[before:])
        os.write(terminal.main, b"\x03")
        terminal.until(lambda seen: terminal.process.poll() is not None and seen.endswith("\n"))
    finally:
        terminal.end()
    return terminal
