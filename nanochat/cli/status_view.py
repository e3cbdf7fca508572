"""A run as `nanochat status` shows it, once or again and again: all of its text is printable.

view = Picture.of(run)
console.print(table(view))
"""

from __future__ import annotations

import time
from dataclasses import dataclass, replace

from rich.table import Table
from rich.text import Text

from nanochat.cli.printable import printable
from nanochat.cli.run_handle import RunHandle, StageProgress
from nanochat.pipeline.planner import Phase
from nanochat.pipeline.run_status import StageRunStatus
from nanochat.tracking.quantities import duration


@dataclass(frozen=True, slots=True)
class Row:
    """One stage; `took` is how long, `said` why it is in its phase."""

    stage: str
    phase: str
    attempts: int
    took: str
    said: str
    progress: StageProgress | None

    @classmethod
    def of(cls, run: RunHandle, stage: StageRunStatus) -> Row:
        """A stage as it was read last."""
        told = run.progress(stage.stage) if stage.phase == Phase.RUNNING else None
        took = "" if stage.started is None else duration(max(0.0, (stage.ended or time.time()) - stage.started))
        said = stage.message or (stage.why if stage.phase in (Phase.RUNNING, Phase.SUCCEEDED) else "")
        progress = None if told is None else replace(told, text=printable(told.text))
        return cls(printable(stage.stage), printable(stage.phase), stage.attempts, took, printable(said), progress)

    @property
    def note(self) -> str:
        """Progress, or else what is to be said of the stage."""
        return (self.progress.text if self.progress else "") or self.said


@dataclass(frozen=True, slots=True)
class Picture:
    """All that is shown of a run at one moment."""

    headline: str
    rows: tuple[Row, ...]
    remarks: tuple[str, ...]

    @classmethod
    def of(cls, run: RunHandle) -> Picture:
        """The run as it was read last."""
        return cls(
            printable(run.headline),
            tuple(Row.of(run, stage) for stage in run.stages),
            tuple(printable(line) for line in run.remarks()),
        )


def table(view: Picture) -> Table:
    """The stages in lines; it has none before a controller has looked."""
    found = Table(box=None, pad_edge=False)
    for heading in ("STAGE", "PHASE", "ATTEMPTS", "TIME", "PROGRESS"):
        found.add_column(heading, overflow="fold")
    for row in view.rows:
        cells = row.stage, row.phase, str(row.attempts or ""), row.took, row.note
        found.add_row(*map(Text, cells))
    return found
