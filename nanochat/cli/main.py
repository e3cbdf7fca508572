"""The `nanochat` command."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from nanochat.cli import cluster, rollback, run, runs
from nanochat.cli.options import Set, Store
from nanochat.spec.errors import NanochatError

app = typer.Typer(
    help="A whole ChatGPT from one declared pipeline.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
identity_app = typer.Typer(help="Conversations that tell the model who it is.", no_args_is_help=True)
app.add_typer(identity_app, name="identity")

app.command("run", help="Run a pipeline on this machine, or go on with it.")(run.run)
app.command("retry", help="Run a pipeline again that failed or was stopped.")(runs.retry)
app.command("status", help="Show where a pipeline stands.")(runs.status)
app.command("logs", help="Print the log of a stage.")(runs.logs)
app.command("cancel", help="Stop a running pipeline; what it made stays.")(runs.cancel)
app.command("report", help="Print a run's results and write its report.")(runs.report)
app.command("submit", help="Run a pipeline on a cluster.")(cluster.submit)
app.command("suspend", help="Let a pipeline on a cluster save its checkpoints and wait.")(cluster.suspend)
app.command("resume", help="Let a suspended pipeline on a cluster go on.")(cluster.resume)
app.command("rollback", help="Make the model version that was champion before champion again.")(rollback.rollback)
app.command("gc", help="Remove what no run refers to.")(runs.gc)


@app.command()
def doctor(
    file: Annotated[Path | None, typer.Argument(help="Pipeline file to check for.")] = None,
    set_: Set = None,
) -> None:
    """Check what a run needs and say what to do."""
    from nanochat.cli.doctor import doctor as check

    raise typer.Exit(check(file, overrides=set_ or []))


@app.command()
def chat(
    model: Annotated[str | None, typer.Argument(help="Pipeline's name, or folder or URI of a model artifact.")] = None,
    prompt: Annotated[
        str | None, typer.Option("--prompt", "-p", help="One question; print the answer and end.")
    ] = None,
    url: Annotated[str | None, typer.Option("--url", help="Address of a server instead of a local model.")] = None,
    stage: Annotated[str | None, typer.Option(help="Stage whose model is used; by default the last.")] = None,
    temperature: Annotated[float, typer.Option(help="0 always takes the likeliest token.")] = 0.6,
    top_k: Annotated[int, typer.Option(help="Tokens that are chosen among; 0 is all.")] = 50,
    max_tokens: Annotated[int, typer.Option(help="Longest answer.")] = 256,
    store: Store = "default",
) -> None:
    """Chat in the terminal with a model of a run, or with a server."""
    from nanochat.cli.chat import chat as talk

    folder = None if url else runs.model_folder(model, stage=stage, store=store)
    talk(folder=folder, url=url, prompt=prompt, temperature=temperature, top_k=top_k or None, max_tokens=max_tokens)


@app.command()
def serve(
    model: Annotated[str | None, typer.Argument(help="Pipeline's name, or folder or URI of a model artifact.")] = None,
    stage: Annotated[str | None, typer.Option(help="Stage whose model is used; by default the last.")] = None,
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port to listen on.")] = 8000,
    slots: Annotated[int, typer.Option(help="Requests that are answered at a time.")] = 8,
    store: Store = "default",
) -> None:
    """Serve the OpenAI chat API and a chat page."""
    from nanochat.cli.serve import serve as start

    start(folder=runs.model_folder(model, stage=stage, store=store), host=host, port=port, slots=slots)


@identity_app.command("generate")
def identity_generate(
    path: Annotated[Path, typer.Argument(help="JSONL file to write.")],
    name: Annotated[str, typer.Option(help="The assistant's name.")] = "nanochat",
    maker: Annotated[str, typer.Option(help="Who made it.")] = "its makers",
    fact: Annotated[list[str] | None, typer.Option("--fact", help="A sentence it should know of itself.")] = None,
    count: Annotated[int, typer.Option(help="Conversations.")] = 1000,
    seed: Annotated[int, typer.Option(help="Seed.")] = 42,
    url: Annotated[
        str | None, typer.Option(help="OpenAI-compatible endpoint that writes them; by default templates do.")
    ] = None,
    model: Annotated[str | None, typer.Option(help="The endpoint's model.")] = None,
) -> None:
    """Write identity conversations for stages.mid.identity."""
    from nanochat.cli.identity import generate

    generate(path, name=name, maker=maker, facts=fact or [], count=count, seed=seed, url=url, model=model)


def main() -> None:
    """Entry point: errors that people can mend are one sentence and exit code 2."""
    try:
        app()
    except NanochatError as error:
        print(f"error: {error.message}", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main()
