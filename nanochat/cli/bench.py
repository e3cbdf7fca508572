"""`nanochat bench`: how fast this machine is, this project on it, and a peer in the same run."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from copy import deepcopy
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer

from nanochat.bench.checkout import find_checkout
from nanochat.bench.checkpoint import checkpoint_tables, measure_checkpoint
from nanochat.bench.clients import Clients, clients_tables, kept_busy, measure_clients
from nanochat.bench.conversations import Load
from nanochat.bench.data import data_tables, measure_data
from nanochat.bench.infer import infer_tables, measure_infer
from nanochat.bench.measurement import Measurement
from nanochat.bench.recipe import PRESET, Ablation, recipe_tables
from nanochat.bench.serve import Memory, measure_serve, serve_tables, serving
from nanochat.bench.shapes import Shape
from nanochat.bench.startup import measure_startup, startup_tables
from nanochat.bench.tables import Table, print_tables
from nanochat.bench.train import STAGES, measure_train, train_tables
from nanochat.cli.models import find_model
from nanochat.cli.options import Model, Set, Stage, Store, argument, option
from nanochat.pipeline.profiles import resolve_profile
from nanochat.runtime.threads import cores
from nanochat.spec.bounds import address, integer, one_of, path, real
from nanochat.spec.errors import UserError, require_torch
from nanochat.spec.load import apply_override, check_pipeline

app = typer.Typer(
    help="Measure this machine, this project on it, and a peer in the same run; for each the median of all rounds.",
    no_args_is_help=True,
)

File = Annotated[
    Path | None, argument(path, help="Pipeline file whose shapes are measured; by default depth 6 and 16 rows of 512.")
]
Rounds = Annotated[int, option(integer(5, 1000), help="Rounds in which all that is measured takes turns.")]
Threads = Annotated[
    int | None, option(integer(1, 1024), help="Threads of every process; by default one for each core.")
]
Peer = Annotated[
    Path | None,
    option(path, "--peer", help="Checkout of karpathy/nanochat, or of another commit, to measure in turns."),
]
TRANSFORMERS = Path("transformers")
Answering = Annotated[
    Path | None,
    option(path, "--peer", help="Checkout of another commit, or `transformers`: the installed package, in turns."),
]
Json = Annotated[bool, typer.Option("--json", help="Print everything that was measured, as JSON.")]
Markdown = Annotated[bool, typer.Option("--markdown", help="Print the tables as Markdown.")]


@app.command()
def train(
    file: File = None,
    stage: Annotated[str, option(one_of(STAGES), help="Stage whose steps are measured.")] = "base",
    steps: Annotated[int, option(integer(1, 1000), help="Steps that a round times together.")] = 1,
    rounds: Rounds = 5,
    threads: Threads = None,
    processes: Annotated[
        int, option(integer(1, 64), help="Processes that train together; figures are those of the first.")
    ] = 1,
    peer: Peer = None,
    set_: Set = None,
    store: Store = "default",
    json_: Json = False,
    markdown: Markdown = False,
) -> None:
    """Time training steps against the matrix products that this machine can do, and against a peer's."""
    asked = read_options(file, set_, rounds=rounds, threads=threads, peer=peer, store=store, processes=processes)
    show(measure_train(asked, stage=stage, steps=steps), train_tables, json_=json_, markdown=markdown)


@app.command()
def data(
    file: File = None,
    rounds: Rounds = 5,
    threads: Threads = None,
    peer: Peer = None,
    set_: Set = None,
    store: Store = "default",
    json_: Json = False,
    markdown: Markdown = False,
) -> None:
    """Count the tokens that loaders and tokenizer give, against those that training takes and a peer's loader gives."""
    asked = read_options(file, set_, rounds=rounds, threads=threads, peer=peer, store=store)
    show(measure_data(asked), data_tables, json_=json_, markdown=markdown)


@app.command()
def checkpoint(
    file: File = None,
    rounds: Rounds = 5,
    threads: Threads = None,
    peer: Peer = None,
    set_: Set = None,
    store: Store = "default",
    json_: Json = False,
    markdown: Markdown = False,
) -> None:
    """Time the saves of a state to the store while training goes on, and how long the loop waits."""
    asked = read_options(file, set_, rounds=rounds, threads=threads, peer=peer, store=store)
    show(measure_checkpoint(asked), checkpoint_tables, json_=json_, markdown=markdown)


@app.command()
def startup(
    file: File = None,
    rounds: Rounds = 5,
    threads: Threads = None,
    peer: Peer = None,
    set_: Set = None,
    store: Store = "default",
    json_: Json = False,
    markdown: Markdown = False,
) -> None:
    """Time a process from its start to its first step, by parts, and a run that finds everything in the store."""
    asked = read_options(file, set_, rounds=rounds, threads=threads, peer=peer, store=store)
    show(measure_startup(asked), startup_tables, json_=json_, markdown=markdown)


@app.command()
def infer(
    file: File = None,
    tokens: Annotated[int, option(integer(1, 10_000), help="Tokens that each row decodes in a round.")] = 16,
    rounds: Rounds = 5,
    threads: Threads = None,
    peer: Answering = None,
    set_: Set = None,
    store: Store = "default",
    json_: Json = False,
    markdown: Markdown = False,
) -> None:
    """Time prompts, answers of 1 to 16 rows and second turns, against reading the weights once and a peer."""
    package = peer == TRANSFORMERS
    asked = read_options(file, set_, rounds=rounds, threads=threads, peer=None if package else peer, store=store)
    show(measure_infer(asked, tokens=tokens, package=package), infer_tables, json_=json_, markdown=markdown)


@app.command()
def serve(
    model: Model = None,
    stage: Stage = None,
    url: Annotated[str | None, option(address, help="Server to ask instead of starting one of the model.")] = None,
    slots: Annotated[int, option(integer(1, 1024), help="Requests that the started server answers at a time.")] = 8,
    rate: Annotated[float, option(real(0.001, 1000), help="Conversations that begin in a second.")] = 0.5,
    conversations: Annotated[int, option(integer(1, 10_000), help="Conversations in all.")] = 20,
    turns: Annotated[int, option(integer(1, 100), help="Questions of a conversation.")] = 3,
    words: Annotated[int, option(integer(1, 10_000), help="Words of a question.")] = 20,
    tokens: Annotated[int, option(integer(1, 10_000), help="Longest answer, in tokens.")] = 32,
    mixed: Annotated[
        bool, typer.Option("--mixed", help="Differ in lengths, temperature and seed, and break some answers off.")
    ] = False,
    retries: Annotated[int, option(integer(0, 100), help="Times to come back where the server says when.")] = 0,
    unread: Annotated[int, option(integer(0, 1000), help="Answers of which nothing is read meanwhile.")] = 0,
    clients: Annotated[
        int | None, option(integer(1, 1000), help="Clients that ask at once, instead, in turns with the engine alone.")
    ] = None,
    rounds: Rounds = 5,
    busy: Annotated[int, option(integer(0, 64), help="Processes that keep a core busy meanwhile.")] = 0,
    threads: Threads = None,
    store: Store = "default",
    json_: Json = False,
    markdown: Markdown = False,
) -> None:
    """Time a server's first tokens and those after while conversations of several turns begin at a given rate.

    With --clients so many ask at once, once in each round, in turns with the bare engine, which answers the same.
    """
    load = Load(rate, conversations, turns, words, tokens, mixed=mixed, retries=retries, unread=unread)
    if url is not None and clients is not None:
        raise UserError("--clients compares a server with its engine, which --url does not reach: name a model instead")
    if clients is not None:
        require_torch()
        folder = find_model(model, stage=stage, store=store)
        asked = Clients(clients=clients, slots=slots, rounds=rounds, tokens=tokens, busy=busy)
        show(measure_clients(folder, asked, threads=threads or cores()), clients_tables, json_=json_, markdown=markdown)
        return
    with ExitStack() as stack:
        memory = None
        if url is None:
            require_torch()
            folder = find_model(model, stage=stage, store=store)
            url, process = stack.enter_context(serving(folder, slots=slots, threads=threads or cores()))
            memory = stack.enter_context(Memory(process))
        stack.enter_context(kept_busy(busy))
        document = measure_serve(url.rstrip("/").removesuffix("/v1"), load)
        if memory:
            document["memory"] = memory.told()
    show(document, serve_tables, json_=json_, markdown=markdown)


@app.command()
def recipe(
    text: Annotated[
        Path, argument(path, help="Folder of text shards (parquet): the last but one chooses, the last scores.")
    ],
    folder: Annotated[Path, option(path, help="Folder that finished runs are kept in.")] = Path("ablation"),
    seconds: Annotated[float, option(real(0.1, 1e6), help="CPU seconds that each run trains for.")] = 300,
    seeds: Annotated[int, option(integer(1, 100), help="Seeds of each recipe.")] = 3,
    threads: Threads = None,
    set_: Set = None,
    json_: Json = False,
    markdown: Markdown = False,
) -> None:
    """Leave out each part that karpathy/nanochat added later, at equal CPU time, and say which are worth theirs.

    Runs that have finished are in --folder; after an interruption the same command goes on with the others.
    """
    require_torch()
    data = deepcopy(dict(PRESET))
    for override in set_ or []:
        apply_override(data, override)
    if check_pipeline(data, where="--set").spec.model.recipe_name != "classic":
        raise UserError("--set model.recipe: the ablation sets the recipe itself; leave it out")
    ablation = Ablation(
        text=text.absolute(), folder=folder.absolute(), data=data, seconds=seconds, seeds=seeds,
        threads=threads or cores(),
    )  # fmt: skip
    show(ablation.run(say=partial(print, file=sys.stderr)), recipe_tables, json_=json_, markdown=markdown)


def read_options(
    file: Path | None,
    set_: list[str] | None,
    *,
    rounds: int,
    threads: int | None,
    peer: Path | None,
    store: str,
    processes: int = 1,
) -> Measurement:
    """The options that all measurements have, and how many processes train together."""
    require_torch()
    shape = Shape(file, tuple(set_ or ()))
    return Measurement(
        shape=shape,
        spec=shape.read(),
        rounds=rounds,
        threads=threads or cores(),
        peer=find_checkout(peer),
        profile=resolve_profile(store),
        processes=processes,
    )


def show(
    document: Mapping[str, Any],
    tables: Callable[[Mapping[str, Any]], Sequence[Table]],
    *,
    json_: bool,
    markdown: bool,
) -> None:
    """Print what was measured: for programs or for people."""
    if json_:
        print(json.dumps(document, indent=1))
    else:
        print_tables(tables(document), markdown=markdown)
