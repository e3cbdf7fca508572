"""`nanochat runs`: the runs of a store, or the pipelines of a cluster, the latest first."""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, replace
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from nanochat.cli import options
from nanochat.cli.cluster_run import ClusterRun
from nanochat.cli.local_run import find_runs
from nanochat.cli.options import Context, Namespace, Store, argument, option
from nanochat.cli.printable import printable
from nanochat.cli.run_handle import pipeline_name
from nanochat.pipeline.planner import Phase
from nanochat.pipeline.run_status import StageRunStatus
from nanochat.spec.bounds import integer
from nanochat.tracking.quantities import date, duration

DONE = (Phase.SUCCEEDED, Phase.CACHED)


@dataclass(frozen=True, slots=True)
class Row:
    """One run. Times are in seconds since 1970, None where no stage has begun or one goes on."""

    id: str
    name: str
    namespace: str
    phase: str
    started: float | None
    ended: float | None
    done: int  # stages that are made
    stages: int
    where: str  # who runs it

    @classmethod
    def of(
        cls, *, id: str, name: str, namespace: str, phase: str, stages: Iterable[StageRunStatus], live: bool, where: str
    ) -> Row:
        all_stages = list(stages)
        ended = [item.ended for item in all_stages if item.ended is not None]
        return cls(
            id=id,
            name=name,
            namespace=namespace,
            phase=phase,
            started=min((item.started for item in all_stages if item.started is not None), default=None),
            ended=None if live else max(ended, default=None),
            done=sum(item.phase in DONE for item in all_stages),
            stages=len(all_stages),
            where=where,
        )


def runs(
    name: Annotated[str | None, argument(options.name, help="Only the runs of this pipeline.")] = None,
    limit: Annotated[int, option(integer(1, 100_000), help="Most runs that are shown.")] = 20,
    json_: Annotated[bool, typer.Option("--json", help="Print all runs, as JSON.")] = False,
    store: Store = "default",
    namespace: Namespace = None,
    context: Context = None,
) -> None:
    """List runs, the latest first; status, logs and report take their ids."""
    cluster = namespace is not None or context is not None
    found = _of_cluster(namespace, context) if cluster else _of_store(store)
    rows = [row for row in found if name is None or row.name == pipeline_name(name)]
    if json_:
        print(json.dumps([asdict(row) for row in rows], indent=1))
        return
    if not rows:
        what = f"run of '{name}'" if name else "run"
        print(f"There is no {what} {'on the cluster' if cluster else 'in this store'} yet.")
        return
    console = Console(highlight=False)
    console.print(_table(rows[:limit]))
    if len(rows) > limit:
        print(f"{len(rows) - limit:,} more: --limit {len(rows)}")


def _of_store(store: str) -> Iterator[Row]:
    for found in find_runs(store):
        run = replace(found, by_id=True)
        yield Row.of(
            id=run.id,
            name=run.name,
            namespace=run.status.namespace,
            phase=run.phase,
            stages=run.stages,
            live=run.phase not in (*DONE, Phase.FAILED, Phase.CANCELLED, "Stopped"),
            where="here" if run.is_own else run.status.host or f"cluster, namespace {run.status.namespace}",
        )


def _of_cluster(namespace: str | None, context: str | None) -> list[Row]:
    rows = [
        Row.of(
            id=run.place,
            name=run.name,
            namespace=run.namespace,
            phase=run.phase,
            stages=run.stages,
            live=run.is_live,
            where=f"cluster, namespace {run.namespace}",
        )
        for run in ClusterRun.all(namespace=namespace, context=context)
    ]
    return sorted(rows, key=lambda row: row.started or float("inf"), reverse=True)


def _table(rows: Iterable[Row]) -> Table:
    table = Table(box=None, pad_edge=False)
    for heading in ("ID", "PIPELINE", "PHASE", "BEGAN", "TOOK", "STAGES", "WHERE"):
        table.add_column(heading, overflow="fold", no_wrap=heading == "ID")
    for row in rows:
        took = "" if row.started is None else duration(max(0.0, (row.ended or time.time()) - row.started))
        began = "" if row.started is None else date(row.started)
        cells = (row.id, row.name, row.phase, began, took, f"{row.done}/{row.stages}", row.where)
        table.add_row(*(Text(printable(cell, 100)) for cell in cells))
    return table
