"""MMLU: 57 subjects of multiple-choice questions with four choices (arXiv 2009.03300)."""

from __future__ import annotations

from pydantic import Field

from tasks.choice import choice_example, is_letter
from tasks.table import Row, TableTask, hub_files
from tasks.task import Example


class MmluRow(Row):
    """A question of one of the subjects."""

    question: str
    choices: list[str] = Field(min_length=4, max_length=4)
    answer: int = Field(ge=0, le=3)


class MMLU(TableTask[MmluRow]):
    name = "mmlu"
    row = MmluRow
    kind = "choice"
    version = 2
    baseline = 0.25
    splits = ("auxiliary-train", "dev", "validation", "test")
    files = hub_files(
        "datasets/cais/mmlu/resolve/main/all/{split}-00000-of-00001.parquet",
        auxiliary_train="auxiliary_train",
        dev="dev",
        validation="validation",
        test="test",
    )

    def example(self, row: MmluRow) -> Example:
        return choice_example(row.question, row.choices, row.answer)

    def grade(self, example: Example, completion: str) -> bool:
        return is_letter(example, completion)
