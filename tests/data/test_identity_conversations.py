"""Identity conversations: from templates, and from an endpoint that fails in every way an endpoint can."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nanochat.data import identity, identity_endpoint
from nanochat.data.identity_endpoint import Endpoint, Request, check_conversation
from nanochat.spec.errors import StorageError, UserError

REQUEST = Request(name="Robin", maker="the Example team", facts=("Robin has 4 layers.",), count=6, seed=1)
ANSWER = {"messages": [{"role": "user", "content": "Who are you?"}, {"role": "assistant", "content": "Robin."}]}


def read(path: Path) -> list[Any]:
    return [json.loads(line) for line in path.read_bytes().decode("utf-8").rstrip("\n").split("\n")]


def test_templates_say_who_the_model_is(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "identity.jsonl"
    facts = ["Robin has 4 layers."]
    assert identity.generate(path, name="Robin", maker="the Example team", facts=facts, count=1000, seed=1) == 1000
    conversations = read(path)
    assert len({json.dumps(messages) for messages in conversations}) == 1000
    for messages in conversations:
        assert check_conversation(messages) == messages
    said = " ".join(m["content"] for messages in conversations for m in messages if m["role"] == "assistant")
    assert said.count("Robin") > 500 and said.count("the Example team") > 200 and said.count(facts[0]) > 100
    assert "The Example team made me" in said and "{" not in said
    lengths = {len(messages) // 2 for messages in conversations}
    assert lengths >= {1, 2, 3, 4}


def test_templates_are_deterministic(tmp_path: Path) -> None:
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        identity.generate(tmp_path / name, name="Robin", maker="Ann", count=50, seed=seed)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes() != (tmp_path / "c").read_bytes()


def test_more_conversations_keep_the_first(tmp_path: Path) -> None:
    identity.generate(tmp_path / "few", name="Robin", maker="Ann", count=10)
    identity.generate(tmp_path / "many", name="Robin", maker="Ann", count=20)
    assert read(tmp_path / "many")[:10] == read(tmp_path / "few")


@settings(max_examples=20)
@given(name=st.text(min_size=1).filter(str.strip), maker=st.text(min_size=1).filter(str.strip))
def test_any_names_make_valid_lines(tmp_path_factory: pytest.TempPathFactory, name: str, maker: str) -> None:
    path = tmp_path_factory.mktemp("identity") / "out.jsonl"
    identity.generate(path, name=name, maker=maker, count=20)
    assert len(path.read_bytes().decode("utf-8").rstrip("\n").split("\n")) == 20


@pytest.mark.parametrize("changes", [{"name": " "}, {"maker": ""}, {"count": 0}])
def test_nothing_can_be_made_of_it(tmp_path: Path, changes: dict[str, Any]) -> None:
    with pytest.raises(UserError, match="identity generate"):
        identity.generate(tmp_path / "x", **({"name": "Robin", "maker": "Ann", "count": 1} | changes))
    assert list(tmp_path.iterdir()) == []


class FakeEndpoint:
    """An endpoint that answers what a function says; it keeps the requests and the pauses between them."""

    def __init__(self, answer: Callable[[int], httpx.Response]) -> None:
        self.answer = answer
        self.requests: list[httpx.Request] = []
        self.pauses: list[float] = []

    def generate(self, path: Path, request: Request = REQUEST, **options: Any) -> int:
        def handle(asked: httpx.Request) -> httpx.Response:
            self.requests.append(asked)
            return self.answer(len(self.requests) - 1)

        endpoint = Endpoint("http://host/v1", model="large", key="secret-key", parallel=options.pop("parallel", 1))
        transport = httpx.MockTransport(handle)
        return identity_endpoint.generate(
            path, request, endpoint=endpoint, sleep=self.pauses.append, transport=transport, **options
        )


def good(content: Any = ANSWER) -> httpx.Response:
    text = content if isinstance(content, str) else json.dumps(content)
    return httpx.Response(200, json={"choices": [{"message": {"role": "assistant", "content": text}}]})


def test_an_endpoint_writes_them(tmp_path: Path) -> None:
    endpoint, seen = FakeEndpoint(lambda number: good()), []
    assert endpoint.generate(tmp_path / "out.jsonl", progress=seen.append, parallel=3) == 6
    assert read(tmp_path / "out.jsonl") == [ANSWER["messages"]] * 6
    assert sorted(seen) == [1, 2, 3, 4, 5, 6]
    assert [path.name for path in tmp_path.iterdir()] == ["out.jsonl"]
    request = endpoint.requests[0]
    assert str(request.url) == "http://host/v1/chat/completions"
    assert request.headers["Authorization"] == "Bearer secret-key"
    bodies = [json.loads(request.content) for request in endpoint.requests]
    prompts = {body["messages"][0]["content"] for body in bodies}
    assert len(prompts) == 6 and all("Robin has 4 layers." in prompt for prompt in prompts)
    assert all(body["response_format"] == {"type": "json_object"} for body in bodies)


@pytest.mark.parametrize(
    "bad",
    [
        lambda: httpx.Response(500),
        lambda: httpx.Response(429, headers={"Retry-After": "7"}),
        lambda: httpx.Response(200, text="<html>"),
        lambda: httpx.Response(200, json={"choices": []}),
        lambda: good("I'd rather not."),
        lambda: good({"messages": []}),
        lambda: good({"messages": [{"role": "assistant", "content": "Hi"}, {"role": "user", "content": "Hi"}]}),
        lambda: good({"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": " "}]}),
    ],
)
def test_a_bad_answer_is_asked_for_again(tmp_path: Path, bad: Callable[[], httpx.Response]) -> None:
    endpoint = FakeEndpoint(lambda number: bad() if number < 3 else good())
    endpoint.generate(tmp_path / "out.jsonl")
    assert len(endpoint.requests) == 9 and len(endpoint.pauses) == 3
    assert len(read(tmp_path / "out.jsonl")) == 6


def test_pauses_grow_and_follow_the_server(tmp_path: Path) -> None:
    answers = [httpx.Response(503), httpx.Response(503), httpx.Response(429, headers={"Retry-After": "7"})]
    endpoint = FakeEndpoint(lambda number: answers[number] if number < 3 else good())
    endpoint.generate(tmp_path / "out.jsonl")
    first, second, third = endpoint.pauses
    assert 0.5 <= first <= 1.0 and 1.0 <= second <= 2.0 and third == 7.0


def test_what_came_back_is_kept(tmp_path: Path) -> None:
    def failing(number: int) -> httpx.Response:
        if number >= 4:
            raise httpx.ConnectError("refused")
        return good()

    path = tmp_path / "out.jsonl"
    with pytest.raises(StorageError, match="cannot be reached"):
        FakeEndpoint(failing).generate(path)
    assert not path.exists()
    partial = tmp_path / "out.jsonl.partial"
    partial.write_text(partial.read_text() + '{"index": 4, "mess')  # killed while it wrote
    endpoint = FakeEndpoint(lambda number: good())
    assert endpoint.generate(path) == 2
    assert len(read(path)) == 6 and not partial.exists()


@pytest.mark.parametrize(
    ("status", "hint"), [(401, "check the key"), (404, "check the address"), (400, "check the mod")]
)
def test_a_refusal_is_said_at_once_without_the_key(tmp_path: Path, status: int, hint: str) -> None:
    endpoint = FakeEndpoint(lambda number: httpx.Response(status, text="no such model"))
    with pytest.raises(UserError, match=hint) as caught:
        endpoint.generate(tmp_path / "out.jsonl")
    assert len(endpoint.requests) == 1 and endpoint.pauses == []
    assert "secret-key" not in str(caught.value) and "secret-key" not in repr(Endpoint("u", "m", "secret-key"))


def test_a_fence_around_the_answer_is_no_harm(tmp_path: Path) -> None:
    endpoint = FakeEndpoint(lambda number: good(f"```json\n{json.dumps(ANSWER)}\n```"))
    endpoint.generate(tmp_path / "out.jsonl")
    assert len(read(tmp_path / "out.jsonl")) == 6
