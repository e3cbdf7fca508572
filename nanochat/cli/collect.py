"""`nanochat gc`: room in a store, by the removal of what nobody needs."""

from __future__ import annotations

from typing import Annotated

import typer

from nanochat.cli.options import Store, option
from nanochat.pipeline.collection import collect_garbage
from nanochat.pipeline.profiles import resolve_profile
from nanochat.spec.bounds import integer
from nanochat.storage.artifacts import Artifacts
from nanochat.storage.opening import open_store


def gc(
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would be removed.")] = False,
    keep_runs: Annotated[int, option(integer(0, 1_000_000), help="Number of runs of each pipeline to keep.")] = 3,
    champions: Annotated[
        bool, typer.Option("--champions", help="Also remove models that were champion and have no alias any more.")
    ] = False,
    unfinished: Annotated[
        bool, typer.Option("--unfinished", help="Also remove runs that were stopped and that nobody works on.")
    ] = False,
    imported: Annotated[
        bool, typer.Option("--imported", help="Also remove imported models that no run refers to.")
    ] = False,
    keep_releases: Annotated[
        bool, typer.Option("--keep-releases", help="Keep all that was ever released, without asking the registry.")
    ] = False,
    store: Store = "default",
) -> None:
    """Remove all but the latest runs, and all that no run refers to.

    Runs that are under way, suspended or waiting stay, wherever they run. So do models that the registry's aliases name
    and, unless --champions, those that were champion once, and imported ones, unless --imported.
    """
    resolved = resolve_profile(store)
    collected = collect_garbage(
        Artifacts(open_store(resolved.profile), resolved.cache),
        tracking=resolved.tracking,
        keep_runs=keep_runs,
        champions=champions,
        unfinished=unfinished,
        imported=imported,
        ask_registry=not keep_releases,
        dry_run=dry_run,
    )
    print(collected if collected.removed else "nothing to remove")
