"""ARC: grade-school science questions, the easy and the challenge set (arXiv 1803.05457)."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from tasks.choice import choice_example, is_letter
from tasks.table import Row, TableTask, hub_files
from tasks.task import Example

Label = Annotated[str, Field(pattern=r"^[A-Za-z0-9]$")]  # one token


class Choices(Row):
    """The possible answers, and what each is called: A to E, in some questions 1 to 5."""

    text: list[str] = Field(min_length=2)
    label: list[Label]


class ArcRow(Row):
    """A question of either set."""

    question: str
    choices: Choices
    answer: str = Field(alias="answerKey")


class _Arc(TableTask[ArcRow]):
    row = ArcRow
    kind = "choice"
    version = 2
    baseline = 0.25
    splits = ("train", "validation", "test")

    def example(self, row: ArcRow) -> Example:
        texts, labels = row.choices.text, row.choices.label
        if len(labels) != len(texts) or len(set(labels)) != len(labels):
            raise ValueError("choices: each needs a label of its own")
        if row.answer not in labels:
            raise ValueError(f"answerKey: '{row.answer}' is none of the labels {', '.join(labels)}")
        return choice_example(row.question, texts, labels.index(row.answer), labels)

    def grade(self, example: Example, completion: str) -> bool:
        return is_letter(example, completion)


class ArcEasy(_Arc):
    name = "arc-easy"
    files = hub_files(
        "datasets/allenai/ai2_arc/resolve/main/ARC-Easy/{split}-00000-of-00001.parquet",
        train="train",
        validation="validation",
        test="test",
    )


class ArcChallenge(_Arc):
    name = "arc-challenge"
    files = hub_files(
        "datasets/allenai/ai2_arc/resolve/main/ARC-Challenge/{split}-00000-of-00001.parquet",
        train="train",
        validation="validation",
        test="test",
    )
