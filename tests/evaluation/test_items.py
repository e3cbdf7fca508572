"""The file of items: what is kept of each, its bounds, and what a killed process leaves."""

from __future__ import annotations

from pathlib import Path

import pytest

from nanochat.evaluation import items as module
from nanochat.evaluation.items import ANSWER, CHOICES, PROMPT, Item, ItemWriter, read_items
from nanochat.spec.errors import UserError


def an_item(index: int, *, prompt: str = "What is 2 + 2?") -> Item:
    return Item.of(
        "sums", index, prompt=prompt, expected="4", answers=["5", "4"], verdicts=[False, True], lenient=[True]
    )


def test_items_come_back_as_they_were_written(tmp_path: Path) -> None:
    choice = Item.of(
        "letters",
        3,
        prompt="A\u00e9\U0001f600",
        choices=["x", "y"],
        scores=[-1.5, float("nan")],
        answers=["x"],
        verdicts=[True],
    )
    with ItemWriter(tmp_path / "items.jsonl") as writer:
        writer.add([an_item(0), choice])
    with ItemWriter(tmp_path / "items.jsonl") as writer:
        writer.add([an_item(1)])
    assert list(read_items(tmp_path / "items.jsonl")) == [an_item(0), choice, an_item(1)]
    assert choice.scores == [-1.5, None] and an_item(0).right == 0.5


def test_texts_are_cut_and_questions_told_apart(tmp_path: Path) -> None:
    long = "a" * (PROMPT + 1)
    item = Item.of(
        "sums",
        0,
        prompt=long + "end",
        choices=["c" * 999] * 99,
        scores=[0.0] * 99,
        answers=["b" * 9999],
        verdicts=[True],
    )
    assert (len(item.prompt), item.prompt[-3:], len(item.choices), len(item.scores)) == (
        PROMPT,
        "end",
        CHOICES,
        CHOICES,
    )
    assert len(item.answers[0]) == ANSWER
    assert item.digest != Item.of("sums", 0, prompt="a" + long + "end", answers=[""], verdicts=[True]).digest


def test_a_file_that_is_full_goes_on_with_figures_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MOST", 500)
    with ItemWriter(tmp_path / "items.jsonl") as writer:
        writer.add(an_item(index) for index in range(20))
    found = list(read_items(tmp_path / "items.jsonl"))
    assert [item.index for item in found] == list(range(20)) and all(item.right == 0.5 for item in found)
    assert found[0].prompt and not found[-1].prompt and not found[-1].answers


def test_the_half_of_a_line_goes_when_writing_goes_on(tmp_path: Path) -> None:
    path = tmp_path / "items.jsonl"
    with ItemWriter(path) as writer:
        writer.add([an_item(0), an_item(1)])
    path.write_bytes(path.read_bytes()[:-5])
    with ItemWriter(path) as writer:
        writer.add([an_item(2)])
    assert [item.index for item in read_items(path)] == [0, 2]


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        (b"{", "not JSON"),
        (b'{"task": "a", "index": 0, "digest": "b", "verdicts": []}', "verdicts: "),
        (b'{"task": "a", "index": -1, "digest": "b", "verdicts": [true]}', "index: "),
        (b'{"task": "a", "index": 0, "digest": "b", "verdicts": [1]}', "verdicts"),
        (b'{"task": "a", "index": 0, "digest": "b", "verdicts": [true], "prompt": "' + b"a" * 5_000_000, "more than"),
    ],
    ids=range(5),
)
def test_a_line_that_is_no_item_is_named(tmp_path: Path, line: bytes, problem: str) -> None:
    path = tmp_path / "items.jsonl"
    with ItemWriter(path) as writer:
        writer.add([an_item(0)])
    with open(path, "ab") as file:
        file.write(line + b"\n")
    with pytest.raises(UserError, match=rf"items\.jsonl, line 2: .*{problem}"):
        list(read_items(path))


def test_one_process_writes_at_a_time(tmp_path: Path) -> None:
    path = tmp_path / "items.jsonl"
    with ItemWriter(path) as writer:
        writer.add([an_item(0)])
        with pytest.raises(UserError, match="being written by another process"):
            ItemWriter(path)
    with ItemWriter(path) as writer:
        writer.add([an_item(1)])
    assert len(list(read_items(path))) == 2
