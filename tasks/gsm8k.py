"""GSM8K: grade-school word problems whose solutions call the calculator (arXiv 2110.14168).

A solution marks each calculation as `<<expression=result>>`; here it becomes a call of the tool.
"""

from __future__ import annotations

import re

from tasks import parts
from tasks.table import Row, TableTask, hub_files
from tasks.task import Example

_CALCULATION = re.compile(r"<<([^<>]*)>>")


class GSM8KRow(Row):
    """A problem and its solution, which ends with '#### ' and the number."""

    question: str
    answer: str


class GSM8K(TableTask[GSM8KRow]):
    name = "gsm8k"
    row = GSM8KRow
    kind = "generative"
    version = 2
    splits = ("train", "test")
    files = hub_files(
        "datasets/openai/gsm8k/resolve/main/main/{split}-00000-of-00001.parquet", train="train", test="test"
    )

    def example(self, row: GSM8KRow) -> Example:
        answer = row.answer
        number = parts.final_number(answer)
        if number is None or not parts.same_number(answer, number):
            raise ValueError("answer: it must end with '#### ' and a number")
        messages = [
            {"role": "user", "content": row.question},
            {"role": "assistant", "content": solution_parts(answer)},
        ]
        return Example(messages, reference=number)

    def grade(self, example: Example, completion: str) -> bool:
        return parts.final_number(completion) == example.reference

    def lenient(self, example: Example, completion: str) -> bool:
        return parts.same_number(completion, example.reference)


def solution_parts(answer: str) -> list[parts.Part]:
    """A solution as text and calls: '2+3 = <<2+3=5>>5' is text, call of 2+3 with result 5, text."""
    found: list[parts.Part] = []
    for position, piece in enumerate(_CALCULATION.split(answer)):  # text, calculation, text, ...
        expression, sign, result = piece.rpartition("=")
        if position % 2 and sign and expression:
            found += parts.call(expression, result)
        elif not position % 2 and piece:
            found.append(parts.text(piece))
    return found
