"""The responses API as OpenAI's own client reads it."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import openai
import pytest
from openai.types.responses import Response
from pydantic import TypeAdapter

from nanochat.inference import Engine
from nanochat.serving.responses_objects import ResponseObject

ASK: dict[str, Any] = {"model": "tiny", "seed": 3, "max_output_tokens": 12}


@pytest.fixture(scope="module")
def client(server: Any) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as made:
        yield made


def post(server: Any, **fields: Any) -> httpx.Response:
    return httpx.post(f"{server.url}/v1/responses", json={"input": "Hi", **ASK, **fields}, timeout=60)


def ask(client: openai.OpenAI, said: Any, **options: Any) -> Response:
    own = {name: options.pop(name, ASK[name]) for name in ("model", "max_output_tokens")}
    return client.responses.create(input=said, **own, **options, extra_body={"seed": ASK["seed"]})


def chat(server: Any, messages: list[dict[str, Any]], **options: Any) -> dict[str, Any]:
    body = {"messages": messages, "max_tokens": ASK["max_output_tokens"], "seed": ASK["seed"], **options}
    return httpx.post(f"{server.url}/v1/chat/completions", json=body, timeout=60).json()


def test_an_answer_is_that_of_the_chat_api(client: openai.OpenAI, server: Any) -> None:
    found = ask(client, "What is 12 + 30?", instructions="Be brief.", temperature=0.5)
    messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "What is 12 + 30?"}]
    same = chat(server, messages, temperature=0.5)
    assert found.output_text == same["choices"][0]["message"]["content"]
    assert found.object == "response" and found.model == "tiny" and found.instructions == "Be brief."
    assert (found.status == "incomplete") == (same["choices"][0]["finish_reason"] == "length")
    assert found.usage is not None and found.usage.input_tokens == same["usage"]["prompt_tokens"]
    assert found.usage.output_tokens == same["usage"]["completion_tokens"]
    Response.model_validate(found.model_dump(), strict=True)  # the client itself checks nothing


def test_answers_go_back_in_as_they_came(client: openai.OpenAI, server: Any) -> None:
    first = ask(client, "Hi")
    said: list[Any] = [{"role": "user", "content": [{"type": "input_text", "text": "Hi"}]}, *first.output]
    second = ask(client, [*said, {"type": "message", "role": "user", "content": "And now?"}])
    messages = [
        {"role": "user", "content": "Hi"},
        {"role": "assistant", "content": first.output_text},
        {"role": "user", "content": "And now?"},
    ]
    assert second.output_text == chat(server, messages)["choices"][0]["message"]["content"]


def test_a_stream_says_the_same_in_its_events(client: openai.OpenAI) -> None:
    options: Any = {"include": ["message.output_text.logprobs"], "top_logprobs": 2}
    whole = ask(client, "Hi", **options)
    with client.responses.stream(
        model="tiny", input="Hi", max_output_tokens=12, extra_body={"seed": 3}, **options
    ) as stream:
        events: list[Any] = list(stream)
    assert [event.sequence_number for event in events] == list(range(len(events)))
    kinds = [event.type for event in events]
    assert kinds[:4] == [
        "response.created", "response.in_progress", "response.output_item.added", "response.content_part.added",
    ]  # fmt: skip
    assert kinds[-4:-1] == ["response.output_text.done", "response.content_part.done", "response.output_item.done"]
    assert kinds[-1] == f"response.{whole.status}" and set(kinds[4:-4]) == {"response.output_text.delta"}
    deltas = [event for event in events if event.type == "response.output_text.delta"]
    assert "".join(event.delta for event in deltas) == whole.output_text
    last = events[-1].response
    assert last.output_text == whole.output_text and last.usage.output_tokens == whole.usage.output_tokens  # pyright: ignore
    likely = [entry.model_dump() for event in deltas for entry in event.logprobs]
    content: Any = whole.output[0]
    assert likely == [entry.model_dump() for entry in content.content[0].logprobs] and likely


def test_a_whole_answer_is_completed_and_a_cut_one_says_why(server: Any, tokenizer: Any) -> None:
    cut = post(server, max_output_tokens=1).json()
    assert (cut["status"], cut["incomplete_details"]) == ("incomplete", {"reason": "max_output_tokens"})
    assert cut["output"][0]["status"] == "incomplete"
    for index in range(20):
        found = post(server, seed=index, max_output_tokens=400).json()
        if found["status"] == "completed":
            break
    else:
        pytest.fail("no answer ended by itself")
    assert found["incomplete_details"] is None and found["completed_at"] >= found["created_at"]


def test_answers_have_the_published_shape(server: Any) -> None:
    adapter = TypeAdapter(ResponseObject)
    for fields in ({}, {"top_logprobs": 2}, {"truncation": "auto", "metadata": {"a": "b"}}):
        found = post(server, **fields).json()
        assert adapter.dump_python(adapter.validate_python(found, strict=True)) == found


def test_the_oldest_exchange_is_left_out_where_asked(server: Any) -> None:
    pair = [{"role": "user", "content": "q" * 60}, {"role": "assistant", "content": "a" * 60}]
    said = [*(pair * 20), {"role": "user", "content": "And now?"}]
    assert post(server, input=said).status_code == 400
    assert post(server, input=said, truncation="auto").json()["dropped_messages"] > 0


def test_an_engine_that_fails_fails_the_stream(start: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    server, steps, step = start(), iter(range(100)), Engine.step

    def fail(self: Engine) -> Any:
        if next(steps) == 2:
            raise RuntimeError("out of luck")
        return step(self)

    monkeypatch.setattr(Engine, "step", fail)
    *_, last = [
        line for line in post(server, stream=True, max_output_tokens=300).text.splitlines() if line[:5] == "data:"
    ]
    event = json.loads(last.removeprefix("data: "))
    assert event["type"] == "response.failed" and "out of luck" in event["response"]["error"]["message"]


NEUTRAL: list[dict[str, Any]] = [
    {"store": True, "metadata": {"a": "b"}, "reasoning": {"effort": "low"}, "parallel_tool_calls": True, "user": "u"},
    {"tools": [], "tool_choice": "auto", "text": {"format": {"type": "text"}, "verbosity": "low"}, "background": False},
    {"previous_response_id": None, "conversation": None, "include": [], "stream": False, "max_tool_calls": 3},
    {"prompt_cache_options": {"ttl": "30m"}, "image": {}, "access_programs": {}, "context_management": []},
    {"background_options": {"completion_window": "soonest"}},
]


@pytest.mark.parametrize("fields", NEUTRAL)
def test_what_changes_nothing_is_taken(server: Any, fields: dict[str, Any]) -> None:
    assert post(server, **fields).json()["output"][0]["content"] == post(server).json()["output"][0]["content"]


REFUSED: list[tuple[dict[str, Any], str, str]] = [
    ({"input": []}, "at least 1", "input"),
    ({"input": None}, "valid string", "input"),
    ({"input": [{"role": "user"}]}, "has no 'content'", "input.0"),
    ({"input": [{"type": "function_call", "name": "f"}]}, "is of the type 'function_call'", "input.0"),
    ({"input": [{"type": "item_reference", "id": "msg_1"}]}, "set store to false", "input.0"),
    ({"input": [{"role": "tool", "content": "a"}]}, "is 'tool', and this model knows no tools", "input.0.role"),
    ({"input": [{"role": "user", "content": [{"type": "input_image"}]}]}, "is an image", "input.0.content.0"),
    ({"input": [{"role": "assistant", "content": "a"}]}, "end with an answer of the assistant", "input"),
    ({"input": "ox " * 3000}, "at least", "input"),
    ({"previous_response_id": "resp_1"}, "nothing is stored here", "previous_response_id"),
    ({"background": True}, "would be stored", "background"),
    ({"moderation": {"model": "omni-moderation-latest"}}, "moderates nothing", "moderation"),
    ({"context_management": [{"type": "compaction"}]}, "nothing is compacted here", "context_management"),
    ({"tools": [{"type": "web_search"}]}, "calls no tools of yours", "tools"),
    ({"text": {"format": {"type": "xml"}}}, "can be held to text, json_object and", "text.format.type"),
    ({"max_output_tokens": 0}, "greater than or equal to 1", "max_output_tokens"),
]  # fmt: skip


@pytest.mark.parametrize(("fields", "message", "param"), REFUSED)
def test_what_can_not_be_honoured_is_said(server: Any, fields: dict[str, Any], message: str, param: str) -> None:
    answer = post(server, **fields)
    assert answer.status_code == 400
    error = answer.json()["error"]
    assert message in error["message"] and error["param"] == param
