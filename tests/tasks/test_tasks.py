"""The tasks: rows, prompts and graders."""

from __future__ import annotations

import json
import re
import shutil
import sys
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest

import tasks
from nanochat.pipeline.task_selection import find_task
from nanochat.spec.errors import UserError
from tasks import DataError, Example, Program, SourceFile, Task, registry
from tasks.gsm8k import solution_parts
from tasks.identity import read_conversations
from tasks.parts import final_number, same_number

HUB = ("arc-challenge", "arc-easy", "gsm8k", "humaneval", "mmlu", "smoltalk")


def write_rows(task: type[Task], folder: Path, split: str, rows: list[dict]) -> Task:
    folder.mkdir(exist_ok=True)
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), folder / task.files[split][0].local)
    return task(folder, split)


def fill(name: str, folder: Path, mirror: Path) -> Path:
    """A task's files from the mirror, under their local names."""
    other = {"words": "words_alpha.txt", "identity": "identity_conversations.jsonl"}
    for files in tasks.find(name).files.values():
        for file in files:
            shutil.copy(mirror / other.get(file.source, file.path), folder / file.local)
    return folder


def test_names_are_found_and_mistakes_helped() -> None:
    assert {*HUB, "spelling-bee", "simple-spelling", "identity"} <= set(tasks.names())
    with pytest.raises(KeyError, match="did you mean 'gsm8k'"):
        tasks.find("gsm8")
    with pytest.raises(ValueError, match=r"no split 'dev': it has train, test"):
        tasks.find("gsm8k")(Path(), "dev")


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        ("import igloo.snow", r"tasks\.own needs the Python module 'igloo', which is missing: install"),
        ("def f(:", r"tasks\.own, line 1 cannot be imported: SyntaxError"),
        ("1 / 0", r"tasks\.own cannot be imported: ZeroDivisionError"),
        ("from tasks.gsm8k import GSM8K as G\nclass Own(G):\n    name = 'gsm8k'", "two tasks are called 'gsm8k'"),
        (
            "from tasks.gsm8k import GSM8K as G\nclass Own(G):\n    name = 'own'\n    baseline = 1.0",
            "task own has the baseline",
        ),
    ],
)
def test_a_file_of_ones_own_that_is_not_sound(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: str, problem: str
) -> None:
    (tmp_path / "own.py").write_text(content)
    with monkeypatch.context() as patched:
        patched.setattr(tasks, "__path__", [*tasks.__path__, str(tmp_path)])
        patched.setattr("tasks.registry._known", registry._known.__wrapped__)
        with pytest.raises(UserError, match=problem):
            find_task("gsm8k")
    sys.modules.pop("tasks.own", None)
    assert find_task("gsm8k").name == "gsm8k"


@pytest.mark.parametrize("name", tasks.names())
def test_files_of_a_task_never_collide(name: str) -> None:
    task = tasks.find(name)
    files = {file for files in task.files.values() for file in files}
    assert len({file.local for file in files}) == len(files)
    assert all("/" not in file.local for file in files)
    assert not task.files or set(task.files) == set(task.splits)


def test_revisions_change_the_address_only() -> None:
    file = SourceFile("hub", "datasets/a/b/resolve/main/c/d.parquet")
    assert file.at("main") == file.path
    assert file.at("abc") == "datasets/a/b/resolve/abc/c/d.parquet"
    assert file.local == "c-d.parquet"


@pytest.mark.parametrize("labels", ["ABC", "123"])
def test_choices_are_asked_as_the_reference_asks(tmp_path: Path, labels: str) -> None:
    """Its words, and the labels of the data set, each without a space before it."""
    row = {"question": "Which?", "choices": {"text": ["x", "y", "z"], "label": list(labels)}, "answerKey": labels[2]}
    example = write_rows(tasks.find("arc-easy"), tmp_path, "test", [row])[0]
    a, b, c = labels
    assert example.letters == (a, b, c)
    assert example.messages == [
        {
            "role": "user",
            "content": f"Multiple Choice question: Which?\n- x={a}\n- y={b}\n- z={c}\n\n"
            "Respond only with the letter of the correct answer.",
        },
        {"role": "assistant", "content": c},
    ]


def test_letters_are_graded_alone(tmp_path: Path) -> None:
    row = {"question": "Which?", "choices": ["w", "x", "y", "z"], "answer": 2}
    task = write_rows(tasks.find("mmlu"), tmp_path, "test", [row])
    example = task[0]
    assert task.grade(example, "C") and task.grade(example, " C.\n")
    assert not any(task.grade(example, answer) for answer in ("A", "c", "CC", "C, I think", ""))
    assert (task.reward(example, "C"), task.reward(example, "B")) == (1.0, 0.0)


def test_rows_are_shuffled_by_the_seed(tmp_path: Path) -> None:
    rows = [{"question": str(i), "answer": f"#### {i}"} for i in range(50)]
    kind = tasks.find("gsm8k")
    write_rows(kind, tmp_path, "train", rows)
    order = [[example.reference for example in kind(tmp_path, "train", seed=seed)] for seed in (42, 42, 7)]
    assert order[0] == order[1] != order[2]
    assert sorted(map(int, order[0])) == sorted(map(int, order[2])) == list(range(50))


def test_calculations_become_calls_of_the_tool() -> None:
    answer = "She eats 16 - 3 = <<16-3=13>>13.\n<<5=5>> odd << =1>>\n#### 1,300"
    assert solution_parts(answer) == [
        {"type": "text", "text": "She eats 16 - 3 = "},
        {"type": "python", "text": "16-3"},
        {"type": "python_output", "text": "13"},
        {"type": "text", "text": "13.\n"},
        {"type": "python", "text": "5"},
        {"type": "python_output", "text": "5"},
        {"type": "text", "text": " odd "},
        {"type": "python", "text": " "},
        {"type": "python_output", "text": "1"},
        {"type": "text", "text": "\n#### 1,300"},
    ]


@pytest.mark.parametrize(
    ("text", "strict", "lenient"),
    [
        ("#### 18", "18", "18"), ("so\n#### 1,234,567 apples", "1234567", "1234567"), ("####-5", None, "-5"),
        ("#### $12.50", None, "12.5"), ("#### -$3", None, "-3"), ("#### 7.", "7.", "7"), ("#### .5", ".5", "0.5"),
        ("#### 5 #### 6", "5", "5"), ("18", None, None), ("#### x", None, None), ("#### 18.00", "18.00", "18"),
        ("#### x\n#### 18", "18", "18"), ("####  18", None, "18"), ("##### 18", "18", "18"), ("#### -3", "-3", "-3"),
        ("#### \u0661\u0668", None, None),
    ],
)  # fmt: skip
def test_final_numbers(text: str, strict: str | None, lenient: str | None) -> None:
    """As written and as the reference reads it; and, for the lenient verdict, by its value."""
    assert final_number(text) == strict
    assert same_number(text, lenient or "18") == (lenient is not None)
    assert not same_number(text, "77")


def test_gsm8k_is_graded_as_the_reference_does_and_leniently_beside_it(tmp_path: Path) -> None:
    rows = [{"question": "How many?", "answer": "It is <<9+9=18>>18.\n#### 18"}]
    task = write_rows(tasks.find("gsm8k"), tmp_path, "test", rows)
    example = task[0]
    for said, strict, lenient in (
        ("#### 18", True, True), ("#### 18 apples", True, True), ("#### 1,8", True, True), ("#### 18.0", False, True),
        ("#### $18", False, True), ("####18", False, True), ("#### 17\n#### 18", False, False), ("18", False, False),
        ("", False, False),
    ):  # fmt: skip
        assert (task.grade(example, said), task.lenient(example, said)) == (strict, lenient), said
    assert task.reward(example, "#### 18.0") == 0.0


PROMPT = 'import math\n\ndef helper(x):\n    return x\n\ndef f(x):\n    """Double."""\n'
WHOLE = "def helper(x):\n    return x\ndef f(x):\n    return helper(2 * x)"
ALONE = "def f(x):\n    return helper(2 * x)"


@pytest.mark.parametrize(
    ("completion", "strict", "lenient"),
    [
        (f"Sure!\n```python\n{WHOLE}\n```\nDone.", True, True),
        (f"```\n{WHOLE}\n```\n```python\nx\n```", True, True),
        (WHOLE, True, True),
        (f"```python\n{ALONE}\n```", False, True),  # the reference knows no helper but the program's own
        ("    return helper(2 * x)\n", False, True),  # nor the header
        (f"```python\n{WHOLE}", False, True),  # nor a block that is not closed
        (f"```py\n{WHOLE}\n```", False, True),
        ("```python\nprint(1)\n```", False, False),
    ],
)
def test_programs_are_the_references_and_lenient_ones_stand_beside(
    tmp_path: Path, completion: str, strict: bool, lenient: bool
) -> None:
    test = "def check(candidate):\n    assert candidate(3) == helper(6)\n"
    rows = [{"prompt": PROMPT, "canonical_solution": "    return 2 * x\n", "test": test, "entry_point": "f"}]
    task = write_rows(tasks.find("humaneval"), tmp_path, "test", rows)
    for verdict, expected in ((task.grade(task[0], completion), strict), (task.lenient(task[0], completion), lenient)):
        assert isinstance(verdict, Program)
        assert _passes(verdict) == expected


def _passes(program: Program) -> bool:
    """Whether a program of this file's own passes its test; run here, without the sandbox."""
    try:
        space, test = {}, {}
        exec(program.source, space)
        exec(program.test, test)
        test["check"](space[program.entry_point])
    except Exception:
        return False
    return True


def test_identity_files_are_checked_by_line(tmp_path: Path) -> None:
    good = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "I am nanochat."}]
    path = tmp_path / "identity.jsonl"
    path.write_text(json.dumps(good) + "\n\n" + json.dumps({"messages": good}) + "\n", encoding="utf-8-sig")
    assert read_conversations(path) == [good, good]
    assert len(tasks.find("identity")(tmp_path, "train")) == 2
    for line, problem in (
        (b"\xff\xfe", "line 2: not UTF-8"),
        (b"{", "line 2: not JSON"),
        (b"[" * 20_000, "line 2: nested more than 200 deep"),
        (
            b'[{"role": "user", "content": "' + b"a" * (1 << 20) + b'"}]',
            "line 2: more than 1,048,576 bytes",
        ),
        (rb'[{"role": "user", "content": "\ud83d"}, {"role": "assistant", "content": "b"}]', "line 2: not JSON"),
        (b'[{"role": "user", "content": NaN}]', "line 2: not JSON"),
        (b'"text"', "line 2: a conversation is a list"),
        (json.dumps(good[:1]).encode(), "line 2: the last message must be the assistant's"),
        (json.dumps(good + good[1:]).encode(), "line 2: message 3 is from 'assistant' and must be from 'user'"),
        (b'[{"role": "user"}]', "line 2: message 1 must have 'role' and 'content'"),
        (
            b'[{"role": "user", "content": [{"type": "text", "text": "a"}]}]',
            "line 2: message 1: the content must be text",
        ),
    ):
        path.write_bytes(json.dumps(good).encode() + b"\n" + line + b"\n")
        with pytest.raises(DataError, match=problem):
            read_conversations(path)
    path.write_text("\n")
    with pytest.raises(DataError, match="no conversation"):
        read_conversations(path)


def test_damaged_and_missing_files_are_one_sentence(tmp_path: Path) -> None:
    kind = tasks.find("gsm8k")
    with pytest.raises(DataError, match="missing"):
        len(kind(tmp_path, "test"))
    (tmp_path / kind.files["test"][0].local).write_bytes(b"PAR1 cut")
    with pytest.raises(DataError, match="not a readable parquet file"):
        len(kind(tmp_path, "test"))


CHOICES = {"text": ["x", "y"], "label": ["A", "B"]}
RIGHT = {
    "arc-easy": {"question": "q", "choices": CHOICES, "answerKey": "B"},
    "mmlu": {"question": "q", "choices": ["a", "b", "c", "d"], "answer": 3, "subject": "s"},
    "gsm8k": {"question": "q", "answer": "#### 5"},
    "humaneval": {"prompt": "def f():\n", "canonical_solution": "", "test": "def check(f): ...", "entry_point": "f"},
    "smoltalk": {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]},
}


@pytest.mark.parametrize(
    ("name", "changed", "problem"),
    [
        ("arc-easy", {"answerKey": "C"}, "answerKey: 'C' is none of the labels A, B"),
        ("arc-easy", {"answerKey": None}, "answerKey: "),
        ("arc-easy", {"choices": CHOICES | {"text": [], "label": []}}, "choices.text: "),
        ("arc-easy", {"choices": CHOICES | {"text": ["x", "y", "z"]}}, "choices: each needs a label"),
        ("arc-easy", {"choices": CHOICES | {"label": ["B", "B"]}}, "choices: each needs a label"),
        ("arc-easy", {"choices": CHOICES | {"label": ["A", "(B)"]}}, "choices.label.1: "),
        ("arc-easy", {"question": None}, "question: "),
        ("mmlu", {"answer": 4}, "answer: "),
        ("mmlu", {"answer": -1}, "answer: "),
        ("mmlu", {"answer": None}, "answer: "),
        ("mmlu", {"choices": ["a", "b", "c"]}, "choices: "),
        ("mmlu", {"choices": []}, "choices: "),
        ("mmlu", {"choices": ["a", "b", "c", None]}, "choices.3: "),
        ("gsm8k", {"answer": "five"}, "answer: it must end with '#### ' and a number"),
        ("gsm8k", {"answer": "#### ."}, "answer: it must end with '#### ' and a number"),
        ("gsm8k", {"question": None}, "question: "),
        ("humaneval", {"entry_point": "g"}, "entry_point: the prompt defines no function 'g'"),
        ("humaneval", {"test": "assert f()"}, "test: it defines no function 'check'"),
        ("humaneval", {"prompt": None}, "prompt: "),
        ("smoltalk", {"messages": []}, "a conversation is a list of messages"),
        ("smoltalk", {"messages": [{"role": "robot", "content": "a"}]}, "message 1 has the role 'robot'"),
        ("smoltalk", {"messages": [{"role": "user", "content": None}]}, "messages.0.content: "),
    ],
)
def test_a_row_that_is_wrong_is_named(tmp_path: Path, name: str, changed: dict, problem: str) -> None:
    kind = tasks.find(name)
    task = write_rows(kind, tmp_path, "test", [RIGHT[name], RIGHT[name] | changed])
    path = tmp_path / kind.files["test"][0].local
    for read in (task.check, lambda: list(task)):
        with pytest.raises(DataError, match=rf"row 1 of task {name}: .*{re.escape(problem)}") as error:
            read()
        assert error.value.path == path
    assert write_rows(kind, tmp_path, "test", [RIGHT[name]] * 3).check() == 3


@pytest.mark.parametrize(
    ("column", "problem"),
    [
        (pyarrow.array([True]), "answer: "),
        (pyarrow.array(["1"]), "answer: "),
        (pyarrow.array([1.0]), "answer: "),
        (None, "the column 'answer' of task mmlu is missing"),
    ],
)
def test_a_column_of_another_type_is_named(tmp_path: Path, column: pyarrow.Array | None, problem: str) -> None:
    kind = tasks.find("mmlu")
    table = pyarrow.table({"question": ["q"], "choices": [["a", "b", "c", "d"]]})
    table = table if column is None else table.append_column("answer", column)
    pyarrow.parquet.write_table(table, tmp_path / kind.files["test"][0].local)
    with pytest.raises(DataError, match=problem):
        kind(tmp_path, "test").check()


def test_tables_that_hold_nothing_or_no_text(tmp_path: Path) -> None:
    kind = tasks.find("gsm8k")
    path = tmp_path / kind.files["test"][0].local
    table = pyarrow.table({"question": ["q", "q"], "answer": ["#### 1", "#### 2"]})
    latin = pyarrow.array([b"#### 1", b"caf\xe9 #### 1"], pyarrow.binary()).view(pyarrow.string())
    twice = pyarrow.Table.from_arrays([*table.columns, table.column(0)], names=[*table.column_names, "question"])
    for other, problem in (
        (table.slice(0, 0), "this file of task gsm8k has no row"),
        (table.set_column(1, "answer", latin), r"row 1 of task gsm8k: its text is not UTF-8 \(byte 3\)"),
        (twice, "the column 'question' of task gsm8k is there twice"),
    ):
        pyarrow.parquet.write_table(other, path)
        with pytest.raises(DataError, match=problem):
            kind(tmp_path, "test").check()


def test_a_split_without_rows_is_no_split(tmp_path: Path) -> None:
    class Nothing(Task):
        name = "nothing"
        kind = "chat"
        splits = ("train",)

        def __len__(self) -> int:
            return 0

        def __getitem__(self, index: int) -> Example:
            raise IndexError(index)

    with pytest.raises(DataError, match="task nothing has no row in its split 'train'"):
        Nothing(tmp_path, "train").check()


@pytest.mark.parametrize("name", [*HUB, "identity"])
def test_the_mirrors_rows_are_whole(name: str, tmp_path: Path, mirror: Path) -> None:
    """Every reference answer is right, and the first rows of every split are conversations."""
    kind = tasks.find(name)
    folder = fill(name, tmp_path, mirror)
    for split in kind.splits:
        task = kind(folder, split)
        for index in range(min(len(task), 300)):
            example = task[index]
            roles = [message["role"] for message in example.messages]
            first = roles[0] == "system"
            assert roles[first:] == ["user", "assistant"] * ((len(roles) - first) // 2)
            answer = example.messages[-1]["content"]
            said = answer if isinstance(answer, str) else "".join(p["text"] for p in answer if p["type"] == "text")
            assert task.lenient(example, said) is not False
            if kind.kind in ("choice", "generative"):
                assert task.grade(example, said) is True
            elif kind.kind == "program":
                assert isinstance(task.grade(example, said), Program)
