"""A reply's text as it grows: stop texts, halves of characters, and the tool's state machine."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nanochat.inference.reply import Piece, Reply, Vocabulary
from nanochat.tokenizer import Tokenizer


def feed(reply: Reply, tokens: list[int]) -> list[Piece]:
    pieces = []
    for token in tokens:
        pieces += reply.accept(token)
        if reply.ended:
            break
    return [*pieces, *reply.close()]


def text_of(pieces: list[Piece]) -> str:
    return "".join(piece.text for piece in pieces)


@given(st.text(max_size=40), st.lists(st.text(min_size=1, max_size=4), max_size=3))
def test_what_is_shown_ends_before_the_first_stop_text(tokenizer: Tokenizer, text: str, stops: list[str]) -> None:
    reply = Reply(Vocabulary(tokenizer), stop=tuple(stops))
    shown = text_of(feed(reply, tokenizer.encode(text)))
    cuts = [at for at in (text.find(stop) for stop in stops) if at >= 0]
    if cuts:
        # A token may hold two stop texts; the one that begins first wins among those that are complete.
        assert text.startswith(shown) and not any(stop in shown for stop in stops)
        assert any(text.startswith(stop, len(shown)) for stop in stops)
    else:
        assert shown == text
    assert shown == reply.text
    assert reply.ended == bool(cuts)


def test_half_a_character_is_held_back(tokenizer: Tokenizer) -> None:
    tokens = tokenizer.encode("\U0001f600")
    assert len(tokens) > 1
    reply = Reply(Vocabulary(tokenizer))
    assert all(reply.accept(token) == () for token in tokens[:-1])
    assert reply.accept(tokens[-1]) == (Piece("text", "\U0001f600"),)


def test_a_reply_that_ends_in_half_a_character_says_so(tokenizer: Tokenizer) -> None:
    reply = Reply(Vocabulary(tokenizer))
    assert text_of(feed(reply, tokenizer.encode("\U0001f600")[:-1])) == "\ufffd"


def test_a_call_of_the_tool_forces_its_output(tokenizer: Tokenizer) -> None:
    special, reply = tokenizer.special, Reply(Vocabulary(tokenizer))
    feed(reply, [*tokenizer.encode("So "), special["python_start"], *tokenizer.encode("12+30"), special["python_end"]])
    assert list(reply.forced) == [special["output_start"], *tokenizer.encode("42"), special["output_end"]]
    feed(reply, [*reply.forced, *tokenizer.encode("it is 42")])
    assert reply.parts == (
        Piece("text", "So "), Piece("python", "12+30"), Piece("python_output", "42"), Piece("text", "it is 42"),
    )  # fmt: skip
    assert reply.text == "So it is 42"


def test_a_call_without_a_value_forces_nothing(tokenizer: Tokenizer) -> None:
    special, reply = tokenizer.special, Reply(Vocabulary(tokenizer))
    feed(reply, [special["python_start"], *tokenizer.encode("open('x')"), special["python_end"]])
    assert not reply.forced


def test_closing_what_was_not_opened_changes_nothing(tokenizer: Tokenizer) -> None:
    special, reply = tokenizer.special, Reply(Vocabulary(tokenizer))
    feed(reply, [special["python_end"], special["output_end"], special["user_start"], *tokenizer.encode("Hm")])
    assert reply.parts == (Piece("text", "Hm"),)
    assert not reply.forced


def test_stop_texts_hold_for_text_alone(tokenizer: Tokenizer) -> None:
    special, reply = tokenizer.special, Reply(Vocabulary(tokenizer), stop=("+",))
    feed(reply, [special["python_start"], *tokenizer.encode("1+1"), special["python_end"]])
    assert not reply.ended


@pytest.mark.parametrize("name", ["assistant_end", "bos"])
def test_terminal_tokens_end_the_reply(tokenizer: Tokenizer, name: str) -> None:
    reply = Reply(Vocabulary(tokenizer))
    feed(reply, [*tokenizer.encode("Yes"), tokenizer.special[name]])
    assert reply.ended and reply.text == "Yes"
