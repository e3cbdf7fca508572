"""`nanochat rollback`: the former champion of a model is champion again, and served."""

from __future__ import annotations

from typing import Annotated

from nanochat.cli import options
from nanochat.cli.find import find_handle
from nanochat.cli.options import Context, Namespace, Run, Store, option
from nanochat.spec.stages import ReleaseStage
from nanochat.tracking.registry import ALIAS, FORMER


def rollback(
    name: Run = None,
    to: Annotated[str | None, option(options.name, "--to", help="Version; by default the former champion.")] = None,
    store: Store = "default",
    namespace: Namespace = None,
    context: Context = None,
) -> None:
    """Make the former champion of a pipeline's model champion again."""
    run = find_handle(name, store=store, namespace=namespace, context=context)
    model = run.spec.get("stages", {}).get("release", {}).get("model") or ReleaseStage().model
    before, now = run.registry().rollback(model, to or "")
    if before == now.version:
        print(f"Version {now.version} of {model} was already {ALIAS}; a server that gave it up tries it again.")
    else:
        instead = f" instead of version {before}, which is now the {FORMER} one" if before else ""
        print(f"Version {now.version} of {model} is now {ALIAS}{instead}.")
    print(f"Servers that follow the registry serve it from now on: {now.source}")
