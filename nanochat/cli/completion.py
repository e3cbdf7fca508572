"""`nanochat completion SHELL`: a script with which a shell completes commands and options.

    source <(nanochat completion bash)

At each Tab the script runs `nanochat` with a variable set, which Typer then answers.
"""

from __future__ import annotations

import os
from typing import Annotated

from typer.completion import completion_init, get_completion_script  # pyright: ignore[reportPrivateImportUsage]

from nanochat.cli.options import argument
from nanochat.spec.bounds import one_of

PROGRAM = "nanochat"
VARIABLE = "_NANOCHAT_COMPLETE"  # which the shell sets when it asks


def completion(
    shell: Annotated[str, argument(one_of(("bash", "zsh", "fish")), help="Shell: bash, zsh or fish.")],
) -> None:
    """Print a script with which a shell completes commands and options."""
    print(get_completion_script(prog_name=PROGRAM, complete_var=VARIABLE, shell=shell))


def prepare() -> None:
    """Let Typer answer, where this process was started by a shell that completes."""
    if VARIABLE in os.environ:
        completion_init()
