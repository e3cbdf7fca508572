"""The table of the chart's values in helm/nanochat/README.md, made of the comments in values.yaml:
`python -m operators.values_table` writes it.

A value is described by the comment above it that begins with `# --`. A test fails when one has none, or the table is
stale.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

CHART = Path(__file__).parents[1] / "helm" / "nanochat"
PAGE = CHART / "README.md"
HEAD = "| value | default | |\n|---|---|---|\n"
KEY = re.compile(r"^( *)([A-Za-z][A-Za-z0-9]*):")


@dataclass(frozen=True, slots=True)
class Value:
    """One described value; `default` is None where it is the parent of others."""

    path: str
    default: Any
    text: str


def described(source: str) -> Iterator[Value]:
    """The described values of a values.yaml in their order."""
    values = yaml.safe_load(source)
    path: list[str] = []
    comment: list[str] = []
    for line in source.splitlines():
        bare = line.strip()
        if bare.startswith("# -- "):
            comment = [bare.removeprefix("# -- ")]
        elif bare.startswith("# ") and comment:
            comment.append(bare.removeprefix("# "))
        elif found := KEY.match(line):
            path = [*path[: len(found[1]) // 2], found[2]]
            if comment:
                default = values
                for part in path:
                    default = default[part]
                yield Value(".".join(path), default, " ".join(comment))
            comment = []
        else:
            comment = []


def page() -> str:
    """The chart's README with its table made anew."""
    rows = [
        f"| `{value.path}` | `{json.dumps(value.default)}` | {value.text.replace('|', chr(92) + '|')} |\n"
        for value in described((CHART / "values.yaml").read_text(encoding="utf-8"))
    ]
    before, _, _ = PAGE.read_text(encoding="utf-8").partition(HEAD)
    return before + HEAD + "".join(rows)


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
