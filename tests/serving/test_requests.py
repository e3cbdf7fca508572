"""What clients send: the fields of a request, one by one, and how messages become a conversation."""

from __future__ import annotations

import json
import logging
from typing import Any

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from nanochat.serving.bodies import MAX_TEXT, UnknownFields
from nanochat.serving.messages import ChatMessage, conversation
from nanochat.serving.protocol import ChatRequest
from nanochat.tokenizer import Tokenizer
from nanochat.tokenizer.chat import render_prompt

HI: Any = [{"role": "user", "content": "Hi"}]
BELOW = {"max_tokens": 4, "seed": 1}


def post(server: Any, **fields: Any) -> httpx.Response:
    """POST a body as Python writes it, halves of surrogate pairs and numbers that are not finite included."""
    body = json.dumps({"messages": HI, **BELOW, **fields}).encode()
    address = f"{server.url}/v1/chat/completions"
    return httpx.post(address, content=body, headers={"Content-Type": "application/json"}, timeout=60)


def text(response: httpx.Response) -> str:
    assert response.status_code == 200, response.text
    return response.json()["choices"][0]["message"]["content"]


CHANGES_NOTHING: list[dict[str, Any]] = [
    {"frequency_penalty": 0, "presence_penalty": 0.0, "logit_bias": {}},
    {"n": 1, "top_p": 1, "store": True, "metadata": {"a": "b", "c": 1}, "user": "u", "safety_identifier": "s"},
    {"tools": [], "tool_choice": "none", "parallel_tool_calls": True, "functions": [], "function_call": "auto"},
    {"tool_choice": "auto", "function_call": "none", "modalities": ["text"], "audio": None},
    {"response_format": {"type": "text"}, "reasoning_effort": "low", "verbosity": "high", "service_tier": "auto"},
    {
        "prompt_cache_key": "k",
        "prompt_cache_retention": "24h",
        "prediction": {"type": "content", "content": "x"},
        "user": "u" * 1024,
    },
    {"stream_options": {"include_usage": True, "include_obfuscation": False}},
    {"top_logprobs": 0, "stop": [], "logprobs": False},
    {"stop": "", "web_search_options": None, "prompt_cache_options": {"ttl": "30m"}},
    {"temprature": 1, "thinking": {"type": "disabled"}, "chat_template_kwargs": {}, "best_of": 1},
    {"messages": [{"role": "user", "content": "Hi", "color": 1, "name": "Ann"}]},
    {
        "messages": [
            {"role": "user", "content": [{"type": "text", "text": "Hi", "cache_control": {"type": "ephemeral"}}]}
        ]
    },
    {name: None for name in ChatRequest.model_fields if name not in ("messages", "max_tokens", "seed")},
]


@pytest.mark.parametrize("fields", CHANGES_NOTHING)
def test_what_changes_nothing_is_taken(server: Any, fields: dict[str, Any]) -> None:
    assert text(post(server, **fields)) == text(post(server))


MESSAGES: list[list[dict[str, Any]]] = [
    [{"role": "developer", "content": "Be brief."}, *HI],
    [
        {"role": "user", "content": "a", "name": None},
        {
            "role": "assistant",
            "content": "b",
            "refusal": None,
            "tool_calls": None,
            "function_call": None,
            "audio": None,
        },
        {"role": "user", "content": "c"},
    ],
]


@pytest.mark.parametrize("messages", MESSAGES)
def test_messages_with_all_that_clients_add(server: Any, messages: list[dict[str, Any]]) -> None:
    text(post(server, messages=messages))


def test_a_stream_takes_the_same_fields(server: Any) -> None:
    options = {"include_usage": True, "include_obfuscation": False}
    response = post(server, stream=True, stream_options=options, n=None, logprobs=None, colour="red")
    *chunks, done, _ = response.text.split("\n\n")
    assert done == "data: [DONE]"
    assert json.loads(chunks[-1].removeprefix("data: "))["usage"]["completion_tokens"] <= 4


@pytest.mark.parametrize("temperature", [1e-39, 5e-324, 1e-12])
def test_the_smallest_temperatures_give_the_greedy_answer(server: Any, temperature: float) -> None:
    greedy = text(post(server, temperature=0, max_tokens=12))
    assert text(post(server, temperature=temperature, max_tokens=12)) == greedy
    assert "\0" not in greedy


@pytest.mark.parametrize("all_of_them", [0, -1, 10**6])
def test_top_k_of_all(server: Any, all_of_them: int) -> None:
    request = {"temperature": 2, "max_tokens": 30}
    assert text(post(server, **request, top_k=all_of_them)) != text(post(server, **request))


def test_penalties_and_biases_change_the_answer(server: Any, tokenizer: Tokenizer) -> None:
    request: dict[str, Any] = {"temperature": 0, "max_tokens": 60, "min_tokens": 60, "logprobs": True}

    def tokens(**fields: Any) -> list[tuple[int, ...]]:
        answer = post(server, **request, **fields).json()["choices"][0]
        return [tuple(entry["bytes"]) for entry in answer["logprobs"]["content"]]

    usual = tokens()
    assert len(set(tokens(frequency_penalty=2, presence_penalty=2))) > len(set(usual))
    wanted = tokenizer.encode("q")[0]
    assert set(tokens(logit_bias={str(wanted): 100})) == {(ord("q"),)}
    first = next(token for token in range(tokenizer.vocab_size) if tuple(tokenizer.decode_bytes([token])) == usual[0])
    assert usual[0] not in tokens(logit_bias={str(first): -100})


REFUSED: list[tuple[dict[str, Any], str, str]] = [
    ({"tools": [{"type": "function"}]}, "calls no tools of yours", "tools"),
    ({"functions": [{"name": "f"}]}, "calls no tools of yours", "functions"),
    ({"tool_choice": "required"}, "calls no tools of yours", "tool_choice"),
    ({"tool_choice": {"type": "function"}}, "calls no tools of yours", "tool_choice"),
    ({"function_call": {"name": "f"}}, "calls no tools of yours", "function_call"),
    ({"response_format": {"type": "xml"}}, "can be held to text, json_object and", "response_format.type"),
    ({"response_format": {"type": "json_schema", "json_schema": {}}}, "missing", "response_format.json_schema.schema"),
    ({"response_format": "text"}, "'response_format' must be an object.", "response_format"),
    ({"modalities": ["text", "audio"]}, "more than text", "modalities"),
    ({"audio": {"voice": "alloy"}}, "neither speaks", "audio"),
    ({"web_search_options": {}}, "nor searches", "web_search_options"),
    ({"moderation": {"model": "omni-moderation-latest"}}, "moderates nothing", "moderation"),
    ({"messages": [{"role": "tool", "content": "4", "tool_call_id": "1"}]}, "knows no tools", "messages.0.role"),
    ({"messages": [{"role": "function", "content": "4", "name": "f"}]}, "knows no tools", "messages.0.role"),
    ({"messages": [{"role": "assistant", "tool_calls": [{}]}]}, "calls of tools", "messages.0.tool_calls"),
    ({"messages": [{"role": "assistant", "content": None, "audio": {"id": "a"}}]}, "sound", "messages.0.audio"),
    ({"messages": [{"role": "user", "content": None}]}, "'messages.0' has no 'content'.", "messages.0"),
    ({"messages": [{"role": "user"}]}, "'messages.0' has no 'content'.", "messages.0"),
    ({"messages": [{"content": "Hi"}]}, "'messages.0.role' is missing.", "messages.0.role"),
    ({"messages": ["Hi"]}, "'messages.0' must be an object.", "messages.0"),
    ({"messages": "Hi"}, "'messages' should be a valid list.", "messages"),
    ({"messages": [*HI, {"role": "assistant", "content": "Hello"}]}, "end with an answer", "messages"),
    ({"messages": [{"role": "user", "content": [{"type": "python", "text": "1"}]}]}, "parts of the tool", "messages.0"),
    ({"messages": [{"role": "user", "content": 5}]}, "'messages.0.content' should be a valid", "messages.0.content"),
    ({"logit_bias": {"320": 1}}, "names the token 320, and the model's are 0 to 319", "logit_bias"),
    ({"logit_bias": {"x": 1}}, "'logit_bias.x' should be a valid integer", "logit_bias.x"),
    ({"stop": [1]}, "'stop.0' should be a valid string", "stop.0"),
    ({"model": "gpt-" + "5" * 1021}, "at most 1024 characters", "model"),
    ({"user": "u" * 1025}, "at most 1024 characters", "user"),
]  # fmt: skip


@pytest.mark.parametrize(("fields", "sentence", "param"), REFUSED)
def test_what_cant_be_honoured_is_refused_in_a_sentence(
    server: Any, fields: dict[str, Any], sentence: str, param: str
) -> None:
    response = post(server, **fields)
    error = response.json()["error"]
    assert (response.status_code, error["param"]) == (400, param)
    assert sentence in error["message"] and error["message"].endswith(".")


@pytest.mark.parametrize(
    ("part", "sentence"),
    [
        (
            {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}},
            "is an image, and this model reads",
        ),
        ({"type": "input_audio", "input_audio": {"data": "", "format": "wav"}}, "is sound, and"),
        ({"type": "file", "file": {"file_id": "f"}}, "is a file, and"),
        ({"type": "video"}, "is of the type 'video', and"),
        ({"type": "text"}, "has no 'text'"),
        ({"type": "refusal", "text": "No."}, "has no 'refusal'"),
        ({"text": "Hi"}, "is missing"),
        ("Hi", "must be an object"),
    ],
)
def test_parts_that_are_no_text_are_refused_by_their_place(server: Any, part: Any, sentence: str) -> None:
    content = [{"type": "text", "text": "What is this?"}, part]
    error = post(server, messages=[{"role": "user", "content": content}]).json()["error"]
    assert sentence in error["message"]
    assert error["param"] in ("messages.0.content.1", "messages.0.content.1.type")


NUMBERS: dict[str, tuple[list[Any], list[Any]]] = {
    "temperature": ([0, 2, 1e-300, "0.5"], [-1e-9, 2.0001, 1e308, 10**400]),
    "top_p": ([0, 1e-300, 1], [-1e-300, 1.0001, 10**400]),
    "top_k": ([-1, 0, 1, 2**63 - 1], [-2, 2**63, 1.5]),
    "n": ([1, 2], [0, 17, -1, 10**30]),
    "seed": ([-(2**64), 2**64, 0], [2**64 + 1, 1.5, 10**400]),
    "max_tokens": ([1, 2**63 - 1], [0, -1, 2**63, 0.5]),
    "max_completion_tokens": ([1, 2**63 - 1], [0, -1, 2**63]),
    "min_tokens": ([0, 1, 2**63 - 1], [-1, 2**63]),
    "frequency_penalty": ([-2, 2, 1e-300], [-2.1, 2.1]),
    "presence_penalty": ([-2, 2], [-2.1, 2.1]),
    "logit_bias": ([{"1": -100}, {"1": 100, "2": 1e-300}, {str(n): 1 for n in range(300)}],
                   [{"1": 101}, {"1": -101}, {"-1": 1}, {str(2**31): 1}, {str(n): 1 for n in range(1025)}]),
    "top_logprobs": ([0, 20], [-1, 21]),
    "stop": (["x", ["x"] * 4, "x" * 256, []], [["x"] * 5, "x" * 257, ["x" * 257]]),
}  # fmt: skip
NOT_FINITE = [float("nan"), float("inf"), float("-inf"), "nan", "Infinity"]


@pytest.mark.parametrize("name", NUMBERS)
def test_every_number_has_a_bound(server: Any, name: str) -> None:
    taken, refused = NUMBERS[name]
    for value in taken:
        assert post(server, **{name: value, "logprobs": name == "top_logprobs"}).status_code == 200, value
    for value in [*refused, *([] if name == "stop" else NOT_FINITE), "\ud800", {"a": "\udfff"}]:
        response = post(server, **{name: value})
        assert response.status_code == 400, value
        assert response.json()["error"]["message"]


@pytest.mark.parametrize("half", ["\ud800", "a\udfffb"])
def test_half_a_surrogate_pair_is_no_text(server: Any, half: str) -> None:
    for fields in (
        {"messages": [{"role": "user", "content": half}]},
        {"messages": [{"role": "user", "content": [{"type": "text", "text": half}]}]},
        {"messages": [{"role": half, "content": "Hi"}]},
        {"messages": [{"role": "user", "content": "Hi", "name": half}]},
        {"model": half}, {"stop": half}, {"stop": [half]}, {"user": half}, {"metadata": {half: "x"}}, {half: 1},
        {"response_format": {"type": half}}, {"logit_bias": {half: 1}},
    ):  # fmt: skip
        response = post(server, **fields)
        assert response.status_code == 400, fields
        assert response.json()["error"]["message"]


def test_messages_and_their_text_have_a_bound() -> None:
    for messages in (
        HI * 2049,
        [{"role": "user", "content": "x" * 1000}] * 1001,
        [{"role": "user", "content": "x" * (MAX_TEXT + 1)}],
    ):
        with pytest.raises(ValidationError) as caught:
            ChatRequest.model_validate({"messages": messages})
        assert caught.value.error_count() == 1
    with pytest.raises(ValidationError) as caught:
        ChatRequest.model_validate({"messages": [{"role": "user", "content": [7] * 100_000}]})
    assert caught.value.error_count() == 1  # the first is told, and the others are not even looked at


def turns(*messages: dict[str, Any]) -> list[dict[str, Any]]:
    return conversation([ChatMessage.model_validate(message) for message in messages])


def says(role: str, content: Any, **more: Any) -> dict[str, Any]:
    return {"role": role, "content": content, **more}


CALL = [{"type": "python", "text": "6*7"}, {"type": "python_output", "text": "42"}, {"type": "text", "text": "42"}]


def test_neighbours_of_one_side_are_one_message() -> None:
    assert turns(says("user", "a"), says("user", "b")) == [says("user", "a\n\nb")]
    assert turns(says("system", "a"), says("developer", "b"), says("system", ""), says("user", "c")) == [
        says("user", "a\n\nb\n\nc")
    ]
    assert turns(says("user", "a"), says("assistant", "b"), says("assistant", CALL), says("system", "c")) == [
        says("user", "a"), says("assistant", [{"type": "text", "text": "b\n\n"}, *CALL]), says("user", "c"),
    ]  # fmt: skip
    assert turns(says("user", "a"), says("assistant", None), says("user", "c")) == [
        says("user", "a"), says("assistant", ""), says("user", "c"),
    ]  # fmt: skip
    assert turns(says("assistant", "Hello"), says("user", "a")) == [
        says("user", ""), says("assistant", "Hello"), says("user", "a"),
    ]  # fmt: skip


def test_a_system_message_is_what_it_was(tokenizer: Tokenizer) -> None:
    """Joined to the first question with a blank line, as in training."""
    plain = [says("system", "Be brief."), says("user", "Hi"), says("assistant", "Hi"), says("user", "Why?")]
    assert render_prompt(tokenizer, turns(*plain)) == render_prompt(tokenizer, plain)


def test_answers_go_back_in_with_their_parts_or_their_refusal() -> None:
    shown = says("assistant", "42", parts=CALL, refusal=None, annotations=[], tool_calls=[], function_call=None)
    assert turns(says("user", "a"), shown)[1] == says("assistant", CALL)
    assert turns(says("user", "a"), says("assistant", "b", parts=[]))[1] == says("assistant", "b")
    assert turns(says("user", "a"), says("assistant", None, refusal="No."))[1] == says("assistant", "No.")
    refusal = [{"type": "refusal", "refusal": "No."}, {"type": "text", "text": " Never."}]
    assert turns(says("user", "a"), says("assistant", refusal))[1] == says("assistant", "No. Never.")
    calls = [{"type": "python", "text": "1"}, {"type": "python", "text": "2"}]
    assert turns(says("user", "a"), says("assistant", calls))[1] == says("assistant", calls)


@given(st.lists(st.tuples(st.sampled_from(["system", "developer", "user", "assistant"]), st.text()), min_size=1))
def test_any_order_of_messages_becomes_turns_with_all_that_was_said(said: list[tuple[str, str]]) -> None:
    made = turns(*(says(role, content) for role, content in said))
    assert [turn["role"] for turn in made] == ["user", "assistant"] * (len(made) // 2) + ["user"] * (len(made) % 2)
    words = "".join(content for _, content in said).replace("\n", "")
    assert "".join(turn["content"] for turn in made).replace("\n", "") == words


def test_names_of_unknown_fields_are_logged_once_and_are_bounded(caplog: pytest.LogCaptureFixture) -> None:
    unknown = UnknownFields()
    fields = {"temprature": 1, "line\nbreak": 2, "x" * 10_000: 3, "messages": [says("user", "Hi", color=1)]}
    with caplog.at_level(logging.WARNING):
        for _ in range(3):
            unknown.note(ChatRequest.model_validate(fields))
    logged = [record.getMessage() for record in caplog.records]
    assert len(logged) == 4
    assert "'temprature', which is not known here and is ignored; did its sender mean 'temperature'?" in logged[0]
    assert "'line\\nbreak'" in logged[1] and len(logged[2]) < 150 and "'color'" in logged[3]
    for number in range(200):
        unknown.note(ChatRequest.model_validate({"messages": HI, f"field{number}": 1}))
    assert len(caplog.records) == UnknownFields.MOST


@pytest.mark.parametrize("name", ["nanochat", "tiny", None])
def test_nanochat_names_the_served_model(server: Any, name: str | None) -> None:
    assert post(server, model=name).json()["model"] == "tiny"
    assert name is None or httpx.get(f"{server.url}/v1/models/{name}").json()["id"] == "tiny"
    assert post(server, model="gpt-5").status_code == 404
