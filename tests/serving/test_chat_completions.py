"""The chat API as OpenAI's own client sees it."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import openai
import pytest

from nanochat.inference import Event, TokenLogprob
from nanochat.serving.answers import logprob
from nanochat.serving.settings import ServerSettings
from nanochat.tokenizer import Tokenizer
from nanochat.tokenizer.chat import render_prompt

QUESTION: Any = [{"role": "user", "content": "What is 12 + 30?"}]


@pytest.fixture(scope="module")
def client(server: Any) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as made:
        yield made


def test_models(client: openai.OpenAI) -> None:
    assert [model.id for model in client.models.list()] == ["tiny"]
    assert client.models.retrieve("tiny").owned_by == "nanochat"
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("other")


def test_an_answer_has_everything_a_client_expects(client: openai.OpenAI, tokenizer: Tokenizer) -> None:
    answer = client.chat.completions.create(model="tiny", messages=QUESTION, max_tokens=12, seed=1)
    assert answer.object == "chat.completion"
    assert answer.model == "tiny"
    assert answer.system_fingerprint == "f00dfeed"
    choice = answer.choices[0]
    assert choice.message.role == "assistant"
    assert choice.finish_reason in ("stop", "length")
    assert answer.usage is not None
    assert answer.usage.prompt_tokens == len(render_prompt(tokenizer, QUESTION))
    assert 1 <= answer.usage.completion_tokens <= 12


@pytest.mark.parametrize("options", [{}, {"temperature": 1.5, "top_p": 0.9}, {"extra_body": {"top_k": 3}}])
def test_a_seed_fixes_the_answer_and_a_stream_says_the_same(client: openai.OpenAI, options: dict) -> None:
    request = {"model": "tiny", "messages": QUESTION, "max_tokens": 30, "seed": 7, **options}
    first = client.chat.completions.create(**request)
    again = client.chat.completions.create(**request)
    assert first.choices[0].message.content == again.choices[0].message.content
    streamed = client.chat.completions.create(**request, stream=True, stream_options={"include_usage": True})
    chunks = list(streamed)
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    assert text == first.choices[0].message.content
    assert chunks[0].choices[0].delta.role == "assistant"
    assert [c.choices[0].finish_reason for c in chunks if c.choices][-1] == first.choices[0].finish_reason
    assert chunks[-1].usage == first.usage


def test_n_choices_differ_and_the_first_is_that_of_n_1(client: openai.OpenAI) -> None:
    request: dict[str, Any] = {"model": "tiny", "messages": QUESTION, "max_tokens": 10, "seed": 3}
    one = client.chat.completions.create(**request).choices[0].message.content
    four = client.chat.completions.create(**request, n=4).choices
    texts = [choice.message.content for choice in four]
    assert [choice.index for choice in four] == [0, 1, 2, 3]
    assert texts[0] == one
    assert len(set(texts)) > 1
    streamed = {index: "" for index in range(4)}
    for chunk in client.chat.completions.create(**request, n=4, stream=True):
        streamed[chunk.choices[0].index] += chunk.choices[0].delta.content or ""
    assert list(streamed.values()) == texts


def test_stop_ends_an_answer(client: openai.OpenAI) -> None:
    request: dict[str, Any] = {"model": "tiny", "messages": QUESTION, "max_tokens": 60, "seed": 5}
    whole = client.chat.completions.create(**request).choices[0].message.content or ""
    stop = whole[6:9]
    cut = client.chat.completions.create(**request, stop=[stop, "never said"]).choices[0]
    assert cut.finish_reason == "stop"
    assert cut.message.content == whole[: whole.index(stop)]


def test_logprobs(client: openai.OpenAI) -> None:
    request: dict[str, Any] = {
        "model": "tiny", "messages": QUESTION, "max_tokens": 20, "temperature": 0, "logprobs": True,
        "top_logprobs": 3,
    }  # fmt: skip
    choice = client.chat.completions.create(**request).choices[0]
    assert choice.logprobs is not None and choice.logprobs.content
    for token in choice.logprobs.content:
        assert token.logprob <= 0 and len(token.top_logprobs) == 3
        assert token.top_logprobs[0].logprob == token.logprob  # greedy: the chosen one is the likeliest
    said = b"".join(bytes(token.bytes or []) for token in choice.logprobs.content)
    assert said.decode(errors="replace") == choice.message.content
    streamed = [
        entry
        for chunk in client.chat.completions.create(**request, stream=True)
        if chunk.choices[0].logprobs is not None
        for entry in chunk.choices[0].logprobs.content or []
    ]
    assert [entry.bytes for entry in streamed] == [entry.bytes for entry in choice.logprobs.content]


def test_a_long_reply_ends_where_the_context_does(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(
        model="tiny", messages=QUESTION, max_completion_tokens=100_000, extra_body={"min_tokens": 100_000}
    )
    assert answer.choices[0].finish_reason == "length"
    assert answer.usage is not None and answer.usage.total_tokens == 512


BAD_REQUESTS: list[tuple[dict[str, Any], str, str | None]] = [
    ({"temperature": 3}, "'temperature' should be less than or equal to 2.", "temperature"),
    ({"max_tokens": 0}, "greater than or equal to 1", "max_tokens"),
    ({"stop": ["a"] * 5}, "at most 4", "stop"),
    ({"top_logprobs": 2}, "needs logprobs", "top_logprobs"),
    ({"messages": []}, "at least 1", "messages"),
    ({"messages": [{"role": "assistant", "content": "Hi"}]}, "end with an answer", "messages"),
    ({"messages": [{"role": "robot", "content": "Hi"}]}, "'developer', 'user' or 'assistant'", "messages.0.role"),
    ({"messages": [{"role": "user", "content": "word " * 2000}]}, "context holds 512", "messages"),
]


@pytest.mark.parametrize(("change", "message", "param"), BAD_REQUESTS)
def test_bad_requests_are_400_in_openais_shape(
    server: Any, change: dict[str, Any], message: str, param: str | None
) -> None:
    response = httpx.post(f"{server.url}/v1/chat/completions", json={"messages": QUESTION, **change})
    assert response.status_code == 400
    error = response.json()["error"]
    assert message in error["message"]
    assert error["type"] == "invalid_request_error"
    assert error["param"] == param


def test_a_context_that_is_too_long_says_both_numbers(client: openai.OpenAI) -> None:
    messages: Any = [{"role": "user", "content": "a b " * 1000}]
    with pytest.raises(openai.BadRequestError, match=r"prompt has at least [\d,]+ tokens .* holds 512") as caught:
        client.chat.completions.create(model="tiny", messages=messages)
    assert caught.value.code == "context_length_exceeded"


def test_what_is_not_json_or_not_there(server: Any) -> None:
    address, kind = f"{server.url}/v1/chat/completions", {"Content-Type": "application/json"}
    for response, message in (
        (httpx.post(address, content=b"{not json", headers=kind), "not valid JSON"),
        (httpx.post(address, content=b"[1]", headers=kind), "not a JSON object"),
        (httpx.post(address, headers=kind), "not a JSON object"),
        (httpx.post(address, content=b"{}"), "not a JSON object"),
    ):
        assert response.status_code == 400
        assert message in response.json()["error"]["message"]
    for missing in (httpx.get(f"{server.url}/v1/nothing"), httpx.get(f"{server.url}/v1/chat/completions")):
        assert missing.status_code in (404, 405)
        assert missing.json()["error"]["type"] == "invalid_request_error"
    other = httpx.post(f"{server.url}/v1/chat/completions", json={"messages": QUESTION, "model": "gpt-5"})
    assert (other.status_code, other.json()["error"]["code"]) == (404, "model_not_found")


def test_parts_of_messages(server: Any, tokenizer: Tokenizer) -> None:
    messages = [
        {"role": "user", "content": [{"type": "text", "text": "What is "}, {"type": "text", "text": "6 * 7?"}]},
        {"role": "assistant", "content": [
            {"type": "python", "text": "6*7"}, {"type": "python_output", "text": "42"},
            {"type": "text", "text": "42"},
        ]},
        {"role": "user", "content": "And 2 + 3?"},
    ]  # fmt: skip
    body = {"messages": messages, "max_tokens": 1}
    answer = httpx.post(f"{server.url}/v1/chat/completions", json=body).json()
    plain = [{"role": "user", "content": "What is 6 * 7?"}, *messages[1:]]
    assert answer["usage"]["prompt_tokens"] == len(render_prompt(tokenizer, plain))


def test_keys(start: Callable[..., Any]) -> None:
    server = start(settings=ServerSettings(api_keys=frozenset({"first", "second"})))
    for key, ok in (("first", True), ("second", True), ("third", False)):
        with openai.OpenAI(base_url=f"{server.url}/v1", api_key=key, max_retries=0) as client:
            if ok:
                assert client.models.list().data
            else:
                with pytest.raises(openai.AuthenticationError):
                    client.models.list()
    for scheme, status in (("bearer", 200), ("BEARER ", 200), ("Basic", 401)):
        headers = {"Authorization": f"{scheme} first"}
        assert httpx.get(f"{server.url}/v1/models", headers=headers).status_code == status
    assert httpx.get(f"{server.url}/v1/models").status_code == 401
    assert httpx.get(f"{server.url}/health").status_code == 200
    assert httpx.get(f"{server.url}/").status_code == 200


def test_many_at_a_time_say_what_each_says_alone(client: openai.OpenAI) -> None:
    def ask(seed: int) -> str | None:
        messages: Any = [{"role": "user", "content": f"Question {seed}?" * (1 + seed % 5)}]
        answer = client.chat.completions.create(
            model="tiny", messages=messages, max_tokens=20 + seed, seed=seed, temperature=0.7
        )
        return answer.choices[0].message.content

    alone = [ask(seed) for seed in range(24)]
    with ThreadPoolExecutor(24) as pool:
        assert list(pool.map(ask, range(24))) == alone


def endless() -> dict[str, Any]:
    return {"messages": QUESTION, "min_tokens": 480, "stream": True}


@pytest.mark.parametrize("stream", [True, False])
def test_a_client_that_goes_away_frees_its_slot(
    start: Callable[..., Any], until: Callable[..., None], stream: bool
) -> None:
    server = start(slow=True, slots=2)
    body = {**endless(), "stream": stream, "n": 2}
    with httpx.Client(timeout=httpx.Timeout(10, read=1.0)) as client:
        if stream:
            with client.stream("POST", f"{server.url}/v1/chat/completions", json=body) as response:
                lines = response.iter_lines()  # dropping it would end the request
                next(lines)
                assert server.service.open == 2
        else:
            with pytest.raises(httpx.ReadTimeout):
                client.post(f"{server.url}/v1/chat/completions", json=body)
    until(lambda: server.service.open == 0)
    assert httpx.get(f"{server.url}/health").json()["open"] == 0


def test_a_full_queue_is_429_and_the_page_still_answers(start: Callable[..., Any]) -> None:
    server = start(slow=True, slots=1, queue=1)
    address = f"{server.url}/v1/chat/completions"
    with httpx.Client() as client, client.stream("POST", address, json={**endless()}) as response:
        lines = response.iter_lines()  # dropping it would end the request
        next(lines)
        refused = httpx.post(address, json={"messages": QUESTION, "n": 2})
        assert refused.status_code == 429
        assert int(refused.headers["Retry-After"]) >= 1
        assert refused.json()["error"]["code"] == "overloaded"
        assert httpx.get(f"{server.url}/livez").status_code == 200


def test_waiting_too_long_is_503(start: Callable[..., Any], until: Callable[..., None]) -> None:
    server = start(slow=True, slots=1, settings=ServerSettings(queue_seconds=0.2))
    address = f"{server.url}/v1/chat/completions"
    with httpx.Client() as client, client.stream("POST", address, json=endless()) as response:
        lines = response.iter_lines()  # dropping it would end the request
        next(lines)
        refused = httpx.post(address, json={"messages": QUESTION})
        assert refused.status_code == 503
        assert "Retry-After" in refused.headers
    until(lambda: server.service.open == 0)


def test_a_stream_is_whole_events_and_ends_with_done(server: Any) -> None:
    body = {"messages": QUESTION, "stream": True, "max_tokens": 5}
    text = httpx.post(f"{server.url}/v1/chat/completions", json=body).text
    *events, done, rest = text.split("\n\n")
    assert (done, rest) == ("data: [DONE]", "")
    assert len({json.loads(event.removeprefix("data: "))["id"] for event in events}) == 1


def test_a_token_that_can_not_be_chosen_has_a_log_probability_that_is_a_number(tokenizer: Tokenizer) -> None:
    likely = TokenLogprob(97, float("nan"), ((98, float("-inf")), (99, -1.5)))
    request: Any = None
    (chosen,) = logprob(Event(request, 97, "text", False, (), likely, None), tokenizer)
    assert chosen["logprob"] == -9999.0
    assert [each["logprob"] for each in chosen["top_logprobs"]] == [-9999.0, -1.5]
