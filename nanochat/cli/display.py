"""The display of `nanochat run`: a line for every change, and bars for the stages that run."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping

from rich.console import Console
from rich.progress import BarColumn, Progress, ProgressColumn, Task, TaskID, TextColumn
from rich.table import Column
from rich.text import Text

from nanochat.cli.warned import Warned
from nanochat.pipeline.explain import NEW
from nanochat.pipeline.local import LocalRunner, RunProgress
from nanochat.pipeline.planner import Phase
from nanochat.tracking.progress import State
from nanochat.tracking.quantities import count, duration

LINE_SECONDS = 30.0  # between progress lines where there is no terminal
WIDE = 90  # columns; in a narrower terminal bars are shorter


def quantity(value: float) -> str:
    """A number in at most four digits: 12.3k, 4.56M."""
    for limit, unit in ((1e9, "G"), (1e6, "M"), (1e4, "k")):
        if abs(value) >= limit:
            return f"{value / (1e3 if unit == 'k' else limit):.3g}{unit}"
    return f"{value:.4g}"


def steps(step: int, total: int | None) -> str:
    """Steps done of all: 40/100."""
    return f"{quantity(step)}/{quantity(total)}" if total else quantity(step)


def details(pause: str, losses: Mapping[str, float], rates: Iterable[str], eta: float | None) -> str:
    """Losses, rates and the time left (seconds), behind what pauses the steps."""
    parts = [*filter(None, [pause]), *(f"{name} {value:.3f}" for name, value in losses.items()), *rates]
    if eta is not None:
        parts.append(f"{duration(eta)} left")
    return ", ".join(parts)


def details_of(state: State) -> str:
    """The `details` that a stage has reported."""
    rates = (f"{quantity(value)} {unit}" for unit, value in state.rates.items())
    return details(state.pause, state.losses, rates, state.eta)


class Display:
    """A context manager whose `update` takes the runner's views. Warnings are lines among the others meanwhile."""

    def __init__(self, runner: LocalRunner, *, console: Console | None = None) -> None:
        self._runner = runner
        self._console = console or Console(highlight=False)
        self._bars = Progress(
            TextColumn("{task.description:<9}", table_column=Column(no_wrap=True)),
            BarColumn(bar_width=24 if self._console.width >= WIDE else 10),
            TextColumn("{task.fields[count]}", table_column=Column(no_wrap=True)),
            _Details(),
            console=self._console,
            transient=True,
            disable=not self._console.is_terminal,
        )
        self._warnings = Warned(self.say)
        self._tasks: dict[str, TaskID] = {}
        self._phases: dict[str, tuple[Phase, str]] = {}
        self._lines: dict[str, float] = {}
        self._trouble = ""
        self._interrupted = False
        self._began = time.monotonic()

    def __enter__(self) -> Display:
        self._warnings.__enter__()
        self._bars.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bars.stop()
        self._warnings.__exit__()

    def say(self, text: str) -> None:
        """Print a line above the bars."""
        self._console.print(text.rstrip(), markup=False, soft_wrap=True)

    def update(self, view: RunProgress) -> None:
        """Show what changed."""
        if not self._phases:
            self.say(self._opening(view))
        self._notice(view)
        for item in view.status.stages:
            now, before = (item.phase, item.message), self._phases.get(item.stage)
            if now != before:
                self._phases[item.stage] = now
                self._change(item.stage, view, before)
            if item.phase in (Phase.RUNNING, Phase.STOPPING):
                self._show(item.stage, view)
            elif item.stage in self._tasks:
                self._bars.remove_task(self._tasks.pop(item.stage))

    def _notice(self, view: RunProgress) -> None:
        """Say what concerns the whole run: storage that cannot be reached, an interrupt."""
        if view.trouble and not self._trouble:
            self.say(f"{view.trouble} (running stages go on; the others wait until it answers)")
        if self._trouble and not view.trouble:
            self.say("storage answers again")
        if view.interrupts and not self._interrupted:
            self.say("Stages save checkpoints and stop; press Ctrl-C twice more to end them at once.")
        self._trouble, self._interrupted = view.trouble, view.interrupts > 0

    def _change(self, stage: str, view: RunProgress, before: tuple[Phase, str] | None) -> None:
        status = view.status.of(stage)
        why = view.explanations.get(stage, "")
        made = f"; {status.message}" if status.message else ""
        if status.phase is Phase.CACHED:
            self.say(f"{stage:<10} cached      {self._keys(stage)}{made}")
        elif status.phase is Phase.RUNNING and (before is None or before[0] is not Phase.RUNNING or status.message):
            reason = status.message or ("" if why.endswith(NEW) else why)
            self.say(f"{stage:<10} starts      {reason}")
        elif status.phase is Phase.SUCCEEDED:
            self.say(f"{stage:<10} done        {duration(view.took.get(stage, 0.0))}{made}")
        elif status.phase in (Phase.FAILED, Phase.RETRYING, Phase.BLOCKED, Phase.STOPPING):
            self.say(f"{stage:<10} {status.phase.lower():<11} {status.message}")

    def _opening(self, view: RunProgress) -> str:
        """The first line: how large the model is and how much will run."""
        horizon, stages = self._runner.graph.horizon.summary(), view.status.stages
        cached = sum(item.phase is Phase.CACHED for item in stages)
        reused = f", {cached} of them cached" if cached else ""
        return (
            f"{self._runner.pipeline.metadata.name}: {count(horizon['parameters'])} parameters, pretraining on "
            f"{count(horizon['tokens'])} tokens in {count(horizon['steps'])} steps; {len(stages)} stages{reused}"
        )

    def _keys(self, stage: str) -> str:
        outputs = self._runner.graph.node(stage).outputs
        key = outputs[0].key[:8]
        return (
            f"same settings and inputs as artifact {key}"
            if len(outputs) == 1
            else f"all {len(outputs)} artifacts are there"
        )

    def _show(self, stage: str, view: RunProgress) -> None:
        state = view.progress.get(stage)
        if state is None:
            return
        done = steps(state.step, state.total) if state.total else ""
        if self._bars.disable:
            if time.monotonic() - self._lines.get(stage, self._began) >= LINE_SECONDS:
                self._lines[stage] = time.monotonic()
                self.say(f"{stage:<10} {state.phase:<11} {done:<11} {details_of(state)}")
            return
        if stage not in self._tasks:
            self._tasks[stage] = self._bars.add_task(stage, total=None, count="", details="")
        self._bars.update(
            self._tasks[stage],
            completed=state.step,
            total=state.total,
            count=f"{state.phase} {done}",
            details=details_of(state),
        )

    def closing(self, name: str) -> None:
        """The last words of a run that succeeded."""
        self.say(f"Done in {duration(time.monotonic() - self._began)}.")
        report = self._runner.report_path()
        if report is not None:
            self.say(f"Report: {report}")
        if self._runner.outputs.has_model:
            self.say(f"Chat:   nanochat chat {name}")


class _Details(ProgressColumn):
    """Details cut to the terminal's width, so that each stage keeps to its line."""

    def render(self, task: Task) -> Text:
        return Text(task.fields["details"], no_wrap=True, overflow="ellipsis")
