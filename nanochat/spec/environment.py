"""Environment variables: numbers with bounds, and hints about those that another project reads.

rank = integer("RANK", 0)
for hint in hints(os.environ): ...
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping

from nanochat.spec.errors import UserError

RANKS = 1 << 20  # more processes than any launch has
# Variables of karpathy/nanochat that nothing here reads: what stands for them, and the variable that shows one knows.
FOREIGN = {
    "NANOCHAT_BASE_DIR": ("NANOCHAT_HOME names that folder", "NANOCHAT_HOME"),
    "NANOCHAT_DTYPE": ("stages.base.precision of the pipeline, and that of each stage, says so", ""),
}


def integer(name: str, default: int, *, low: int = 0, high: int = RANKS) -> int:
    """The whole number in a variable; UserError where it holds something else."""
    text = os.environ.get(name)
    if not text:
        return default
    if not re.fullmatch("[0-9]{1,9}", text) or not low <= int(text) <= high:
        raise UserError(f"{name} is {text[:40]!r}: set it to a whole number from {low} to {high:,}, or unset it")
    return int(text)


def hints(environment: Mapping[str, str]) -> Iterator[str]:
    """A sentence on each variable that is set, is not read here, and has a counterpart that is not set."""
    for name, (here, instead) in FOREIGN.items():
        if environment.get(name) and not environment.get(instead):
            yield f"{name} is a variable of karpathy/nanochat and is not read here: {here} (docs/from-nanochat.md)"
