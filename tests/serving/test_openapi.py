"""The published description of the API, against what the server answers."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from typing import Any

import httpx
import pytest
from openai.types import chat, completion_create_params, responses
from pydantic import TypeAdapter

from nanochat.serving.bodies import Body
from nanochat.serving.completion_request import CompletionRequest
from nanochat.serving.messages import ChatMessage, Part
from nanochat.serving.objects import ChatCompletion, ChatCompletionChunk, ErrorObject, ModelList
from nanochat.serving.protocol import ChatRequest
from nanochat.serving.responses_request import InputItem, InputPart, ResponsesRequest, TextConfig
from nanochat.serving.sampled import StreamOptions
from nanochat.serving.settings import ServerSettings

HI = [{"role": "user", "content": "Hi"}]


def conforms(shape: Any, found: Any) -> bool:
    """Whether it has the fields of the shape, each of its type, and no others."""
    return TypeAdapter(shape).dump_python(TypeAdapter(shape).validate_python(found, strict=True)) == found


def test_it_names_all_routes_and_their_errors_and_needs_no_key(start: Callable[..., Any]) -> None:
    guarded = start(settings=ServerSettings(api_keys=frozenset({"key"})))
    published = httpx.get(f"{guarded.url}/openapi.json").json()
    assert set(published["paths"]) == {
        "/health", "/livez", "/readyz", "/metrics", "/v1/models", "/v1/models/{name}", "/v1/chat/completions",
        "/v1/completions", "/v1/responses", "/tokenize", "/detokenize", "/tokenizer_info",
    }  # fmt: skip
    chat = published["paths"]["/v1/chat/completions"]["post"]
    assert set(chat["responses"]) == {
        "200", "400", "401", "404", "408", "413", "429", "500", "503", "default",
    }  # fmt: skip
    error = {"$ref": "#/components/schemas/ErrorObject"}
    assert chat["responses"]["400"]["content"]["application/json"]["schema"] == error
    assert "422" not in json.dumps(published) and chat["security"]
    assert published["components"]["schemas"]["ChatRequest"]["properties"].keys() == ChatRequest.model_fields.keys()


def test_answers_have_the_published_shapes(server: Any) -> None:
    address = f"{server.url}/v1/chat/completions"
    body = {"messages": HI, "max_tokens": 5, "logprobs": True, "top_logprobs": 2, "n": 2}
    assert conforms(ChatCompletion, httpx.post(address, json=body).json())
    usage = {"stream": True, "stream_options": {"include_usage": True}}
    *events, done, _ = httpx.post(address, json={**body, **usage}).text.split("\n\n")
    assert done == "data: [DONE]"
    assert all(conforms(ChatCompletionChunk, json.loads(event.removeprefix("data: "))) for event in events)
    assert conforms(ModelList, httpx.get(f"{server.url}/v1/models").json())
    for wrong in (
        httpx.post(address, json={}), httpx.post(address, content=b"{"), httpx.post(address, json={**body, "n": 99}),
        httpx.get(address), httpx.get(f"{server.url}/v1/nothing"), httpx.get(f"{server.url}/v1/models/other"),
    ):  # fmt: skip
        assert 400 <= wrong.status_code < 500 and conforms(ErrorObject, wrong.json())


@pytest.mark.parametrize(
    ("method", "path", "sentence"),
    [
        ("POST", "/chat/completions", r"there is nothing here\. The API is at .*/v1/chat/completions, "),
        ("POST", "/v1/embeddings", "there is nothing here"),
        ("GET", "/v1/chat/completions", r"it takes POST\."),
    ],
)
def test_what_is_not_served_is_said(server: Any, method: str, path: str, sentence: str) -> None:
    message = httpx.request(method, server.url + path).json()["error"]["message"]
    assert re.match(f"{method} {path}: {sentence}", message), message


def test_without_keys_none_is_asked_for(server: Any) -> None:
    published = httpx.get(f"{server.url}/openapi.json").json()
    assert "security" not in published["paths"]["/v1/chat/completions"]["post"]


KNOWN: list[tuple[type[Body], list[Any]]] = [
    (ChatRequest, [chat.completion_create_params.CompletionCreateParamsNonStreaming]),
    (ChatMessage, [chat.ChatCompletionUserMessageParam, chat.ChatCompletionAssistantMessageParam]),
    (Part, [chat.ChatCompletionContentPartTextParam, chat.ChatCompletionContentPartRefusalParam]),
    (StreamOptions, [chat.ChatCompletionStreamOptionsParam, responses.response_create_params.StreamOptions]),
    (CompletionRequest, [completion_create_params.CompletionCreateParamsNonStreaming]),
    (ResponsesRequest, [responses.response_create_params.ResponseCreateParamsNonStreaming]),
    (InputItem, [responses.EasyInputMessageParam, responses.ResponseOutputMessageParam]),
    (InputPart, [responses.ResponseInputTextParam, responses.ResponseOutputTextParam]),
    (TextConfig, [responses.ResponseTextConfigParam]),
]


@pytest.mark.parametrize(("ours", "theirs"), KNOWN)
def test_every_field_of_openais_client_is_taken_or_refused_by_name(ours: type[Body], theirs: list[Any]) -> None:
    """What is not declared is ignored, which is for others' fields."""
    for each in theirs:
        assert set(each.__required_keys__ | each.__optional_keys__) - set(ours.model_fields) == set(), each.__name__
