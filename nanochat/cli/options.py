"""Arguments and options, each with a reader that bounds its value; a value that is out of bounds is one sentence.

port: Annotated[int, option(integer(0, 65535), help="Port to listen on.")] = 8000
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, TypeVar

import typer

from nanochat.spec.bounds import (
    NAME,
    PATH,
    TEXT,
    OutOfBounds,
    Reader,
    integer,
    path,
    real,
    text,
)

T = TypeVar("T")


def option(read: Reader[Any], *names: str, help: str) -> Any:
    """An option whose value `read` takes."""
    return typer.Option(*names, parser=_parser(read), metavar=_metavar(read), help=help)


def argument(read: Reader[Any], *, help: str) -> Any:
    """An argument whose value `read` takes."""
    return typer.Argument(parser=_parser(read), help=help)


def _metavar(read: Reader[Any]) -> str:
    return read.__name__.upper()


def _parser(read: Reader[T]) -> Callable[[str], T]:
    """The reader as Typer calls it, also with what is no text: with defaults."""

    def parse(given: str) -> T:
        try:
            return read(given)
        except OutOfBounds as error:
            raise typer.BadParameter(f"{error}.") from None

    return parse


# How a model answers, on the command line and by the commands of a chat.
temperature = real(0, 2)
top_k = integer(0, 1_000_000)
top_p = real(0, 1)
max_tokens = integer(1, 1_000_000)
seed = integer(0, 2**53 - 1)  # what a browser's numbers hold exactly
system = text(TEXT, lines=True)

name = text(NAME, "name")

File = Annotated[Path, argument(path, help="Pipeline file (YAML).")]
Name = Annotated[str, argument(text(PATH), help="Name of the pipeline.")]
Run = Annotated[str | None, argument(text(PATH), help="Pipeline's name, or a run's id; by default the one run last.")]
Model = Annotated[
    str | None,
    argument(
        text(PATH),
        help="Pipeline's name, champion, NAME:VERSION of the registry, or folder or URI of a model artifact.",
    ),
]
Stage = Annotated[str | None, option(name, "--stage", help="Stage whose model is used; by default the last.")]
Set = Annotated[
    list[str] | None,
    option(text(TEXT, lines=True), "--set", help="Change a setting: path=value, e.g. model.depth=6."),
]
Store = Annotated[str, option(name, "--store", help="Store profile.")]
Int8 = Annotated[bool, typer.Option("--int8", help="Weights of 8 bits, on a CPU: half of the memory.")]
Guesses = Annotated[
    int, option(integer(0, 64), help="Tokens that are guessed at a time from what was said before; 0: none.")
]
Namespace = Annotated[str | None, option(name, "--namespace", "-n", help="Namespace on a cluster.")]
Context = Annotated[str | None, option(name, "--context", help="The kubeconfig's context of a cluster.")]
