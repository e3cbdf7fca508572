"""The gate in front of the API: in which order a request is refused, and that what is refused is not read."""

from __future__ import annotations

import asyncio
import json
import re
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import pytest
from starlette.types import Message

from nanochat.serving import gate
from nanochat.serving.gate import BODY_BYTES_PER_TOKEN, LEAST_BODY_LIMIT, Gate, Hosts, body_limit
from nanochat.serving.settings import ServerSettings
from nanochat.spec.errors import UserError

CHAT = "/v1/chat/completions"
BODY = {"messages": [{"role": "user", "content": "Hi"}], "max_tokens": 1}
KEYS = ServerSettings(api_keys=frozenset({"secret"}), hosts=Hosts())


def _raw(url: str, head: str, body: bytes = b"") -> bytes:
    """What the server answers to these bytes until it ends the connection."""
    host, port = url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=30) as connection:
        connection.sendall(head.replace("\n", "\r\n").encode() + b"\r\n\r\n" + body)
        return b"".join(iter(lambda: connection.recv(65_536), b""))


def _head(*lines: str) -> str:
    return "\n".join([f"POST {CHAT} HTTP/1.1", "Content-Type: application/json", *lines])


@pytest.mark.parametrize("path", [CHAT, "/v1/models", "/v1/nothing", "/nothing", "/livez/"])
def test_nothing_of_a_body_is_looked_at_before_the_key(start: Callable[..., Any], path: str) -> None:
    server = start(settings=KEYS)
    for headers in ({}, {"Authorization": "Bearer other"}, {"Authorization": "Basic secret"}):
        answer = httpx.post(f"{server.url}{path}", content=b"{not json", headers=headers)
        assert (answer.status_code, answer.json()["error"]["code"]) == (401, "invalid_api_key")


@pytest.mark.parametrize("scheme", ["Bearer", "bearer", "BEARER"])
def test_a_key_is_taken(start: Callable[..., Any], scheme: str) -> None:
    url = start(settings=KEYS).url
    assert httpx.post(f"{url}{CHAT}", json=BODY, headers={"Authorization": f"{scheme} secret"}).status_code == 200


def test_health_and_the_page_need_no_key(start: Callable[..., Any]) -> None:
    url = start(settings=KEYS).url
    assert {httpx.get(url + path).status_code for path in ("/", "/health", "/livez", "/readyz", "/metrics")} == {200}


def test_a_body_is_refused_before_it_is_sent(start: Callable[..., Any]) -> None:
    server = start(settings=KEYS)
    lines = ("Host: localhost", "Content-Length: 200000000")
    assert _raw(server.url, _head(*lines)).startswith(b"HTTP/1.1 401 ")
    answer = _raw(server.url, _head(*lines, "Authorization: Bearer secret"))
    assert answer.startswith(b"HTTP/1.1 413 ") and b"connection: close" in answer.lower()
    assert b"262,144 bytes" in answer


def test_a_body_without_a_length_is_refused_at_the_limit(server: Any) -> None:
    def chunks(size: int) -> Iterator[bytes]:
        body = json.dumps(BODY).encode()
        yield body
        for _ in range(0, size - len(body), 1024):
            yield b" " * 1024

    def post(size: int) -> httpx.Response:
        return httpx.post(
            f"{server.url}{CHAT}", content=chunks(size), headers={"Content-Type": "application/json"}, timeout=60
        )

    assert post(LEAST_BODY_LIMIT - 2048).status_code == 200
    refused = post(LEAST_BODY_LIMIT + 2048)
    assert (refused.status_code, refused.json()["error"]["code"]) == (413, "body_too_large")


def test_what_is_left_of_a_refused_body_is_not_read() -> None:
    read, sent = 0, []

    async def receive() -> Message:
        nonlocal read
        read += 65_536
        return {"type": "http.request", "body": b" " * 65_536, "more_body": True}

    async def send(message: Message) -> None:
        sent.append((message["type"], read))

    async def app(*_: object) -> None:
        raise AssertionError("it was let through")

    scope = {"type": "http", "method": "POST", "path": CHAT, "headers": []}
    asyncio.run(Gate(app, keys=frozenset({"secret"}), hosts=None, limit=lambda: 10**9)(scope, receive, send))
    assert sent[:2] == [("http.response.start", 0), ("http.response.body", 0)]
    assert read <= gate.LEFTOVER_BYTES + 65_536


def test_a_body_that_does_not_come_is_given_up(start: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gate, "BODY_SECONDS", 0.2)
    answer = _raw(start().url, _head("Host: localhost", "Content-Length: 100"), b"{")
    assert answer.startswith(b"HTTP/1.1 408 ")


def test_large_bodies_together_have_a_bound_that_small_ones_never_meet(
    start: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, until: Callable[..., None]
) -> None:
    monkeypatch.setattr(gate, "MOST_LARGE_BODIES", 1)
    url = start().url
    large = {**BODY, "unknown": "a" * 150_000}
    host, port = url.removeprefix("http://").split(":")

    def answer(body: dict[str, Any]) -> httpx.Response:
        return httpx.post(f"{url}{CHAT}", json=body)

    with socket.create_connection((host, int(port))) as held:
        held.sendall(f"{_head('Host: localhost', 'Content-Length: 200000')}\n\n".encode() + b"a" * 190_000)
        until(lambda: answer(large).status_code == 503)
        refused = answer(large)
        assert refused.json()["error"]["code"] == "bodies_full" and int(refused.headers["Retry-After"]) > 0
        assert answer(BODY).status_code == 200
    until(lambda: answer(large).status_code == 200)
    assert [answer(large).status_code for _ in range(5)] == [200] * 5  # what was answered or refused counts no more


@pytest.mark.parametrize(
    ("body", "problem"),
    [
        ("{", "EOF while parsing an object at column 1"),
        ("[" * 200_000, "nested more than 200 deep"),
        ('{"a":' * 40_000, "nested more than 200 deep"),
        ('{"messages": ' + "[" * 100_000 + "]" * 100_000 + "}", "nested more than 200 deep"),
        ('{"messages": [{"role": "user", "content": "\\ud800"}]}', "unexpected end of hex escape"),
        ('{"temperature": NaN}', "expected value"),
        ('{"temperature": 1e999}', "a number that is too large"),
        ('{"seed": ' + "9" * 5000 + "}", "number out of range"),
        (b"\xff\xfe", "expected value"),
    ],
)
def test_bodies_that_are_not_json_are_one_sentence(server: Any, body: str | bytes, problem: str) -> None:
    answer = httpx.post(f"{server.url}{CHAT}", content=body, headers={"Content-Type": "application/json"})
    assert answer.status_code == 400
    assert answer.json()["error"]["message"].startswith(f"The body is not valid JSON: {problem}")


def test_too_many_headers_are_refused(server: Any) -> None:
    few, many = ({f"x-{number}": "1" for number in range(count)} for count in (50, 200))
    assert httpx.get(f"{server.url}/livez", headers=few).status_code == 200
    assert httpx.get(f"{server.url}/livez", headers=many).status_code == 431


def test_the_limit_is_a_multiple_of_the_context() -> None:
    assert body_limit(512) == LEAST_BODY_LIMIT
    assert body_limit(65_536) == 65_536 * BODY_BYTES_PER_TOKEN


@pytest.mark.parametrize(
    ("host", "allowed"),
    [
        ("localhost", True), ("LOCALHOST:8000", True), ("127.0.0.1:8000", True),
        ("[::1]:8000", True), ("[::1]", True), ("chat.example:80", True), ("Chat.Example", True),
        ("", False), ("evil.example", False), ("evil.example:8000", False), ("localhost.evil.example", False),
        ("127.0.0.1.evil.example", False), ("evil.example@localhost", False), ("localhost/evil.example", False),
        ("10.0.0.7:8000", False), ("0.0.0.0:8000", False), ("[::]", False), ("[::1", False), ("2130706433", False),
        ("localhost:8000:8000", False), ("a" * 10_000, False),
    ],
)  # fmt: skip
def test_names_of_the_server(host: str, allowed: bool) -> None:
    assert Hosts(frozenset({"chat.example"})).allows(host) is allowed


def test_a_pod_is_asked_by_its_address() -> None:
    hosts = Hosts(frozenset({"chat.example"}), addresses=True)
    assert hosts.allows("10.0.0.7:8000") and hosts.allows("[fd00::7]:8000") and not hosts.allows("evil.example")


def test_a_web_page_of_another_name_reaches_nothing(start: Callable[..., Any]) -> None:
    url = start(settings=ServerSettings(hosts=Hosts())).url
    for path in ("/", "/health", "/metrics", "/v1/models"):
        answer = httpx.get(url + path, headers={"Host": "evil.example:8000"})
        assert (answer.status_code, answer.json()["error"]["code"]) == (403, "host_not_allowed")
        assert "NANOCHAT_ALLOWED_HOSTS" in answer.json()["error"]["message"]
    assert httpx.get(f"{url}/v1/models").status_code == 200


def test_keys_and_hosts_of_the_environment() -> None:
    read = ServerSettings.from_environment
    assert read({}, local=False) == ServerSettings()
    assert read({}, local=True).hosts == Hosts()
    both = {"NANOCHAT_API_KEYS": " a, b ,", "NANOCHAT_ALLOWED_HOSTS": "Chat.Example"}
    assert read(both, local=True) == ServerSettings(
        api_keys=frozenset({"a", "b"}), hosts=Hosts(frozenset({"chat.example"}))
    )
    assert read(both, local=False).hosts == Hosts(frozenset({"chat.example"}), addresses=True)


@pytest.mark.parametrize("name", ["NANOCHAT_API_KEYS", "NANOCHAT_ALLOWED_HOSTS", "NANOCHAT_ALLOWED_ORIGINS"])
@pytest.mark.parametrize("value", ["", " ", " , ", ",,", "caf\u00e9", "a\nb"])
def test_a_list_without_items_is_refused(name: str, value: str) -> None:
    with pytest.raises(UserError, match=f"^{name} "):
        ServerSettings.from_environment({name: value}, local=True)


def test_a_server_whose_list_of_keys_is_empty_does_not_start() -> None:
    command = [sys.executable, "-m", "nanochat.serving", "--host=127.0.0.1", "--port=0"]
    ended = subprocess.run(command, env={"NANOCHAT_API_KEYS": " , "}, capture_output=True, text=True, timeout=120)
    assert ended.returncode == 2
    assert re.fullmatch(r"error: NANOCHAT_API_KEYS is set and lists nothing; .*\n", ended.stderr)
