"""HumanEval: 164 Python functions to write from their docstrings, graded by tests (arXiv 2107.03374)."""

from __future__ import annotations

import re

from tasks.table import Row, TableTask, hub_files
from tasks.task import Example, Program

_BLOCK = re.compile(r"```(?:python|py)?[ \t]*\r?\n(.*?)(?:```|\Z)", re.DOTALL)


class HumanEval(TableTask):
    name = "humaneval"
    kind = "program"
    splits = ("test",)
    files = hub_files(
        "datasets/openai/openai_humaneval/resolve/main/openai_humaneval/{split}-00000-of-00001.parquet",
        test="test",
    )
    columns = ("prompt", "canonical_solution", "test", "entry_point")

    def example(self, row: Row) -> Example:
        answer = f"```python\n{row['prompt']}{row['canonical_solution']}```"
        messages = [{"role": "user", "content": row["prompt"]}, {"role": "assistant", "content": answer}]
        return Example(messages, reference=dict(row))

    def grade(self, example: Example, completion: str) -> Program:
        task = example.reference
        return Program(
            source=program_source(task["prompt"], task["entry_point"], completion),
            test=f"{task['prompt']}\n{task['test']}",
            entry_point=task["entry_point"],
        )


def program_source(prompt: str, entry_point: str, completion: str) -> str:
    """The prompt, then the first code block of the completion (or all of it).

    The prompt comes along for its imports and helper functions. A completion that defines the function
    replaces the prompt's bare header; one that does not is the header's body.
    """
    block = _BLOCK.search(completion)
    code = block[1] if block else completion
    if re.search(rf"^\s*(?:async\s+)?def\s+{re.escape(entry_point)}\b", code, re.MULTILINE):
        return f"{prompt.rstrip()}\n\n\n{code}\n"
    return f"{prompt.rstrip()}\n{code}\n"
