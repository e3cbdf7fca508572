"""`nanochat rollback`: the former champion of a model is champion again, and served."""

from __future__ import annotations

from typing import Annotated

from nanochat.cli import options
from nanochat.cli.find import find_handle
from nanochat.cli.options import Context, Namespace, Run, Store, option
from nanochat.cli.run_handle import RunHandle
from nanochat.spec.errors import UserError
from nanochat.spec.stages import ReleaseStage
from nanochat.tracking.registry import ALIAS, FORMER, PIPELINE_TAG, Version


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
    before, now = run.registry().rollback(model, to or "", check=lambda version: _check(run, model, version))
    if before == now.version:
        print(f"Version {now.version} of {model} was already {ALIAS}; a server that gave it up tries it again.")
    else:
        instead = f" instead of version {before}, which is now the {FORMER} one" if before else ""
        print(f"Version {now.version} of {model} is now {ALIAS}{instead}.")
    print(f"Servers that follow the registry serve it from now on: {now.source}")


def _check(run: RunHandle, model: str, version: Version) -> None:
    """UserError where the weights of a version are gone: whoever follows the registry could not serve it."""
    missing = run.missing_weights(version.source, version.fingerprint)
    if missing:
        raise UserError(
            f"version {version.version} of {model} cannot be champion: {missing}; choose another with --to, or make it "
            f"anew by a retry of the pipeline that released it{_releaser(run, version)}"
        )


def _releaser(run: RunHandle, version: Version) -> str:
    """The command that tries that pipeline again, where it is this one."""
    namespace, _, name = version.tags.get(PIPELINE_TAG, "").partition(".")
    return f": {run.command('retry')}" if name == run.name and namespace else ""
