"""Chats that are longer than the context, and answers that are gone on with."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import httpx
import openai
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nanochat.inference import ContextTooLong
from nanochat.serving.chat_prompt import chat_prompt
from nanochat.serving.messages import ChatMessage, conversation
from nanochat.tokenizer import Tokenizer
from nanochat.tokenizer.chat import render_prompt

SYSTEM = {"role": "system", "content": "Be brief."}


def said(role: str, text: str) -> dict[str, str]:
    return {"role": role, "content": text}


def exchanges(count: int, size: int = 20) -> list[dict[str, str]]:
    """So many questions with their answers."""
    pairs = [(said("user", f"q{i} " + "?" * size), said("assistant", f"a{i} " + "!" * size)) for i in range(count)]
    return [message for pair in pairs for message in pair]


def post(server: Any, **body: Any) -> httpx.Response:
    return httpx.post(f"{server.url}/v1/chat/completions", json={"max_tokens": 4, "seed": 1, **body}, timeout=60)


def read(messages: Sequence[dict[str, Any]]) -> list[ChatMessage]:
    return [ChatMessage.model_validate(message) for message in messages]


def rendered(tokenizer: Tokenizer, messages: Sequence[dict[str, Any]]) -> list[int]:
    return render_prompt(tokenizer, conversation(read(messages)))


def test_the_oldest_exchanges_are_left_out_and_the_answer_says_how_many(server: Any, tokenizer: Tokenizer) -> None:
    messages = [SYSTEM, *exchanges(40), said("user", "And now?")]
    assert post(server, messages=messages).status_code == 400
    assert post(server, messages=messages, truncation="disabled").status_code == 400
    answer = post(server, messages=messages, truncation="auto").json()
    dropped = answer["dropped_messages"]
    assert dropped and dropped % 2 == 0
    kept = [SYSTEM, *messages[1 + dropped :]]
    assert answer["usage"]["prompt_tokens"] == len(rendered(tokenizer, kept)) <= 508
    assert len(rendered(tokenizer, [SYSTEM, *messages[dropped - 1 :]])) > 508  # one exchange fewer would be too long
    same = post(server, messages=kept).json()
    assert same["choices"] == answer["choices"] and "dropped_messages" not in same


def test_a_stream_says_it_in_every_chunk_and_what_fits_is_whole(server: Any) -> None:
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as client:
        for messages, some in (([*exchanges(40), said("user", "And now?")], True), ([said("user", "Hi")], False)):
            asked: Any = {"messages": messages, "extra_body": {"truncation": "auto"}}
            chunks = list(client.chat.completions.create(model="tiny", max_tokens=3, stream=True, **asked))
            counts = {(chunk.model_extra or {})["dropped_messages"] for chunk in chunks}
            assert len(counts) == 1 and bool(counts.pop()) == some


def test_room_is_left_for_the_answer_but_no_more_than_a_quarter(server: Any) -> None:
    messages = [*exchanges(40), said("user", "And now?")]
    for longest, room in ((60, 60), (400, 128)):
        answer = post(server, messages=messages, truncation="auto", max_tokens=longest, min_tokens=longest).json()
        assert answer["usage"]["prompt_tokens"] <= 512 - room
        assert answer["usage"]["completion_tokens"] >= room


def test_a_last_question_that_is_too_long_by_itself_is_refused(server: Any) -> None:
    messages = [*exchanges(3), said("user", "ox " * 2000)]
    refused = post(server, messages=messages, truncation="auto")
    assert refused.status_code == 400 and refused.json()["error"]["code"] == "context_length_exceeded"
    odd = post(server, messages=exchanges(1)[:1], truncation="some")
    assert odd.json()["error"]["message"] == "'truncation' is 'some' and must be 'auto' or 'disabled'."


ROLES = st.lists(st.sampled_from(["system", "user", "assistant"]), max_size=12)


@settings(max_examples=60, deadline=None)
@given(roles=ROLES, size=st.integers(0, 30), context=st.integers(40, 200), answer=st.integers(1, 100))
def test_as_few_as_possible_are_left_out_and_never_the_question(
    tokenizer: Tokenizer, roles: list[str], size: int, context: int, answer: int
) -> None:
    messages = read([*(said(role, f"{i}" + "." * size) for i, role in enumerate(roles)), said("user", "?")])
    room = min(answer, context // 4)
    lead = next(i for i, message in enumerate(messages) if message.role != "system")

    def tokens(dropped: int) -> int:
        kept = [*messages[:lead], *messages[lead + dropped :]]
        return len(render_prompt(tokenizer, conversation(kept)))

    starts = range(lead + 1, len(messages))
    allowed = [
        0,
        *(i - lead for i in starts if messages[i - 1].role == "assistant" and messages[i].role != "assistant"),
    ]
    try:
        found = chat_prompt(messages, tokenizer, context=context, answer=answer, truncate=True)
    except ContextTooLong:
        assert tokens(allowed[-1]) > context - room
        return
    assert len(found.ids) == tokens(found.dropped)
    fitting = [dropped for dropped in allowed if tokens(dropped) + room <= context]
    assert found.dropped == min(fitting, default=allowed[-1])


def test_an_answer_is_gone_on_with(server: Any, tokenizer: Tokenizer) -> None:
    question = said("user", "What is 12 + 30?")
    whole = post(server, messages=[question], max_tokens=30, temperature=0).json()["choices"][0]["message"]["content"]
    begun = [question, said("assistant", "It is")]
    prompt = rendered(tokenizer, [question]) + tokenizer.encode("It is")
    on = post(server, messages=begun, continue_final_message=True).json()
    assert on["usage"]["prompt_tokens"] == len(prompt)
    plain = httpx.post(
        f"{server.url}/v1/completions", json={"prompt": prompt, "max_tokens": 4, "seed": 1}, timeout=60
    ).json()
    assert on["choices"][0]["message"]["content"] == plain["choices"][0]["text"]
    empty = post(
        server, messages=[question, said("assistant", "")], continue_final_message=True, max_tokens=30, temperature=0
    )
    assert empty.json()["choices"][0]["message"]["content"] == whole
    tokens = httpx.post(f"{server.url}/tokenize", json={"messages": begun, "continue_final_message": True}).json()
    assert tokens["tokens"] == prompt


@pytest.mark.parametrize(
    ("last", "continued", "problem"),
    [
        (said("assistant", "It is"), False, "end with an answer of the assistant"),
        (said("assistant", "It is"), None, "end with an answer of the assistant"),
        (
            said("user", "Hi"),
            True,
            "end with no answer of the assistant that 'continue_final_message'",
        ),
        ({"role": "assistant", "parts": [{"type": "python", "text": "1+1"}]}, True, "end with a step of the tool"),
    ],
)
def test_what_can_not_be_gone_on_with_is_said(server: Any, last: Any, continued: bool | None, problem: str) -> None:
    messages = [said("user", "Hi"), last]
    for path in ("/v1/chat/completions", "/tokenize"):
        body = {"messages": messages, "continue_final_message": continued}
        refused = httpx.post(f"{server.url}{path}", json=body)
        assert refused.status_code == 400 and refused.json()["error"]["param"] == "messages"
        assert refused.json()["error"]["message"].startswith(f"'messages' {problem}")
