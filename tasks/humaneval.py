"""HumanEval: 164 Python functions to write from their docstrings, graded by tests (arXiv 2107.03374)."""

from __future__ import annotations

import re
from itertools import takewhile

from tasks.table import Row, TableTask, hub_files
from tasks.task import Example, Program

_CLOSED = re.compile(r"```(?:python|)\s*\n(?P<code>.*?)\n```", re.DOTALL)
_SLOPPY = re.compile(r"```(?:python|py)?[ \t]*\r?\n(?P<code>.*?)(?:```|\Z)", re.DOTALL)
_FUNCTION = re.compile(r"^(?:async\s+)?def\s+(\w+)", re.MULTILINE)


class HumanEvalRow(Row):
    """A function's beginning, its end, and the function `check` that tests it."""

    prompt: str
    canonical_solution: str
    test: str
    entry_point: str


class HumanEval(TableTask[HumanEvalRow]):
    name = "humaneval"
    row = HumanEvalRow
    kind = "program"
    version = 2
    splits = ("test",)
    files = hub_files(
        "datasets/openai/openai_humaneval/resolve/main/openai_humaneval/{split}-00000-of-00001.parquet",
        test="test",
    )

    def example(self, row: HumanEvalRow) -> Example:
        if row.entry_point not in _functions(row.prompt):
            raise ValueError(f"entry_point: the prompt defines no function '{row.entry_point}'")
        if "check" not in _functions(row.test):
            raise ValueError("test: it defines no function 'check'")
        answer = f"```python\n{row.prompt}{row.canonical_solution}```"
        messages = [{"role": "user", "content": row.prompt}, {"role": "assistant", "content": answer}]
        return Example(messages, reference=row)

    def grade(self, example: Example, completion: str) -> Program:
        """The reference's program: the prompt's imports, and the completion's first whole block or all of it."""
        block = _CLOSED.search(completion)
        code = (block["code"] if block else completion).strip()
        return _program(example.reference, f"{_imports(example.reference.prompt)}\n\n{code}\n")

    def lenient(self, example: Example, completion: str) -> Program:
        """Also right: a block that is not closed, the function's body alone, and the prompt's helpers left out."""
        task = example.reference
        block = _SLOPPY.search(completion)
        code = block["code"] if block else completion
        again = re.search(rf"^\s*(?:async\s+)?def\s+{re.escape(task.entry_point)}\b", code, re.MULTILINE)
        between = "\n\n\n" if again else "\n"
        return _program(task, f"{task.prompt.rstrip()}{between}{code}\n")


def _program(task: HumanEvalRow, source: str) -> Program:
    """A program with its test, which may call the prompt's helpers only where the program has them too."""
    helpers = _functions(task.prompt) - {task.entry_point}
    known = task.prompt if helpers <= _functions(source) else _imports(task.prompt)
    return Program(source=source, test=f"{known}\n{task.test}", entry_point=task.entry_point)


def _functions(code: str) -> set[str]:
    """Names of the functions that are defined at the top."""
    return set(_FUNCTION.findall(code))


def _imports(prompt: str) -> str:
    """The imports that a prompt begins with."""
    lines = [line.strip() for line in prompt.split("\n")]
    first = takewhile(lambda line: not line or line.startswith(("import ", "from ", "#")), lines)
    return "\n".join(line for line in first if line.startswith(("import ", "from ")))
