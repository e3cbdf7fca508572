"""The `nanochat` command."""

from __future__ import annotations

import os
import sys
from io import TextIOWrapper
from pathlib import Path
from typing import Annotated, cast

import typer

from nanochat import __version__
from nanochat.cli import (
    bench,
    cluster,
    collect,
    compare,
    completion,
    evaluate,
    examples,
    exchange,
    listing,
    models,
    options,
    plan,
    pull,
    rollback,
    run,
    runs,
    ui,
)
from nanochat.cli.options import Context, Model, Namespace, Set, Stage, Store, argument, option
from nanochat.pipeline.orphan import in_folder
from nanochat.runtime.threads import settle
from nanochat.spec.bounds import SENTENCE, TEXT, address, integer, path, text
from nanochat.spec.environment import hints
from nanochat.spec.errors import NanochatError, UserError, is_own, missing_module

app = typer.Typer(
    help="A whole ChatGPT from one declared pipeline.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
identity_app = typer.Typer(help="Conversations that tell the model who it is.", no_args_is_help=True)
app.add_typer(identity_app, name="identity")
app.add_typer(bench.app, name="bench")

app.command("run")(run.run)
app.command("plan")(plan.plan)
app.command("retry")(runs.retry)
app.command("status")(runs.status)
app.command("runs")(listing.runs)
app.command("logs")(runs.logs)
app.command("cancel")(runs.cancel)
app.command("report")(runs.report)
app.command("submit")(cluster.submit)
app.command("suspend")(cluster.suspend)
app.command("resume")(cluster.resume)
app.command("rollback")(rollback.rollback)
app.command("gc")(collect.gc)
app.command("eval")(evaluate.evaluate)
app.command("compare")(compare.compare)
app.command("export")(exchange.export)
app.command("import")(exchange.import_)
app.command("pull")(pull.pull)
app.command("ui")(ui.ui)
app.command("completion")(completion.completion)


def _version(wanted: bool) -> None:
    if wanted:
        from nanochat.tracking.environment import commit

        print(f"nanochat {__version__}", *([f"(commit {found})"] if (found := commit()) else []))
        raise typer.Exit


@app.callback()
def nanochat(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and end.")
    ] = False,
) -> None:
    """A whole ChatGPT from one declared pipeline."""


@app.command()
def doctor(
    file: Annotated[Path | None, argument(path, help="Pipeline file to check for.")] = None,
    set_: Set = None,
    on_cluster: Annotated[bool, typer.Option("--cluster", help="Check a cluster instead; -n implies it.")] = False,
    namespace: Namespace = None,
    context: Context = None,
    probe: Annotated[
        bool, typer.Option(help="On a cluster, let a short-lived pod try images, store and MLflow.")
    ] = True,
    json_: Annotated[bool, typer.Option("--json", help="Print the findings as JSON.")] = False,
) -> None:
    """Check that this machine, or a cluster, has what a run needs, or say what to do."""
    if on_cluster or namespace or context:
        from nanochat.cli.cluster_doctor import cluster_doctor

        code = cluster_doctor(
            file, overrides=set_ or [], namespace=namespace, context=context, probe=probe, as_json=json_
        )
    else:
        from nanochat.cli.doctor import doctor as check

        code = check(file, overrides=set_ or [], as_json=json_)
    raise typer.Exit(code)


@app.command()
def chat(
    model: Model = None,
    prompt: Annotated[
        str | None,
        option(text(TEXT, lines=True), "--prompt", "-p", help="Ask one question, print the answer and end."),
    ] = None,
    url: Annotated[
        str | None, option(address, help="Chat with the server at this address instead of a local model.")
    ] = None,
    stage: Stage = None,
    temperature: Annotated[
        float, option(options.temperature, help="Sampling temperature; 0 always takes the likeliest token.")
    ] = 0.6,
    top_k: Annotated[
        int, option(options.top_k, help="Sample from this many of the likeliest tokens; 0 means all.")
    ] = 50,
    max_tokens: Annotated[int, option(options.max_tokens, help="Longest answer, in tokens.")] = 256,
    int8: options.Int8 = False,
    guesses: options.Guesses = 0,
    store: Store = "default",
) -> None:
    """Chat in the terminal with a model of a run, or with a server."""
    settle()
    from nanochat.cli.chat import chat as talk

    folder = None if url else models.find_model(model, stage=stage, store=store)
    talk(
        folder=folder, url=url, prompt=prompt, temperature=temperature, top_k=top_k, max_tokens=max_tokens, int8=int8,
        guesses=guesses,
    )  # fmt: skip


@app.command()
def serve(
    model: Model = None,
    stage: Stage = None,
    host: Annotated[str, option(options.name, help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, option(integer(0, 65535), help="Port to listen on.")] = 8000,
    slots: Annotated[int, option(integer(1, 1024), help="Requests that are answered at the same time.")] = 8,
    int8: options.Int8 = False,
    guesses: options.Guesses = 0,
    tls_cert: Annotated[Path | None, option(path, help="Certificate in PEM, for HTTPS; with --tls-key.")] = None,
    tls_key: Annotated[Path | None, option(path, help="Its key; files that are renewed are taken up.")] = None,
    store: Store = "default",
) -> None:
    """Serve the OpenAI chat API and a chat page."""
    settle()
    from nanochat.cli.serve import serve as start

    folder = models.find_model(model, stage=stage, store=store)
    start(
        folder=folder, host=host, port=port, slots=slots, int8=int8, guesses=guesses, tls_cert=tls_cert, tls_key=tls_key
    )  # fmt: skip


@identity_app.command("generate")
def identity_generate(
    file: Annotated[Path, argument(path, help="JSONL file to write.")],
    name: Annotated[str, option(options.name, help="The assistant's name.")] = "nanochat",
    maker: Annotated[str, option(options.name, help="Who made it.")] = "its makers",
    fact: Annotated[
        list[str] | None, option(text(SENTENCE), help="A sentence that the model should know about itself.")
    ] = None,
    count: Annotated[int, option(integer(1, 1_000_000), help="Number of conversations.")] = 1000,
    seed: Annotated[int, option(integer(0, 2**63 - 1), help="Random seed.")] = 42,
    url: Annotated[
        str | None, option(address, help="OpenAI-compatible endpoint that writes them; without it, templates do.")
    ] = None,
    model: Annotated[str | None, option(options.name, help="Name of the model at --url.")] = None,
) -> None:
    """Write identity conversations for stages.mid.identity."""
    from nanochat.cli.identity import generate

    generate(file, name=name, maker=maker, facts=fact or [], count=count, seed=seed, url=url, model=model)


examples.add_examples(app)
UsageError = cast(type[Exception], typer.BadParameter.__base__)  # Typer has a copy of click's, which it does not name


def main() -> None:
    """Entry point: an error that the user can mend is one sentence and exit code 2."""
    for stream in (sys.stdin, sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):
            stream.reconfigure(errors="replace")  # what a terminal cannot show, or a model should not be told
    for hint in hints(os.environ):
        print(f"hint: {hint}", file=sys.stderr)
    try:
        if not in_folder():
            raise UserError("the folder that you are in is gone: go to one that exists, then run this again")
        completion.prepare()
        sys.exit(app(standalone_mode=False, prog_name=completion.PROGRAM))
    except NanochatError as error:
        print(f"error: {error.message}", file=sys.stderr)
    except ImportError as error:
        if is_own(error.name):
            raise
        print(f"error: {missing_module(error)}", file=sys.stderr)
    except OSError as error:
        if error.filename is None:
            raise
        print(f"error: {str(error.filename)[:200]} cannot be used: {error.strerror}", file=sys.stderr)
    except UsageError as error:
        print(_sentence(error), file=sys.stderr)
    except typer.Abort:
        print("Aborted.", file=sys.stderr)
        sys.exit(1)
    sys.exit(2)


def _sentence(error: Exception) -> str:
    """A mistake in the command line, and where to read what is right; the help itself where nothing was said."""
    message: str = error.format_message()  # type: ignore[attr-defined]
    if "\n" in message:
        return message
    context: typer.Context | None = error.ctx  # type: ignore[attr-defined]
    return f"error: {message.rstrip('.')}. See: {context.command_path if context else 'nanochat'} --help"


if __name__ == "__main__":
    main()
