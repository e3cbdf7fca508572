"""The `nanochat` command."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from nanochat.cli import cluster, rollback, run, runs
from nanochat.cli.options import Set, Store
from nanochat.pipeline.orphan import in_folder
from nanochat.spec.errors import NanochatError, UserError

app = typer.Typer(
    help="A whole ChatGPT from one declared pipeline.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
identity_app = typer.Typer(help="Conversations that tell the model who it is.", no_args_is_help=True)
app.add_typer(identity_app, name="identity")

app.command("run")(run.run)
app.command("retry")(runs.retry)
app.command("status")(runs.status)
app.command("logs")(runs.logs)
app.command("cancel")(runs.cancel)
app.command("report")(runs.report)
app.command("submit")(cluster.submit)
app.command("suspend")(cluster.suspend)
app.command("resume")(cluster.resume)
app.command("rollback")(rollback.rollback)
app.command("gc")(runs.gc)


@app.command()
def doctor(
    file: Annotated[Path | None, typer.Argument(help="Pipeline file to check for.")] = None,
    set_: Set = None,
) -> None:
    """Check that this machine has what a run needs, or say what to do."""
    from nanochat.cli.doctor import doctor as check

    raise typer.Exit(check(file, overrides=set_ or []))


@app.command()
def chat(
    model: Annotated[str | None, typer.Argument(help="Pipeline's name, or folder or URI of a model artifact.")] = None,
    prompt: Annotated[
        str | None, typer.Option("--prompt", "-p", help="Ask one question, print the answer and end.")
    ] = None,
    url: Annotated[
        str | None, typer.Option("--url", help="Chat with the server at this address instead of a local model.")
    ] = None,
    stage: Annotated[str | None, typer.Option(help="Stage whose model is used; by default the last.")] = None,
    temperature: Annotated[float, typer.Option(help="Sampling temperature; 0 always takes the likeliest token.")] = 0.6,
    top_k: Annotated[int, typer.Option(help="Sample from this many of the likeliest tokens; 0 means all.")] = 50,
    max_tokens: Annotated[int, typer.Option(help="Longest answer, in tokens.")] = 256,
    store: Store = "default",
) -> None:
    """Chat in the terminal with a model of a run, or with a server."""
    from nanochat.cli.chat import chat as talk

    folder = None if url else runs.model_folder(model, stage=stage, store=store)
    talk(folder=folder, url=url, prompt=prompt, temperature=temperature, top_k=top_k, max_tokens=max_tokens)


@app.command()
def serve(
    model: Annotated[str | None, typer.Argument(help="Pipeline's name, or folder or URI of a model artifact.")] = None,
    stage: Annotated[str | None, typer.Option(help="Stage whose model is used; by default the last.")] = None,
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port to listen on.")] = 8000,
    slots: Annotated[int, typer.Option(help="Requests that are answered at the same time.")] = 8,
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
    fact: Annotated[
        list[str] | None, typer.Option("--fact", help="A sentence that the model should know about itself.")
    ] = None,
    count: Annotated[int, typer.Option(help="Number of conversations.")] = 1000,
    seed: Annotated[int, typer.Option(help="Random seed.")] = 42,
    url: Annotated[
        str | None, typer.Option(help="OpenAI-compatible endpoint that writes them; without it, templates do.")
    ] = None,
    model: Annotated[str | None, typer.Option(help="Name of the model at --url.")] = None,
) -> None:
    """Write identity conversations for stages.mid.identity."""
    from nanochat.cli.identity import generate

    generate(path, name=name, maker=maker, facts=fact or [], count=count, seed=seed, url=url, model=model)


def main() -> None:
    """Entry point: an error that the user can mend is one sentence and exit code 2."""
    try:
        if not in_folder():
            raise UserError("the folder that you are in is gone: go to one that exists, then run this again")
        app()
    except NanochatError as error:
        print(f"error: {error.message}", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main()
