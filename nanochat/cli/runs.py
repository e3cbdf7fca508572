"""Commands that look at runs: status, logs, cancel, report, gc; and the model that a name means."""

from __future__ import annotations

import json
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from nanochat.cli import cluster
from nanochat.cli.cluster import Context, Namespace
from nanochat.cli.display import details, quantity
from nanochat.cli.kube import ClusterPipeline
from nanochat.cli.logs import Launch, Stage, show
from nanochat.model.artifact import WEIGHTS, ModelAddress, read_manifest
from nanochat.pipeline.lock import RunLock, lock_path
from nanochat.pipeline.profiles import ResolvedProfile, resolve_profile
from nanochat.pipeline.runs import RunPaths
from nanochat.spec.errors import UserError
from nanochat.spec.fields import nearest
from nanochat.storage.artifacts import Artifacts
from nanochat.storage.store import Profile, Store, open_store
from nanochat.tracking.progress import read_progress
from nanochat.tracking.quantities import duration

Run = Annotated[str | None, typer.Argument(help="Name of the pipeline; by default the one run last.")]
StoreName = Annotated[str, typer.Option("--store", help="Store profile.")]
LIVE = ("Running", "Stopping", "Waiting")


@dataclass(frozen=True, slots=True)
class FoundRun:
    """One run in a store."""

    store: Store
    resolved: ResolvedProfile
    paths: RunPaths
    status: dict[str, Any]

    @property
    def name(self) -> str:
        return self.status["name"]

    @property
    def is_live(self) -> bool:
        """Whether a runner on this machine works on it."""
        return RunLock.is_held(lock_path(self.resolved, self.status["namespace"], self.name))

    @property
    def was_champion(self) -> bool:
        """Whether its model was ever made champion."""
        path = self.paths.release
        release = self.store.read_json(path) if self.store.exists(path) else {}
        return bool(release.get("alias", {}).get("moved"))


def find_runs(store_name: str) -> list[FoundRun]:
    """All runs of a store, the latest first."""
    resolved = resolve_profile(store_name)
    store = open_store(resolved.profile)
    entries = [entry for entry in store.list("runs") if entry.path.endswith("/status.json")]
    entries.sort(key=lambda entry: entry.modified, reverse=True)
    return [
        FoundRun(
            store=store,
            resolved=resolved,
            paths=RunPaths(e.path.removesuffix("/status.json")),
            status=store.read_json(e.path),
        )
        for e in entries
    ]


def find_run(name: str | None, *, store: str = "default") -> FoundRun:
    """The latest run of a pipeline (named by its name or its file), or of all; UserError where there is none."""
    runs = find_runs(store)
    wanted = Path(name).stem if name and name.endswith((".yaml", ".yml")) else name
    for run in runs:
        if wanted is None or run.name == wanted:
            return run
    known = sorted({run.name for run in runs})
    there = f"there are {', '.join(known)}" if known else "none was run yet: begin with 'nanochat run FILE'"
    raise UserError(f"no run of '{wanted}' in this store; {there}" if wanted else f"no run in this store; {there}")


def find_anywhere(
    name: str | None, store: str, namespace: str | None, context: str | None
) -> FoundRun | ClusterPipeline:
    """A run of this machine, or else the pipeline of that name on the cluster; the options choose the cluster."""
    found = cluster.found_on(name, namespace, context)
    if found is not None:
        return found
    try:
        return find_run(name, store=store)
    except UserError as error:
        return cluster.instead(name, error)


def status(
    name: Run = None,
    store: StoreName = "default",
    json_: Annotated[bool, typer.Option("--json", help="All that is known, as JSON.")] = False,
    namespace: Namespace = None,
    context: Context = None,
) -> None:
    """Where a pipeline stands."""
    run = find_anywhere(name, store, namespace, context)
    if isinstance(run, ClusterPipeline):
        return cluster.status(run, as_json=json_)
    if json_:
        print(json.dumps(run.status, indent=1))
        return
    phase = run.status["phase"]
    live = run.is_live
    if phase in LIVE and not live:
        phase = f"Stopped (its runner is gone; go on with 'nanochat retry {run.name}')"
    console = Console(highlight=False)
    console.print(f"{run.name}: {phase} {run.status['message']}".rstrip(), markup=False)
    table = Table(box=None, pad_edge=False)
    for heading in ("STAGE", "PHASE", "ATTEMPTS", "TIME", "PROGRESS"):
        table.add_column(heading, overflow="fold")
    for item in run.status["stages"]:
        state = read_progress(run.store, run.paths.progress(item["stage"])) if item["phase"] == "Running" else None
        note = item["message"]
        if state is not None:
            total = f"/{quantity(state.total)}" if state.total else ""
            note = f"{state.phase} {quantity(state.step)}{total}, {details(state)}"
        elif item["phase"] in ("Running", "Succeeded"):
            note = item["why"]
        table.add_row(item["stage"], item["phase"], str(item["attempts"] or ""), _took(item), note)
    console.print(table)
    for item in run.status["stages"]:
        for warning in item.get("warnings", ()):
            console.print(f"warning: {item['stage']}: {warning}", markup=False, soft_wrap=True)


def _took(item: dict[str, Any]) -> str:
    if item["started"] is None:
        return ""
    return duration((item["ended"] or time.time()) - item["started"])


def logs(
    name: Run = None,
    stage: Annotated[str | None, typer.Argument(help="Stage; by default the one that ran last.")] = None,
    attempt: Annotated[int | None, typer.Option(help="Attempt; by default the last.")] = None,
    rank: Annotated[int | None, typer.Option(help="Rank; by default all; -1 is the launch's own output.")] = None,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on, across attempts, until the end.")] = False,
    store: StoreName = "default",
    namespace: Namespace = None,
    context: Context = None,
) -> None:
    """The logs of a pipeline's stages, those of ended attempts included."""
    run = find_anywhere(name, store, namespace, context)
    source = cluster.Logs(run) if isinstance(run, ClusterPipeline) else LocalLogs(run, store)
    show(source, stage=stage, attempt=attempt, rank=rank, follow=follow)


@dataclass(slots=True)
class LocalLogs:
    """The logs of a run of this machine."""

    run: FoundRun
    store_name: str

    @property
    def name(self) -> str:
        return self.run.name

    def look(self) -> tuple[bool, list[Stage]]:
        live = self.run.is_live
        status = self.run.store.read_json(self.run.paths.status)
        self.run = replace(self.run, status=status)
        return live, [
            Stage(
                name=item["stage"],
                phase=item["phase"],
                message=item["message"],
                attempts=item["attempts"],
                started=item["started"],
            )
            for item in status["stages"]
        ]

    def launches(self, stage: str) -> list[Launch]:
        files: dict[str, dict[str, int]] = {}
        began: dict[str, float] = {}
        for entry in self.run.store.list(self._folder(stage)):
            launch, file, _ = entry.path.split("/")[-3:]
            sizes = files.setdefault(launch, {})
            sizes[file] = sizes.get(file, 0) + entry.size
            began[launch] = min(began.get(launch, entry.modified), entry.modified)
        found = [Launch(name, files[name]) for name in files]
        return sorted(found, key=lambda launch: (launch.attempt, began[launch.name]))

    def read(self, stage: str, launch: str, file: str, offset: int) -> bytes:
        at = 0
        for piece in self.run.store.list(f"{self._folder(stage)}/{launch}/{file}"):
            if at + piece.size > offset:
                return self.run.store.read(piece.path)[offset - at :]
            at += piece.size
        return b""

    def _folder(self, stage: str) -> str:
        """Where the logs of a stage are: those of an earlier run, if that one made its output."""
        own = self.run.paths.logs(stage)
        if self.run.store.children(own):
            return own
        others = (run.paths.logs(stage) for run in find_runs(self.store_name) if run.name == self.run.name)
        cached = any(item["stage"] == stage and item["phase"] == "Cached" for item in self.run.status["stages"])
        return next((folder for folder in others if cached and self.run.store.children(folder)), own)


def cancel(
    name: Run = None, store: StoreName = "default", namespace: Namespace = None, context: Context = None
) -> None:
    """Stop a running pipeline; what it made stays."""
    run = find_anywhere(name, store, namespace, context)
    if isinstance(run, ClusterPipeline):
        return cluster.cancel(run)
    if not run.is_live:
        raise UserError(f"'{run.name}' is not running")
    run.store.write_json(run.paths.control, {"cancel": True})
    print(f"{run.name} saves its checkpoints and stops")


def report(
    name: Run = None,
    markdown: Annotated[bool, typer.Option("--markdown", help="Print all of it, as Markdown.")] = False,
    store: StoreName = "default",
    namespace: Namespace = None,
    context: Context = None,
) -> None:
    """Write a run's report anew, print its summary and say where it is."""
    from nanochat.cli.summary import summarize
    from nanochat.report.build import write_report
    from nanochat.report.record import gather

    run = find_anywhere(name, store, namespace, context)
    if isinstance(run, ClusterPipeline):
        return cluster.report(run, markdown=markdown, home=resolve_profile(store).home)
    record = gather(run.store, Artifacts(run.store, run.resolved.cache), run=run.paths.root)
    folder = Path(run.resolved.home) / "reports" / run.name
    write_report(record, folder)
    if markdown:
        print((folder / "report.md").read_text(encoding="utf-8"))
    else:
        summarize(record, Console(highlight=False))
    print(f"\nThe whole report: {folder / 'report.html'}")


def gc(
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would be removed.")] = False,
    keep_runs: Annotated[int, typer.Option(help="Runs of each pipeline that are kept.")] = 3,
    champions: Annotated[bool, typer.Option("--champions", help="Also remove runs whose model was champion.")] = False,
    store: StoreName = "default",
) -> None:
    """Remove runs beyond the latest ones, and the artifacts, checkpoints and leftovers that no run refers to.

    Runs whose model was champion once stay: it may be served, and rollback may point to it.
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
            print(f"{run.paths.root}: beyond the latest {keep_runs}")
            gone = True
            if not dry_run:
                run.store.delete(run.paths.root)
            continue
        for item in run.status["stages"]:
            keep |= {(ref.split("/")[0], key) for ref, key in item["keys"].items()}
            if item["phase"] not in ("Succeeded", "Cached"):
                keep |= {(item["stage"], key) for key in item["keys"].values()}  # its checkpoints
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
    keys = {ref: key for item in run.status["stages"] for ref, key in item["keys"].items()}
    trained = [ref.removeprefix("model/") for ref in keys if ref.startswith("model/")]
    if stage and stage not in trained:
        raise UserError(f"{run.name} trains no model in a stage '{stage}'.{nearest(stage, trained)}")
    for name in wanted:
        key = keys.get(f"model/{name}")
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
