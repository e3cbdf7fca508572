"""Conversations as ids: what is in them, what is trained, where they are cut, what is refused."""

from __future__ import annotations

from typing import Any

import pytest

from nanochat.spec.errors import UserError
from nanochat.tokenizer import Tokenizer
from nanochat.tokenizer.chat import least_prompt, render_conversation, render_prompt


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.train(["abc"], vocab_size=265)


def user(text: str) -> dict[str, Any]:
    return {"role": "user", "content": text}


def assistant(content: Any) -> dict[str, Any]:
    return {"role": "assistant", "content": content}


def system(text: str) -> dict[str, Any]:
    return {"role": "system", "content": text}


TOOL = [
    {"type": "text", "text": "so "},
    {"type": "python", "text": "1+1"},
    {"type": "python_output", "text": "2"},
    {"type": "text", "text": "2."},
]


def test_text_and_masks(tokenizer: Tokenizer) -> None:
    rendered = render_conversation(tokenizer, [user("hi"), assistant("yes"), user("so"), assistant(TOOL)])
    assert tokenizer.decode(rendered.ids) == (
        "<|bos|><|user_start|>hi<|user_end|><|assistant_start|>yes<|assistant_end|>"
        "<|user_start|>so<|user_end|><|assistant_start|>so <|python_start|>1+1<|python_end|>"
        "<|output_start|>2<|output_end|>2.<|assistant_end|>"
    )
    trained = [i for i, mask in zip(rendered.ids, rendered.mask, strict=True) if mask]
    assert tokenizer.decode(trained) == "yes<|assistant_end|>so <|python_start|>1+1<|python_end|>2.<|assistant_end|>"
    assert rendered.cut == 0


def test_a_system_message_joins_the_first_user_message(tokenizer: Tokenizer) -> None:
    messages = [system("be kind"), user("hi"), assistant("yes")]
    rendered = render_conversation(tokenizer, messages)
    assert rendered == render_conversation(tokenizer, [user("be kind\n\nhi"), assistant("yes")])
    assert messages[1] == user("hi")  # nothing that was given is changed


def test_a_prompt_ends_where_the_model_answers(tokenizer: Tokenizer) -> None:
    ids = render_prompt(tokenizer, [user("a"), assistant("b"), user("c")])
    assert tokenizer.decode(ids).endswith("<|user_start|>c<|user_end|><|assistant_start|>")
    with pytest.raises(UserError, match="the last message must be the user's"):
        render_prompt(tokenizer, [user("a"), assistant("b")])


def test_the_fewest_tokens_of_a_prompt(tokenizer: Tokenizer) -> None:
    for messages in ([user("abc" * 50)], [system("a"), user("b")], [user("a"), assistant(TOOL), user("caf\u00e9")]):
        least = least_prompt(tokenizer, messages)
        assert 0 < least <= len(render_prompt(tokenizer, messages))
    assert least_prompt(tokenizer, [user("a" * 1000)]) == 1000  # no token of this vocabulary is longer than a byte


def test_cuts_are_after_an_answer(tokenizer: Tokenizer) -> None:
    messages = [user("ab"), assistant("cd"), user("efg"), assistant("hij")]
    whole = render_conversation(tokenizer, messages)
    assert len(whole.ids) == 9 + 10
    for limit in range(9, 19):
        cut = render_conversation(tokenizer, messages, limit)
        assert (cut.ids, cut.mask, cut.cut) == (whole.ids[:9], whole.mask[:9], 2)
    assert render_conversation(tokenizer, messages, 19) == whole


def test_a_first_exchange_that_is_too_long_loses_its_end(tokenizer: Tokenizer) -> None:
    messages = [user("ab"), assistant("cd"), user("efg"), assistant("hij")]
    cut = render_conversation(tokenizer, messages, 7)
    assert tokenizer.decode(cut.ids) == "<|bos|><|user_start|>ab<|user_end|><|assistant_start|>c"
    assert (cut.mask, cut.cut) == ([0, 0, 0, 0, 0, 0, 1], 3)


@pytest.mark.parametrize(
    ("messages", "problem"),
    [
        (None, "row 7: a conversation is a list of messages"),
        ([], "row 7: a conversation is a list of messages"),
        (["hi"], "row 7: message 1 must have 'role' and 'content'"),
        ([{"role": "user"}], "row 7: message 1 must have 'role' and 'content'"),
        ([{"role": "bot", "content": ""}], "row 7: message 1 has the role 'bot'"),
        ([assistant("a")], "row 7: message 1 is from 'assistant' and must be from 'user'"),
        ([user("a"), user("b")], "row 7: message 2 is from 'user' and must be from 'assistant'"),
        ([system("s"), assistant("b")], "row 7: message 2 is from 'assistant' and must be from 'user'"),
        ([user("a"), assistant("b"), system("c")], "row 7: message 3 is from 'system'"),
        ([system("s")], "row 7: there is no user message"),
        ([user(1)], "row 7: message 1: the content must be text"),  # type: ignore[arg-type]
        ([user("a"), assistant(None)], "must be text or a list of parts"),
        ([user("a"), assistant([{"type": "image", "text": ""}])], "must have 'text' and a 'type' of text"),
        ([user("\ud800")], "half a surrogate pair"),
    ],
)
def test_what_is_refused(tokenizer: Tokenizer, messages: Any, problem: str) -> None:
    with pytest.raises(UserError, match=problem):
        render_conversation(tokenizer, messages, where="row 7")
    with pytest.raises(UserError, match=problem):
        render_prompt(tokenizer, messages, where="row 7")
