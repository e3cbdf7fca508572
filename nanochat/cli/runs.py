"""Commands on a run, wherever it is: status, logs, cancel, retry, report; gc; and the model that a name means."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from nanochat.cli import options
from nanochat.cli.find import find_handle
from nanochat.cli.local_run import find_run, find_runs
from nanochat.cli.logs import show
from nanochat.cli.options import Context, Name, Namespace, Run, Store, argument, option
from nanochat.model.artifact import WEIGHTS, ModelAddress, read_manifest
from nanochat.pipeline.planner import Phase
from nanochat.pipeline.profiles import resolve_profile
from nanochat.pipeline.ref import ArtifactRef
from nanochat.pipeline.run_status import StageRunStatus
from nanochat.spec.bounds import integer
from nanochat.spec.errors import UserError
from nanochat.spec.fields import nearest
from nanochat.storage.artifacts import Artifacts
from nanochat.storage.opening import open_store
from nanochat.storage.store import Profile
from nanochat.tracking.quantities import duration


def status(
    name: Run = None,
    store: Store = "default",
    json_: Annotated[bool, typer.Option("--json", help="Print everything that is known, as JSON.")] = False,
    namespace: Namespace = None,
    context: Context = None,
) -> None:
    """Show where a pipeline stands."""
    run = find_handle(name, store=store, namespace=namespace, context=context)
    if json_:
        print(json.dumps(run.document, indent=1))
        return
    console = Console(highlight=False)
    console.print(run.headline, markup=False, soft_wrap=True)
    table = Table(box=None, pad_edge=False)
    for heading in ("STAGE", "PHASE", "ATTEMPTS", "TIME", "PROGRESS"):
        table.add_column(heading, overflow="fold")
    for stage in run.stages:
        progress = run.progress(stage.stage) if stage.phase == Phase.RUNNING else ""
        table.add_row(stage.stage, stage.phase, str(stage.attempts or ""), _took(stage), progress or _note(stage))
    if table.rows:
        console.print(table)
    for line in run.remarks():
        console.print(line, markup=False, soft_wrap=True)


def _took(stage: StageRunStatus) -> str:
    return "" if stage.started is None else duration(max(0.0, (stage.ended or time.time()) - stage.started))


def _note(stage: StageRunStatus) -> str:
    return stage.message or (stage.why if stage.phase in (Phase.RUNNING, Phase.SUCCEEDED) else "")


def logs(
    name: Run = None,
    stage: Annotated[str | None, argument(options.name, help="Stage; by default the one that ran last.")] = None,
    attempt: Annotated[int | None, option(integer(1, 1_000_000), help="Attempt; by default the last.")] = None,
    rank: Annotated[
        int | None, option(integer(-1, 100_000), help="Rank; by default all; -1 is the launcher's own output.")
    ] = None,
    follow: Annotated[
        bool, typer.Option("--follow", "-f", help="Keep printing, across attempts, until the end.")
    ] = False,
    store: Store = "default",
    namespace: Namespace = None,
    context: Context = None,
) -> None:
    """Print a stage's logs, also those of attempts that have ended."""
    run = find_handle(name, store=store, namespace=namespace, context=context)
    show(run, stage=stage, attempt=attempt, rank=rank, follow=follow)


def cancel(name: Run = None, store: Store = "default", namespace: Namespace = None, context: Context = None) -> None:
    """Stop a running pipeline; everything it has made is kept."""
    run = find_handle(name, store=store, namespace=namespace, context=context)
    if not run.is_live:
        raise UserError(f"'{run.name}' is not running: it is {run.phase}")
    run.cancel()
    print(f"{run.name} saves its checkpoints and stops; go on with it: {run.command('retry')}")


def retry(name: Name, store: Store = "default", namespace: Namespace = None, context: Context = None) -> None:
    """Go on with a pipeline that failed or was stopped."""
    raise typer.Exit(find_handle(name, store=store, namespace=namespace, context=context).retry())


def report(
    name: Run = None,
    markdown: Annotated[bool, typer.Option("--markdown", help="Print the whole report, as Markdown.")] = False,
    store: Store = "default",
    namespace: Namespace = None,
    context: Context = None,
) -> None:
    """Write a run's report again and print its summary."""
    run = find_handle(name, store=store, namespace=namespace, context=context)
    folder = resolve_profile(store).home / "reports" / run.name
    run.report(folder, markdown=markdown)
    print(f"\nThe whole report: {folder / 'report.html'}")


def gc(
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would be removed.")] = False,
    keep_runs: Annotated[int, option(integer(0, 1_000_000), help="Number of runs of each pipeline to keep.")] = 3,
    champions: Annotated[bool, typer.Option("--champions", help="Also remove runs whose model was champion.")] = False,
    store: Store = "default",
) -> None:
    """Remove all but the latest runs, and all that no run refers to.

    A run whose model was ever champion is kept: the model may be served, and a rollback may return to it.
    """
    from nanochat.storage.garbage import collect

    runs = find_runs(store)
    if not runs:
        print("nothing to remove")
        return
    for run in runs:
        if run.is_live:
            raise UserError(f"'{run.name}' is running: wait for it or cancel it first")
    kept: dict[str, int] = {}
    gone = False
    keep: set[tuple[str, str]] = set()
    for run in runs:
        kept[run.name] = kept.get(run.name, 0) + 1
        if kept[run.name] > keep_runs and (champions or not run.was_champion):
            print(f"{run.paths.root}: not among the latest {keep_runs}")
            gone = True
            if not dry_run:
                run.store.delete(run.paths.root)
            continue
        for item in run.status.stages:
            keep |= {(ref.kind, key) for ref, key in item.keys.items()}
            if item.phase not in (Phase.SUCCEEDED, Phase.CACHED):
                keep |= {(item.stage, key) for key in item.keys.values()}  # its checkpoints
    removed = collect(runs[0].store, keep=keep, older_than_s=3600.0, dry_run=dry_run)
    if removed.removed:
        print(removed)
    elif not gone:
        print("nothing to remove")


def model_folder(model: str | None, *, stage: str | None, store: str) -> Path:
    """The local folder of a model: named by a folder or URI, or the last one that a pipeline's run made."""
    if model and Path(model, WEIGHTS).exists():
        return Path(model)
    if model and "://" in model:
        return _fetch_uri(model)
    run = find_run(model, store=store)
    artifacts = Artifacts(run.store, run.resolved.cache)
    wanted = [stage] if stage else ["rl", "sft", "mid", "base"]
    keys = run.status.keys()
    trained = [ref.name for ref in keys if ref.kind == "model"]
    if stage and stage not in trained:
        raise UserError(f"{run.name} has no stage '{stage}' that trains a model.{nearest(stage, trained)}")
    for name in wanted:
        key = keys.get(ArtifactRef.of("model", name))
        found = artifacts.find("model", key) if key else None
        if found is not None:
            return artifacts.fetch(found)
    raise UserError(
        f"{run.name} has made no model{f' of {stage}' if stage else ''} yet: see 'nanochat status {run.name}'"
    )


def _fetch_uri(uri: str) -> Path:
    """A model artifact by its address: file:// or s3://.../artifacts/model/<key>[/<launch>]."""
    address, resolved = ModelAddress.parse(uri), resolve_profile()
    own = resolved.profile.root == address.root
    profile = resolved.profile if own else Profile(root=address.root, endpoint=resolved.profile.endpoint)
    artifacts = Artifacts(open_store(profile), resolved.cache)
    return artifacts.fetch(read_manifest(artifacts.store, address))
