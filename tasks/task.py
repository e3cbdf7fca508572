"""The interface of all tasks: rows that are conversations, and how an answer to one is graded.

    task = find("gsm8k")(folder, "test")   # `folder` holds what `files` names, as `SourceFile.local`
    example = task[0]                      # messages, the last of them the reference answer
    task.grade(example, "... #### 18")     # True, False, or a Program that the sandbox has to run

A task imports nothing of nanochat: it yields conversations, programs and grades, and the layers above render,
sample and run them. Rows come in an order that depends on the seed alone.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, ClassVar, Literal

Kind = Literal["choice", "generative", "program", "chat"]
Message = dict[str, Any]  # {"role": "user" | "assistant" | "system", "content": str | list of parts}


class DataError(ValueError):
    """A file of a task is missing or does not hold what it should; the message says what to change."""

    def __init__(self, path: Path, problem: str, *, line: int | None = None) -> None:
        self.path, self.problem, self.line = path, problem, line
        place = f"{path.name}, line {line}" if line is not None else str(path)
        super().__init__(f"{place}: {problem}")


@dataclass(frozen=True, slots=True)
class SourceFile:
    """One file of a task: where it comes from and what it is called in the task's folder.

    `source` is "hub" (with `path` below the hub's address, revision main), "words" or "identity".
    """

    source: str
    path: str = ""

    def at(self, revision: str) -> str:
        """The path below the hub's address at another revision."""
        return self.path.replace("/resolve/main/", f"/resolve/{revision}/", 1)

    @property
    def local(self) -> str:
        """Name in the task's folder: flat, and different for files that differ only in their folder."""
        if self.source == "words":
            return "words.txt"
        if self.source == "identity":
            return "identity.jsonl"
        return self.path.split("/resolve/main/", 1)[-1].replace("/", "-")


@dataclass(frozen=True, slots=True)
class Example:
    """One row: a conversation whose last message is the reference answer, and what grading needs to know."""

    messages: list[Message]
    letters: tuple[str, ...] = ()  # the possible answers of a multiple-choice question
    reference: Any = None

    @property
    def prompt(self) -> list[Message]:
        """The conversation up to the answer."""
        return self.messages[:-1]


@dataclass(frozen=True, slots=True)
class Program:
    """A program that the sandbox has to run, and the test that decides whether it is right.

    `source` is untrusted and defines the function `entry_point`. `test` is trusted and defines `check(candidate)`,
    which calls the function and raises where an answer is wrong. The two run in processes of their own, so what
    goes to and from the function is plain data (numbers, text, bytes, lists, tuples, dicts, sets, None).
    """

    source: str
    test: str
    entry_point: str


class Task(ABC):
    """A data set or benchmark: subclasses set the class attributes, `__len__` and `__getitem__`."""

    name: ClassVar[str]
    kind: ClassVar[Kind]
    baseline: ClassVar[float] = 0.0  # the proportion that guessing gets right
    version: ClassVar[int] = 1  # raised when rows, prompts or grades change
    splits: ClassVar[tuple[str, ...]]
    files: ClassVar[Mapping[str, tuple[SourceFile, ...]]] = MappingProxyType({})  # by split; none: generated

    def __init__(self, folder: Path, split: str, *, seed: int = 42) -> None:
        if split not in self.splits:
            raise ValueError(f"task {self.name} has no split '{split}': it has {', '.join(self.splits)}")
        self.folder = folder
        self.split = split
        self.seed = seed

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def __getitem__(self, index: int) -> Example: ...

    def __iter__(self) -> Iterator[Example]:
        return (self[i] for i in range(len(self)))

    @classmethod
    def rewards(cls) -> bool:
        """Whether `reward` scores an answer, so that reinforcement learning can use the task."""
        return cls.kind in ("choice", "generative")

    def grade(self, example: Example, completion: str) -> bool | Program:
        """Whether an answer is right, or the program that decides it."""
        raise NotImplementedError(f"task {self.name} has no grader")

    def lenient(self, example: Example, completion: str) -> bool | Program | None:
        """A more forgiving verdict, which is measured beside the grade; None where the task has none."""
        return None

    def reward(self, example: Example, completion: str) -> float:
        """The reward of an answer in reinforcement learning: 1 where it is right, else 0."""
        return float(self.grade(example, completion) is True)

    def check(self) -> int:
        """Read the split as evaluation and training will; returns its rows. DataError where it holds nothing usable."""
        if not len(self):
            raise DataError(self.folder, f"task {self.name} has no row in its split '{self.split}'")
        self[0]
        return len(self)

    def paths(self) -> list[Path]:
        """The files of this split in the task's folder; DataError where one is missing."""
        paths = [self.folder / file.local for file in self.files[self.split]]
        for path in paths:
            if not path.is_file():
                raise DataError(path, f"this file of task {self.name} is missing: run the dataset stage")
        return paths
