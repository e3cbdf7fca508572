"""The items of an evaluation and what became of each: items.jsonl, a JSON object a line, in bounds.

    with ItemWriter(folder / ITEMS) as writer:
        writer.add([Item.of("gsm8k", 0, prompt="What is 2 + 2?", expected="4", answers=["5"], verdicts=[False])])
    for item in read_items(folder / ITEMS): ...

Texts are shown in part: the end of a prompt, the beginning of answers. `digest` tells whether two items are the same
question. When the file has grown to MOST bytes, texts are left out and figures go on.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import math
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any, Self

from pydantic import BaseModel, ConfigDict, Field, FiniteFloat, ValidationError
from pydantic.alias_generators import to_camel

from nanochat.parse import Malformed, first_problem
from nanochat.parse.json_text import read_json
from nanochat.spec.errors import UserError

ITEMS = "items.jsonl"
PROMPT, CHOICE, ANSWER = 1000, 200, 2000  # characters of each that are kept; several answers share theirs
CHOICES = 64  # of which texts and scores are kept
MOST = 64 << 20  # bytes of a file with texts
LINE = 4 << 20  # bytes of one item
LARGEST = 8 * MOST  # bytes of a file that is read: of items without texts there are as many as there are

_Name = Annotated[str, Field(max_length=200)]
_Short = Annotated[str, Field(max_length=CHOICE)]


class Item(BaseModel):
    """One item of a task and what the model made of it."""

    model_config = ConfigDict(frozen=True, strict=True, extra="ignore", alias_generator=to_camel, populate_by_name=True)

    task: _Name
    index: Annotated[int, Field(ge=0)]  # its place in the task's order
    digest: _Name  # of the whole question
    prompt: Annotated[str, Field(max_length=PROMPT)] = ""
    choices: Annotated[list[_Short], Field(max_length=CHOICES)] = []
    # Of each choice: nats, the largest is taken; None where it is no number.
    scores: Annotated[list[FiniteFloat | None], Field(max_length=CHOICES)] = []
    expected: Annotated[str, Field(max_length=ANSWER)] = ""
    answers: list[Annotated[str, Field(max_length=ANSWER)]] = []  # one a sample
    verdicts: Annotated[list[bool], Field(min_length=1)]  # whether each is right
    lenient: list[bool] = []  # by the task's more forgiving verdict, where it has one
    baseline: Annotated[float, Field(ge=0, lt=1)] = 0.0  # the proportion of its task that guessing gets right
    cut: bool = False  # whether the question was longer than the context

    @classmethod
    def of(
        cls,
        task: str,
        index: int,
        *,
        question: Any = None,
        prompt: str,
        choices: Sequence[str] = (),
        expected: str = "",
        scores: Sequence[float] = (),
        answers: Sequence[str],
        **figures: Any,
    ) -> Self:
        """An item with its texts cut to what is kept; `question` is all that tells it from another one."""
        room = max(CHOICE, ANSWER // max(1, len(answers)))
        return cls(
            task=task,
            index=index,
            digest=hashlib.sha256(repr(question or prompt).encode("utf-8", "replace")).hexdigest()[:16],
            prompt=prompt[-PROMPT:],
            choices=[choice[:CHOICE] for choice in choices[:CHOICES]],
            expected=expected[:ANSWER],
            scores=[score if math.isfinite(score) else None for score in scores[:CHOICES]],
            answers=[answer[:room] for answer in answers],
            **figures,
        )

    @property
    def right(self) -> float:
        """The proportion of its answers that are right."""
        return sum(self.verdicts) / len(self.verdicts)

    def without_texts(self) -> Item:
        """The item's figures alone."""
        return self.model_copy(update={"prompt": "", "choices": [], "expected": "", "answers": []})

    def to_dict(self) -> dict[str, Any]:
        """As a line has it."""
        return self.model_dump(by_alias=True, exclude_defaults=True)


class ItemWriter:
    """Appends to a file of items; the half of a line that a process left when it was killed goes first.

    UserError where another process is writing it.
    """

    def __init__(self, path: Path) -> None:
        self._file = open(path, "a+b")  # noqa: SIM115 (it is closed at the end of the `with`)
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self._file.close()
            raise UserError(f"{path} is being written by another process: wait for its end, or stop it") from None
        self._file.seek(0)
        whole = sum(len(line) for line in self._file if line.endswith(b"\n"))
        self._file.truncate(whole)
        self._bytes = whole

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def add(self, items: Iterable[Item]) -> None:
        """Write items; they are there for a reader when this returns."""
        for item in items:
            line = _line(item)
            if self._bytes + len(line) > MOST:
                line = _line(item.without_texts())
            self._file.write(line)
            self._bytes += len(line)
        self._file.flush()


def _line(item: Item) -> bytes:
    return json.dumps(item.to_dict(), separators=(",", ":")).encode() + b"\n"


def read_items(path: Path) -> Iterator[Item]:
    """The items of a file; UserError, with the line, where it holds something else."""
    with open(path, "rb") as file:
        number = 0
        while line := file.readline(LINE + 1):
            number += 1
            if file.tell() > LARGEST:
                raise UserError(f"{path} has more than {LARGEST >> 20} MiB: this is no evaluation's file of items")
            try:
                yield Item.model_validate(read_json(line, limit=LINE))
            except Malformed as error:
                problem = str(error)
            except ValidationError as error:
                problem = first_problem(error)
            else:
                continue
            raise UserError(f"{path}, line {number}: {problem}: this is no item of an evaluation")
