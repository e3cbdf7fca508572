"""`nanochat status --watch`: a run's status, drawn again until the run ends.

    raise typer.Exit(Watch(run, Console(highlight=False)).show())

In a terminal it takes the whole screen and leaves the last picture behind; elsewhere each change is a line. Whatever
cannot be read for the moment is said, and tried again.
"""

from __future__ import annotations

import re
import signal
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from datetime import datetime

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.text import Text

from nanochat.cli.curve import sparkline
from nanochat.cli.display import LINE_SECONDS
from nanochat.cli.printable import printable
from nanochat.cli.run_handle import Happened, RunHandle, Unanswered
from nanochat.cli.status_view import Picture, table
from nanochat.pipeline.planner import Phase
from nanochat.runtime.stopping import on_stop
from nanochat.spec.errors import NanochatError, StorageError
from nanochat.tracking.quantities import number

SECONDS = 2.0  # between two looks at a run
EVENT_SECONDS = 10.0  # between two looks at its events, where no stage has changed
EVENTS = 5  # that are shown
MOST_POINTS = 20_000  # of a curve
INTERRUPTED = 130


class Watch:
    """Shows one run until it ends."""

    def __init__(self, run: RunHandle, console: Console, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._run, self._console, self._clock = run, console, clock
        self._view = Picture("", (), ())
        self._live = True
        self._trouble = ""
        self._curves: dict[str, list[tuple[int, float]]] = {}  # stage -> losses by step
        self._stage = ""  # whose curve is shown
        self._events: tuple[Happened, ...] = ()
        self._events_at = float("-inf")
        self._said: dict[str, str] = {}  # what was printed last of the run, each stage, each remark
        self._lines: dict[str, float] = {}  # when a stage's progress was printed last
        self._wake = threading.Event()

    def show(self) -> int:
        """Watch to the end; returns the exit code: 0 where the run succeeded, 130 after Ctrl-C."""
        restore = on_stop(self._interrupt)
        try:
            if self._console.is_terminal:
                self._draw()
            else:
                self._print()
        except KeyboardInterrupt:
            return INTERRUPTED
        finally:
            restore()
        return 0 if self._run.phase == Phase.SUCCEEDED else 1

    @staticmethod
    def _interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    def _draw(self) -> None:
        former = signal.signal(signal.SIGWINCH, lambda *_: self._wake.set())  # another size is drawn at once
        try:
            with Live(console=self._console, screen=True, auto_refresh=False) as live:
                while True:
                    self._look()
                    live.update(self._picture(), refresh=True)
                    if not self._live:
                        break
                    end = self._clock() + SECONDS
                    while (left := end - self._clock()) > 0 and self._wake.wait(left):
                        self._wake.clear()
                        live.update(self._picture(), refresh=True)
        finally:
            signal.signal(signal.SIGWINCH, former)
            if self._view.headline:
                self._console.print(self._picture())

    def _print(self) -> None:
        while True:
            self._look()
            self._print_changes()
            if not self._live:
                return
            self._wake.wait(SECONDS)

    def _look(self) -> None:
        """Read the run; what cannot be read now stays as it was."""
        try:
            self._live, _ = self._run.look()
            view = Picture.of(self._run)
            changed = _states(view) != _states(self._view)
            self._view, self._trouble = view, ""
            self._follow_losses()
            if changed or self._clock() - self._events_at >= EVENT_SECONDS:
                self._events, self._events_at = tuple(self._run.events(EVENTS)), self._clock()
        except (Unanswered, StorageError) as error:
            self._trouble = printable(error.message)

    def _follow_losses(self) -> None:
        for row in self._view.rows:
            if row.progress is None or row.progress.loss is None:
                continue
            self._stage = row.stage
            if row.stage not in self._curves:
                self._curves[row.stage] = []
                with suppress(NanochatError):  # the curve begins here
                    self._curves[row.stage] = list(self._run.losses(row.stage))[-MOST_POINTS:]
            curve, step = self._curves[row.stage], row.progress.step
            while curve and curve[-1][0] >= step:  # the newest, or it went back to a checkpoint
                curve.pop()
            curve.append((step, row.progress.loss))
            del curve[:-MOST_POINTS]

    def _picture(self) -> RenderableType:
        parts: list[RenderableType] = [Text(self._view.headline, style="bold"), table(self._view)]
        if curve := self._curve():
            parts.append(Text(f"\n{curve}", no_wrap=True, overflow="crop"))
        if self._events:
            parts.append(Text("\n".join(["", *(_line(event) for event in self._events)])))
        parts += [Text(line) for line in self._view.remarks]
        if self._trouble:
            parts.append(Text(f"{self._trouble}; trying again", style="yellow"))
        return Group(*parts)

    def _curve(self) -> str:
        """The loss of the stage that trains, or trained last, from its first step to its newest."""
        points = self._curves.get(self._stage, [])
        if len(points) < 2:
            return ""
        first, last = (f"{number(points[at][1])}" for at in (0, -1))
        begin, end = f"{self._stage} loss {first} ", f" {last}"
        width = self._console.width - len(begin) - len(end) - 1
        return f"{begin}{sparkline(points, width=max(1, width), encoding=self._console.encoding)}{end}"

    def _print_changes(self) -> None:
        """A line for the run, and for each stage, of which something else is to be said than before."""
        self._change("run", self._view.headline)
        for row in self._view.rows:
            if self._change(row.stage, f"{row.stage} {row.phase}" + (f": {row.said}" if row.said else "")):
                self._lines[row.stage] = self._clock()
            elif row.progress and self._clock() - self._lines[row.stage] >= LINE_SECONDS:
                self._lines[row.stage] = self._clock()
                self._say(f"{row.stage} {row.phase}: {row.note}")
        for line in self._view.remarks:
            if (what := re.sub(r"\d", "", line)) not in self._said:  # hours and costs grow all the time
                self._change(what, line)
        self._change("trouble", f"{self._trouble}; trying again" if self._trouble else "")

    def _change(self, what: str, words: str) -> bool:
        """Print words where they differ from those before; whether they do."""
        if self._said.get(what, "") == words:
            return False
        self._said[what] = words
        if words:
            self._say(words)
        return True

    def _say(self, line: str) -> None:
        print(f"{datetime.now():%H:%M:%S} {line}", flush=True)


def _states(view: Picture) -> list[tuple[str, str, int]]:
    return [(row.stage, row.phase, row.attempts) for row in view.rows]


def _line(event: Happened) -> str:
    return f"{datetime.fromtimestamp(event.time):%H:%M:%S} {printable(event.text)}"
