"""MMLU: 57 subjects of multiple-choice questions with four choices (arXiv 2009.03300)."""

from __future__ import annotations

from tasks.choice import choice_example, is_letter
from tasks.table import Row, TableTask, hub_files
from tasks.task import Example


class MMLU(TableTask):
    name = "mmlu"
    kind = "choice"
    baseline = 0.25
    splits = ("auxiliary-train", "dev", "validation", "test")
    files = hub_files(
        "datasets/cais/mmlu/resolve/main/all/{split}-00000-of-00001.parquet",
        auxiliary_train="auxiliary_train",
        dev="dev",
        validation="validation",
        test="test",
    )
    columns = ("question", "choices", "answer")

    def example(self, row: Row) -> Example:
        return choice_example(row["question"], row["choices"], row["answer"])

    def grade(self, example: Example, completion: str) -> bool:
        return is_letter(example, completion)
