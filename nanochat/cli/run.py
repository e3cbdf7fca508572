"""`nanochat run`: a pipeline on this machine."""

from __future__ import annotations

import shlex
from typing import Annotated

import typer

from nanochat.cli import options
from nanochat.cli.display import Display
from nanochat.cli.options import File, Set, option
from nanochat.cli.plan import show
from nanochat.pipeline.local import LocalRunner
from nanochat.pipeline.planner import Phase
from nanochat.pipeline.profiles import resolve_profile
from nanochat.report.tracked import Tracker
from nanochat.spec.cost import Budget
from nanochat.spec.errors import UserError, require_torch
from nanochat.spec.load import load_pipeline
from nanochat.spec.pipeline import Pipeline

Only = Annotated[list[str] | None, option(options.name, "--only", help="Run just this stage (may be given again).")]
From = Annotated[str | None, option(options.name, "--from", help="Run this stage and what depends on it.")]


def run(
    file: File,
    only: Only = None,
    from_: From = None,
    set_: Set = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Only tell what would run here, and what it would take.")
    ] = False,
) -> None:
    """Run a pipeline on this machine, or go on where it left off."""
    if dry_run:
        if only or from_:
            raise UserError("--dry-run tells of all that would run: leave out --only and --from")
        show(load_pipeline(file, set_), here=True)
        return
    options = {"--only": only or [], "--from": [from_] if from_ else [], "--set": set_ or []}
    words = [word for option, values in options.items() for value in values for word in (option, value)]
    again = shlex.join(["nanochat", "run", str(file), *words])
    raise typer.Exit(execute(load_pipeline(file, set_), only=only or [], start=from_, again=again))


def execute(pipeline: Pipeline, *, only: list[str], start: str | None, again: str) -> int:
    """Run a pipeline with a display; returns the exit code."""
    require_torch()
    resolved = resolve_profile(pipeline.spec.store)
    runner = LocalRunner(pipeline, resolved)
    runner.select(only=only, start=start)
    runner.store.check()
    name = pipeline.metadata.name
    tracker = Tracker(
        runner.store,
        runner.outputs.artifacts,
        run=runner.paths.root,
        uri=resolved.tracking,
        moved=lambda: runner.moved,
    )
    with Display(runner) as display, tracker:
        status = runner.run(display.update)
    if runner.interrupts:
        display.say(f"Stopped; what was done is kept. Go on with: {again}")
        return 130
    if status.phase is Phase.CANCELLED:
        display.say(f"Cancelled; what was done is kept. Go on with: {again}")
        return 1
    if status.phase is Phase.SUSPENDED:
        display.say(f"Stopped: {status.message}. What was done is kept. Go on, where the file has not more, with:")
        display.say(f"  {again} {raised(pipeline.spec.budget)}")
        return 1
    if status.phase is not Phase.SUCCEEDED:
        failed = next((s.stage for s in status.stages if s.phase is Phase.FAILED), None)
        if failed is None:
            raise UserError(status.message)
        display.say(f"Failed: {status.message}")
        display.say(f"Its log: nanochat logs {name} {failed}")
        return 1
    display.closing(name)
    return 0


def raised(budget: Budget) -> str:
    """The options that double a budget."""
    limits = {"money": budget.money, "gpuHours": budget.gpu_hours}
    return " ".join(f"--set budget.{name}={2 * limit:g}" for name, limit in limits.items() if limit)
