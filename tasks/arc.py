"""ARC: grade-school science questions, the easy and the challenge set (arXiv 1803.05457)."""

from __future__ import annotations

from tasks.choice import choice_example, is_letter
from tasks.table import Row, TableTask, hub_files
from tasks.task import Example


class _Arc(TableTask):
    """Some questions label their choices 1, 2, 3: the position decides the letter, whatever the label."""

    kind = "choice"
    baseline = 0.25
    splits = ("train", "validation", "test")
    columns = ("question", "choices", "answerKey")

    def example(self, row: Row) -> Example:
        labels = row["choices"]["label"]
        return choice_example(row["question"], row["choices"]["text"], labels.index(row["answerKey"]))

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
