"""Arguments and options that several commands have."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

File = Annotated[Path, typer.Argument(help="Pipeline file (YAML).")]
Name = Annotated[str, typer.Argument(help="Name of the pipeline.")]
Run = Annotated[str | None, typer.Argument(help="Name of the pipeline; by default the one run last.")]
Set = Annotated[list[str] | None, typer.Option("--set", help="Change a setting: path=value, e.g. model.depth=6.")]
Store = Annotated[str, typer.Option("--store", help="Store profile.")]
Namespace = Annotated[str | None, typer.Option("--namespace", "-n", help="Namespace on a cluster.")]
Context = Annotated[str | None, typer.Option("--context", help="The kubeconfig's context of a cluster.")]
