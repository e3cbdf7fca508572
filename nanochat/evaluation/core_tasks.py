"""The tasks of CORE as the evaluation bundle declares them, and their prompts as token sequences to be scored.

    for task in load_tasks(folder):                  # folder: core.yaml, eval_meta_data.csv, eval_data/
        examples = task.examples(most=500)
        sequences = task.sequences(tokenizer, examples[0])

A prompt is a few solved items, then the item. Three kinds of items (`icl_task_type`):

- multiple_choice: one sequence a choice; what is scored begins where the choices' tokens first differ.
- schema: one sequence a context, all with the same end; that common end is scored.
- language_modeling: one sequence; the continuation is scored.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

import yaml

from nanochat.spec.errors import UserError
from nanochat.tokenizer import Tokenizer

KINDS = ("multiple_choice", "schema", "language_modeling")
ORDER_SEED, SHOTS_SEED = 1337, 1234  # the reference's, so that results are about the same items

Item = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Span:
    """Token ids of which those from `start` to the end are scored."""

    ids: list[int]
    start: int


@dataclass(frozen=True, slots=True)
class Example:
    """One item with the solved ones that come before it."""

    item: Item
    shots: tuple[Item, ...]


@dataclass(frozen=True, slots=True)
class CoreTask:
    """One of the tasks."""

    label: str
    kind: str
    shots: int
    delimiter: str
    baseline: float  # the proportion that guessing gets right
    data: Path

    def examples(self, most: int | None = None) -> list[Example]:
        """The first `most` items (by default all) in a fixed random order.

        The solved items of each are drawn from all others, however few are measured; where there are fewer than
        asked for, all of them.
        """
        items = read_items(self.data)
        Random(ORDER_SEED).shuffle(items)
        found = []
        for index, item in enumerate(items[:most]):
            others = range(len(items) - 1)  # without the item itself: from its place on, one further
            drawn = Random(SHOTS_SEED + index).sample(others, min(self.shots, len(others)))
            found.append(Example(item, tuple(items[i + (i >= index)] for i in drawn)))
        return found

    def size(self, most: int | None = None) -> int:
        """How many examples there are."""
        return len(read_items(self.data)[:most])

    def sequences(self, tokenizer: Tokenizer, example: Example) -> list[Span]:
        """The sequences of an example that are scored, one for each option."""
        prefix = "".join(f"{self._solved(shot)}\n\n" for shot in example.shots)
        item, delimiter = example.item, self.delimiter
        if self.kind == "multiple_choice":
            ids = _encode(tokenizer, [f"{prefix}{item['query']}{delimiter}{choice}" for choice in item["choices"]])
            start = min(_common(ids), min(map(len, ids)) - 1)
            return [Span(each, start) for each in ids]
        if self.kind == "schema":
            ending = f"{delimiter}{item['continuation']}"
            ids = _encode(tokenizer, [f"{prefix}{context}{ending}" for context in item["context_options"]])
            common = max(1, _common([each[::-1] for each in ids]))
            return [Span(each, len(each) - common) for each in ids]
        context = f"{prefix}{item['context'].strip()}{delimiter}"
        whole, without = _encode(tokenizer, [f"{context}{item['continuation']}", context.strip()])
        return [Span(whole, min(_common([whole, without]), len(whole) - 1))]

    def _solved(self, item: Item) -> str:
        """An item with its answer."""
        if self.kind == "multiple_choice":
            return f"{item['query']}{self.delimiter}{item['choices'][item['gold']]}"
        if self.kind == "schema":
            return f"{item['context_options'][item['gold']]}{self.delimiter}{item['continuation']}"
        return f"{item['context'].strip()}{self.delimiter}{item['continuation']}"


def load_tasks(folder: Path) -> list[CoreTask]:
    """The tasks of a bundle, in its order; UserError where it is not whole."""
    try:
        declared = yaml.safe_load((folder / "core.yaml").read_text(encoding="utf-8"))["icl_tasks"]
        with open(folder / "eval_meta_data.csv", encoding="utf-8", newline="") as file:
            baselines = {row["Eval Task"]: float(row["Random baseline"]) / 100 for row in csv.DictReader(file)}
        tasks = [
            CoreTask(
                label=entry["label"],
                kind=entry["icl_task_type"],
                shots=entry["num_fewshot"][0],
                delimiter=entry.get("continuation_delimiter", " "),
                baseline=baselines[entry["label"]],
                data=folder / "eval_data" / entry["dataset_uri"],
            )
            for entry in declared
        ]
    except (OSError, KeyError, TypeError, ValueError, yaml.YAMLError) as error:
        raise UserError(f"the evaluation bundle in {folder} is not whole ({error!r}): see sources.evalBundle") from None
    for task in tasks:
        if task.kind not in KINDS:
            raise UserError(f"CORE's task {task.label} has the type '{task.kind}': known are {', '.join(KINDS)}")
    return tasks


def read_items(path: Path) -> list[Item]:
    """The items of a JSONL file."""
    try:
        return [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n") if line.strip()]
    except (OSError, ValueError) as error:
        raise UserError(f"the evaluation bundle's {path.name} cannot be read: {error}") from None


def _encode(tokenizer: Tokenizer, texts: Sequence[str]) -> list[list[int]]:
    return [[tokenizer.bos, *ids] for ids in tokenizer.encode_batch(texts)]


def _common(sequences: Sequence[Sequence[int]]) -> int:
    """How many first tokens all sequences have in common."""
    for position, tokens in enumerate(zip(*sequences, strict=False)):
        if len(set(tokens)) > 1:
            return position
    return min(map(len, sequences))
