"""Connections that are held open, or fed and emptied slowly, keep nobody else out."""

from __future__ import annotations

import contextlib
import json
import socket
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import pytest

from nanochat.serving import connections, server
from nanochat.serving.connections import MOST_CONNECTIONS, most_connections
from nanochat.serving.server import HEAD_BYTES

CHAT = "/v1/chat/completions"
BODY = {"messages": [{"role": "user", "content": "Hi"}], "max_tokens": 1}
HEAD = f"POST {CHAT} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n".encode()

Open = Callable[[str, bytes], socket.socket]


@pytest.fixture
def connect() -> Iterator[Open]:
    """Opens connections that have sent some bytes."""
    with contextlib.ExitStack() as stack:

        def begin(url: str, sent: bytes) -> socket.socket:
            host, port = url.removeprefix("http://").split(":")
            made = stack.enter_context(socket.create_connection((host, int(port)), timeout=30))
            made.sendall(sent)
            return made

        yield begin


def _ended(connection: socket.socket) -> bytes:
    """All that a connection gave until its end."""
    received = b""
    with contextlib.suppress(ConnectionError):
        while data := connection.recv(65_536):
            received += data
    return received


@pytest.mark.parametrize("sent", [b"", HEAD, HEAD + b"Content-Length: 100\r\n\r\n{"], ids=["nothing", "head", "body"])
def test_half_open_connections_give_way(
    start: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, connect: Open, sent: bytes
) -> None:
    monkeypatch.setattr(server, "most_connections", lambda: 8)
    url = start().url
    held = [connect(url, sent) for _ in range(40)]
    with httpx.Client(base_url=url) as client:
        for _ in range(3):
            assert client.get("/livez").status_code == 200
            assert client.post(CHAT, json=BODY).status_code == 200
    assert _ended(held[0]) == b""


def test_who_is_being_answered_does_not_give_way(
    start: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, connect: Open
) -> None:
    monkeypatch.setattr(server, "most_connections", lambda: 4)
    url = start(slow=True).url
    body = {**BODY, "max_tokens": 40, "min_tokens": 40, "stream": True}
    with httpx.stream("POST", f"{url}{CHAT}", json=body, timeout=60) as answer:
        lines = answer.iter_lines()
        next(lines)
        for _ in range(20):
            connect(url, HEAD)
        assert list(lines)[-2] == "data: [DONE]"


@pytest.mark.parametrize("sent", [b"", b"GET", HEAD], ids=["nothing", "a word", "half a head"])
def test_a_head_that_does_not_come_ends_the_connection(
    start: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, connect: Open, sent: bytes
) -> None:
    monkeypatch.setattr(connections, "HEAD_SECONDS", 0.2)
    url = start().url
    assert _ended(connect(url, sent)) == b""
    again = connect(url, b"GET /livez HTTP/1.1\r\nHost: localhost\r\n\r\n")
    assert again.recv(65_536).startswith(b"HTTP/1.1 200 ")
    again.sendall(b"GET")
    assert _ended(again) == b""


def test_a_client_that_takes_nothing_is_left(
    start: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, connect: Open, until: Callable[..., None]
) -> None:
    monkeypatch.setattr(connections, "WRITE_SECONDS", 0.2)
    url = start().url
    request = b"GET /metrics HTTP/1.1\r\nHost: localhost\r\n\r\n"
    stuck = connect(url, b"")

    def refused() -> bool:
        try:
            stuck.sendall(request * 100)
        except ConnectionError:
            return True
        return False

    until(refused)
    assert httpx.get(f"{url}/livez").status_code == 200


def test_a_head_that_is_too_large_is_refused(server: Any) -> None:
    fits, large = ({"x-large": "1" * size} for size in (HEAD_BYTES // 2, 4 * HEAD_BYTES))
    assert httpx.get(f"{server.url}/livez", headers=fits).status_code == 200
    with contextlib.suppress(httpx.TransportError):  # it is cut while it sends
        assert httpx.get(f"{server.url}/livez", headers=large).status_code == 400
    assert httpx.get(f"{server.url}/livez").status_code == 200


def test_connections_are_as_many_as_files_can_be_open() -> None:
    assert 1 <= most_connections() <= MOST_CONNECTIONS


def test_a_reader_that_takes_nothing_holds_no_slot_and_nobody_up(
    start: Callable[..., Any], until: Callable[..., None]
) -> None:
    """Megabytes of an answer wait for it; its slots are free as soon as all is computed, and others are answered."""
    server = start(slots=4)
    long = {**BODY, "max_tokens": 450, "min_tokens": 450, "n": 4, "stream": True, "logprobs": True, "top_logprobs": 20}
    long["logit_bias"] = {"97": 100}  # letters alone: of a tool's call nothing is told
    body = json.dumps(long).encode()
    host, port = server.url.removeprefix("http://").split(":")
    with socket.socket() as stuck:
        stuck.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        stuck.settimeout(60)
        stuck.connect((host, int(port)))
        stuck.sendall(HEAD + b"Content-Length: %d\r\n\r\n" % len(body) + body)
        until(lambda: server.service.running == 4)
        assert httpx.post(server.url + CHAT, json=BODY, timeout=60).json()["usage"]["completion_tokens"] == 1
        until(lambda: server.service.open == 0)
        assert httpx.post(server.url + CHAT, json=BODY, timeout=60).status_code == 200
        assert len(_ended_after(stuck, b"data: [DONE]")) > 1 << 20


def _ended_after(connection: socket.socket, last: bytes) -> bytes:
    """All that a connection gives up to the last words."""
    received = bytearray()
    while last not in received[-100:]:
        data = connection.recv(65_536)
        assert data, "it was cut"
        received += data
    return bytes(received)
