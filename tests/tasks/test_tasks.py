"""The tasks: rows, prompts and graders."""

from __future__ import annotations

import json
import shutil
from decimal import Decimal
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest

import tasks
from tasks import DataError, Program, SourceFile, Task
from tasks.gsm8k import solution_parts
from tasks.humaneval import program_source
from tasks.identity import read_conversations
from tasks.parts import final_number

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


def test_choices_become_letters_whatever_their_labels(tmp_path: Path) -> None:
    row = {"question": "Which?", "choices": {"text": ["x", "y", "z"], "label": ["1", "2", "3"]}, "answerKey": "3"}
    task = write_rows(tasks.find("arc-easy"), tmp_path, "test", [row])
    example = task[0]
    assert example.letters == ("A", "B", "C")
    assert example.messages[-1] == {"role": "assistant", "content": "C"}
    assert "\n- x=A\n- y=B\n- z=C\n" in example.messages[0]["content"]
    assert task.grade(example, "C") and task.grade(example, " C.\n")
    assert not any(task.grade(example, answer) for answer in ("A", "c", "CC", "C, I think", ""))
    assert (task.reward(example, "C"), task.reward(example, "B")) == (1.0, 0.0)


def test_rows_are_shuffled_by_the_seed(tmp_path: Path) -> None:
    rows = [{"question": str(i), "answer": f"#### {i}"} for i in range(50)]
    kind = tasks.find("gsm8k")
    write_rows(kind, tmp_path, "train", rows)
    order = [[example.reference for example in kind(tmp_path, "train", seed=seed)] for seed in (42, 42, 7)]
    assert order[0] == order[1] != order[2]
    assert sorted(order[0]) == sorted(order[2]) == list(range(50))


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
    ("text", "number"),
    [
        ("#### 18", "18"), ("so\n#### 1,234,567 apples", "1234567"), ("####-5", "-5"), ("#### $12.50", "12.5"),
        ("#### -$3", "-3"), ("#### 7.", "7"), ("#### .5", "0.5"), ("#### 5 #### 6", "5"), ("18", None),
        ("#### x", None), ("#### 18.00", "18"),
    ],
)  # fmt: skip
def test_final_numbers(text: str, number: str | None) -> None:
    assert final_number(text) == (None if number is None else Decimal(number))


def test_programs_take_the_code_block_and_the_prompts_helpers() -> None:
    prompt = 'import math\n\ndef helper(x):\n    return x\n\ndef f(x):\n    """Double."""\n'
    whole = program_source(prompt, "f", "Sure!\n```python\ndef f(x):\n    return helper(2 * x)\n```\nDone.")
    body = program_source(prompt, "f", "    return helper(2 * x)\n")
    unclosed = program_source(prompt, "f", "```\ndef f(x):\n    return helper(2 * x)")
    for source in (whole, body, unclosed):
        space: dict = {}
        exec(source, space)
        assert space["f"](3) == 6
    assert "Sure" not in whole


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
            if kind.kind in ("choice", "generative"):
                assert task.grade(example, said) is True
            elif kind.kind == "program":
                assert isinstance(task.grade(example, said), Program)
