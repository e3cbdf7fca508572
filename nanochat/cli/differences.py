"""The differences of two runs: their settings, their data, and the curves of their losses.

for line in differences(first, second, stage="base", width=80): print(line)
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

from nanochat.cli.curve import plot
from nanochat.cli.local_run import LocalRun
from nanochat.cli.printable import printable

TRAINING = ("base", "mid", "sft", "rl")
DATA = ("text", "task-data", "eval-bundle", "tokenizer")  # kinds of artifacts that runs are trained and measured on
MOST = 60  # settings that are shown
SHOWN = 60  # characters of a value
HEIGHT = 10  # lines of a plot
ABSENT = "-"


def differences(first: LocalRun, second: LocalRun, *, stage: str, width: int) -> Iterator[str]:
    """Lines for people; `stage` is whose curves are drawn, or else the first that both have trained."""
    yield from _settings(first.spec, second.spec)
    yield from _data(first, second)
    yield from _curves(first, second, stage, width)


def _settings(first: Mapping[str, Any], second: Mapping[str, Any]) -> Iterator[str]:
    left, right = dict(_flat(first, "")), dict(_flat(second, ""))
    rows = [
        (name, left.get(name, ABSENT), right.get(name, ABSENT))
        for name in sorted(left.keys() | right.keys())
        if left.get(name, ABSENT) != right.get(name, ABSENT)
    ]
    if not rows:
        yield "Settings: the same"
        return
    yield f"Settings: {len(rows):,} differ"
    shown = [tuple(printable(cell, SHOWN) for cell in row) for row in rows[:MOST]]
    widths = [max(len(row[column]) for row in (("", "A", "B"), *shown)) for column in (0, 1)]
    for row in (("", "A", "B"), *shown):
        yield f"  {row[0]:<{widths[0]}}  {row[1]:<{widths[1]}}  {row[2]}".rstrip()
    if len(rows) > MOST:
        yield f"  and {len(rows) - MOST:,} more"


def _flat(value: Any, path: str) -> Iterator[tuple[str, str]]:
    """Each setting by its path, its value as JSON; lists are values."""
    if isinstance(value, Mapping) and value:
        for name, inner in value.items():
            yield from _flat(inner, f"{path}.{name}" if path else str(name))
    else:
        yield path, json.dumps(value)


def _data(first: LocalRun, second: LocalRun) -> Iterator[str]:
    """Artifacts by their keys: two of one name and different keys hold something else."""
    lines = []
    for kind in DATA:
        left, right = (
            {ref.name: key for ref, key in run.status.keys().items() if ref.kind == kind} for run in (first, second)
        )
        both = left.keys() & right.keys()
        other = sorted(name for name in both if left[name] != right[name])
        parts = [
            f"{len(names):,} {what}{'' if kind == 'text' else f' ({_names(names)})'}"
            for names, what in (
                (other, "of other content"),
                (sorted(left.keys() - both), "in A alone"),
                (sorted(right.keys() - both), "in B alone"),
            )
            if names
        ]
        if parts:
            lines.append(f"  {kind}: {len(both) - len(other):,} the same, {', '.join(parts)}")
    yield "Data: it differs" if lines else "Data: the same"
    yield from lines


def _names(names: list[str]) -> str:
    return printable(", ".join(names), 200)


def _curves(first: LocalRun, second: LocalRun, stage: str, width: int) -> Iterator[str]:
    for name in (stage,) if stage in TRAINING else TRAINING:
        curves = {"A": first.losses(name), "B": second.losses(name)}
        if all(curves.values()):
            yield f"Loss of {name}: A ends at {curves['A'][-1][1]:.4f}, B at {curves['B'][-1][1]:.4f}"
            yield from plot(curves, width=max(20, width - 20), height=HEIGHT)
            return
    yield "Loss: no stage that both have trained"
