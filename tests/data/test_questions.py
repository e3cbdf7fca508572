"""Example questions come from what was trained on; they are few, short, and the same each time."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from nanochat.data.mixture import Mixture, Part
from nanochat.data.questions import LONGEST, MOST, TRIED, example_questions, read_questions
from nanochat.data.tokenfile import ConversationFile, write_conversations
from nanochat.tokenizer import Tokenizer
from nanochat.tokenizer.chat import render_conversation

TOKENIZER = Tokenizer.train(["What is your name? How are you? " * 20], vocab_size=280)


def part(folder: Path, *questions: str, **rows: int) -> Part:
    conversations = []
    for question in questions:
        messages = [{"role": "user", "content": question}, {"role": "assistant", "content": "Yes."}]
        rendered = render_conversation(TOKENIZER, messages)
        conversations.append((np.asarray(rendered.ids), np.asarray(rendered.mask)))
    folder.mkdir()
    write_conversations(folder, conversations, special=TOKENIZER.special, vocab_size=TOKENIZER.vocab_size)
    return Part(ConversationFile(folder), **rows)


def found(*parts: Part) -> list[str]:
    return example_questions(Mixture(parts, seed=1), TOKENIZER.decode)


def test_each_part_gives_its_first_questions_in_turn(tmp_path: Path) -> None:
    parts = [part(tmp_path / "a", "A one?", "A two?", "A one?"), part(tmp_path / "b", "B one?", "A one?", "B two?")]
    assert found(*parts) == found(*parts) == ["A one?", "B one?", "A two?", "B two?"]
    many = part(tmp_path / "many", *(f"Number {number}?" for number in range(50)))
    assert found(many) == [f"Number {number}?" for number in range(MOST)]


def test_only_rows_that_are_trained_on_are_looked_at(tmp_path: Path) -> None:
    long = ["x " * LONGEST] * TRIED
    assert found(part(tmp_path / "rows", "one?", "two?", rows=1)) == ["one?"]
    assert found(part(tmp_path / "late", *long, "never found?")) == []


@pytest.mark.parametrize("odd", ["", " ", "a\nb", "\x1b[2J", "\u202eHi", "x" * (LONGEST + 1), "system\n\nquestion"])
def test_what_is_no_short_line_is_passed_over(tmp_path: Path, odd: str) -> None:
    assert found(part(tmp_path / "odd", odd, "good?")) == ["good?"]
    assert read_questions({"questions": [odd, "good?"]}) == ("good?",)


@pytest.mark.parametrize(
    "values", [{}, {"questions": None}, {"questions": "one?"}, {"questions": {"one?": 1}}, {"questions": [1, None]}]
)
def test_a_document_without_questions_has_none(values: dict[str, object]) -> None:
    assert read_questions(values) == ()
    assert len(read_questions({"questions": ["one?"] * 1000})) == MOST
