"""Commands on a run, wherever it is: status, logs, cancel, retry, report; gc; and the model that a name means."""

from __future__ import annotations

import hashlib
import json
import webbrowser
from typing import Annotated

import typer
from rich.console import Console

from nanochat.cli import options
from nanochat.cli.find import find_handle
from nanochat.cli.logs import show
from nanochat.cli.options import Context, Name, Namespace, Run, Store, argument, option
from nanochat.cli.status_view import Picture, table
from nanochat.cli.watch import Watch
from nanochat.pipeline.profiles import resolve_profile
from nanochat.spec.bounds import integer
from nanochat.spec.errors import UserError


def status(
    name: Run = None,
    store: Store = "default",
    json_: Annotated[bool, typer.Option("--json", help="Print everything that is known, as JSON.")] = False,
    watch: Annotated[
        bool, typer.Option("--watch", "-w", help="Draw it again until the run ends; without a terminal, print changes.")
    ] = False,
    namespace: Namespace = None,
    context: Context = None,
) -> None:
    """Show where a pipeline stands."""
    run = find_handle(name, store=store, namespace=namespace, context=context)
    console = Console(highlight=False)
    if watch:
        raise typer.Exit(Watch(run, console).show())
    if json_:
        print(json.dumps(run.document, indent=1))
        return
    view = Picture.of(run)
    console.print(view.headline, markup=False, soft_wrap=True)
    if view.rows:
        console.print(table(view))
    for line in view.remarks:
        console.print(line, markup=False, soft_wrap=True)


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
    open_: Annotated[bool, typer.Option("--open", help="Open the report in the browser.")] = False,
    store: Store = "default",
    namespace: Namespace = None,
    context: Context = None,
) -> None:
    """Write a run's report again and print its summary."""
    run = find_handle(name, store=store, namespace=namespace, context=context)
    place = hashlib.sha256(run.place.encode()).hexdigest()[:8]  # runs of one name in two stores have a report each
    folder = resolve_profile(store).home / "reports" / f"{run.name}-{place}"
    run.report(folder, markdown=markdown)
    page = folder / "report.html"
    print(f"\nThe whole report: {page}")
    if open_ and not webbrowser.open(page.absolute().as_uri()):
        raise UserError(f"no browser was found to open the report: open {page} in one yourself")
