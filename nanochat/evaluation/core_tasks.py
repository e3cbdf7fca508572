"""The tasks of CORE as the evaluation bundle declares them, and their prompts as token sequences to be scored.

    for task in load_tasks(folder):                  # folder: core.yaml, eval_meta_data.csv, eval_data/
        examples = task.examples(most=500)
        sequences = task.sequences(tokenizer, task.prompt(examples[0]))

A prompt is a few solved items, then the item. Three kinds of items (`icl_task_type`):

- multiple_choice: one sequence a choice; what is scored begins where the choices' tokens first differ.
- schema: one sequence a context, all with the same end; that common end is scored.
- language_modeling: one sequence; the continuation is scored.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from nanochat.data.bundle import DATA, Kind, read_baselines, read_tasks
from nanochat.data.verify import WrongFile
from nanochat.parse import Malformed, first_problem
from nanochat.parse.json_text import read_json
from nanochat.spec.errors import UserError
from nanochat.tokenizer import Tokenizer

LINE = 4 << 20  # bytes of one item
ORDER_SEED, SHOTS_SEED = 1337, 1234  # the reference's, so that results are about the same items

Item = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Span:
    """Token ids of which those from `start` to the end are scored."""

    ids: list[int]
    start: int


@dataclass(frozen=True, slots=True)
class Prompt:
    """The text before an item's answer, the answers that it offers (in schemas: its contexts, to the end), and the
    right one."""

    text: str
    choices: tuple[str, ...]
    expected: str


@dataclass(frozen=True, slots=True)
class Example:
    """One item with the solved ones that come before it."""

    item: Item
    shots: tuple[Item, ...]


@dataclass(frozen=True, slots=True)
class CoreTask:
    """One of the tasks."""

    label: str
    kind: Kind
    shots: int
    delimiter: str
    baseline: float  # the proportion that guessing gets right
    data: Path

    def examples(self, most: int | None = None) -> list[Example]:
        """The first `most` items (by default all) in a fixed random order.

        The solved items of each are drawn from all others, however few are measured; where there are fewer than
        asked for, all of them.
        """
        items = self.items()
        Random(ORDER_SEED).shuffle(items)
        found = []
        for index, item in enumerate(items[:most]):
            others = range(len(items) - 1)  # without the item itself: from its place on, one further
            drawn = Random(SHOTS_SEED + index).sample(others, min(self.shots, len(others)))
            found.append(Example(item, tuple(items[i + (i >= index)] for i in drawn)))
        return found

    def size(self, most: int | None = None) -> int:
        """How many examples there are."""
        return len(self.items()[:most])

    def items(self) -> list[Item]:
        """All items in the file's order; UserError, with the task's name and the line, where one is not right."""
        try:
            items = [_item(line, self.kind) for line in _lines(self.data)]
        except (WrongItem, OSError) as error:
            raise UserError(f"CORE's task {self.label}: {self.data.name}: {error}: see sources.evalBundle") from None
        if not items:
            raise UserError(f"CORE's task {self.label} has no item in {self.data.name}: see sources.evalBundle")
        return items

    def prompt(self, example: Example) -> Prompt:
        """An example's texts, as the model is given them."""
        item, delimiter = example.item, self.delimiter
        before = "".join(f"{self._solved(shot)}\n\n" for shot in example.shots)
        if self.kind == "multiple_choice":
            choices = tuple(item["choices"])
            return Prompt(f"{before}{item['query']}{delimiter}", choices, choices[item["gold"]])
        if self.kind == "schema":
            choices = tuple(f"{context}{delimiter}{item['continuation']}" for context in item["context_options"])
            return Prompt(before, choices, choices[item["gold"]])
        return Prompt(f"{before}{item['context'].strip()}{delimiter}", (), item["continuation"])

    def sequences(self, tokenizer: Tokenizer, prompt: Prompt) -> list[Span]:
        """The sequences of an example that are scored, one for each option."""
        if self.kind == "language_modeling":
            whole, without = _encode(tokenizer, [prompt.text + prompt.expected, prompt.text.strip()])
            return [Span(whole, min(common([whole, without]), len(whole) - 1))]
        ids = _encode(tokenizer, [prompt.text + choice for choice in prompt.choices])
        if self.kind == "multiple_choice":
            start = min(common(ids), min(map(len, ids)) - 1)
            return [Span(each, start) for each in ids]
        alike = max(1, common([each[::-1] for each in ids]))
        return [Span(each, len(each) - alike) for each in ids]

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
        declared, baselines = read_tasks(folder), read_baselines(folder)
    except WrongFile as error:
        raise UserError(f"the evaluation bundle is not whole: {error.message}: see sources.evalBundle") from None
    return [
        CoreTask(
            label=task.label,
            kind=task.kind,
            shots=task.shots[0],
            delimiter=task.delimiter,
            baseline=_baseline(task.label, baselines),
            data=folder / DATA / task.data,
        )
        for task in declared
    ]


def _baseline(label: str, baselines: Mapping[str, str]) -> float:
    """A task's random baseline as a proportion, below 1."""
    given = baselines.get(label)
    try:
        percent = float(given or "")
    except ValueError:
        percent = math.nan
    if not 0 <= percent < 100:
        raise UserError(
            f"CORE's task {label} has the random baseline {given!r} in eval_meta_data.csv, which must be a number of "
            "percent from 0 to below 100: see sources.evalBundle"
        )
    return percent / 100


# ----------------------------------------------------------------------------------------------------------------
# items


class WrongItem(ValueError):
    """A line of a data file that is no item of its task; the message says which and why."""


class _Item(BaseModel):
    model_config = ConfigDict(strict=True)


class _Choice(_Item):
    """An item whose answer is the index `gold` of one of its options."""

    gold: Annotated[int, Field(ge=0)]

    def options(self) -> list[str]:
        raise NotImplementedError

    @model_validator(mode="after")
    def _in_range(self) -> _Choice:
        if self.gold >= len(self.options()):
            raise ValueError(f"gold is {self.gold}, and there are {len(self.options())} options")
        return self


class _MultipleChoice(_Choice):
    query: str
    choices: Annotated[list[str], Field(min_length=2)]

    def options(self) -> list[str]:
        return self.choices


class _Schema(_Choice):
    context_options: Annotated[list[str], Field(min_length=2)]
    continuation: Annotated[str, Field(min_length=1)]

    def options(self) -> list[str]:
        return self.context_options


class _LanguageModeling(_Item):
    context: str
    continuation: Annotated[str, Field(min_length=1)]


_ITEMS: Mapping[Kind, type[_Item]] = {
    "multiple_choice": _MultipleChoice,
    "schema": _Schema,
    "language_modeling": _LanguageModeling,
}


def _lines(path: Path) -> Iterator[tuple[int, bytes]]:
    """The lines of a file that are not blank, each with its number."""
    with open(path, "rb") as file:
        number = 0
        while line := file.readline(LINE + 1):
            number += 1
            if len(line) > LINE:
                raise WrongItem(f"line {number}: more than {LINE >> 20} MiB")
            if line.strip():
                yield number, line


def _item(line: tuple[int, bytes], kind: Kind) -> Item:
    number, content = line
    try:
        item = read_json(content, limit=LINE)
        _ITEMS[kind].model_validate(item)
    except Malformed as error:
        raise WrongItem(f"line {number}: {error}") from None
    except ValidationError as error:
        raise WrongItem(f"line {number}: {first_problem(error)}") from None
    return item


def _encode(tokenizer: Tokenizer, texts: Sequence[str]) -> list[list[int]]:
    return [[tokenizer.bos, *ids] for ids in tokenizer.encode_batch(texts)]


def common(sequences: Sequence[Sequence[int]]) -> int:
    """How many first tokens all sequences have in common."""
    for position, tokens in enumerate(zip(*sequences, strict=False)):
        if len(set(tokens)) > 1:
            return position
    return min(map(len, sequences))
