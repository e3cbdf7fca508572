"""The lines about requests: figures, and no word of what was said."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable
from typing import Any

import httpx
import pytest

SECRET = "My cat is called Xanthippe"
CHAT = "/v1/chat/completions"


@pytest.fixture
def server(start: Callable[[], Any]) -> Any:
    """A server of its own: what earlier tests have asked another one may end now, with a line of its own."""
    return start()


@pytest.fixture
def lines(server: Any, caplog: pytest.LogCaptureFixture) -> Callable[[], list[str]]:
    caplog.set_level(logging.INFO, logger="nanochat.serving.request_log")
    return lambda: [record.getMessage() for record in caplog.records if record.thread == server.thread.ident]


def test_each_request_has_a_line_with_its_figures(
    server: Any, lines: Callable[[], list[str]], until: Callable[..., None]
) -> None:
    body = {"messages": [{"role": "user", "content": SECRET}], "max_tokens": 5, "min_tokens": 5}
    used = httpx.post(server.url + CHAT, json=body).json()["usage"]
    httpx.post(server.url + CHAT, json={**body, "stream": True})
    until(lambda: len(lines()) == 2)
    for line in lines():
        figures = re.fullmatch(
            r"POST /v1/chat/completions 200 [\d.]+s prompt=(\d+) reused=\d+ completion=5 first=[\d.]+s", line
        )
        assert figures and int(figures[1]) == used["prompt_tokens"]


def test_what_is_refused_has_one_too_and_nothing_tells_a_text(
    server: Any, lines: Callable[[], list[str]], until: Callable[..., None]
) -> None:
    httpx.post(f"{server.url}{CHAT}?key={SECRET}", json={"messages": SECRET})
    httpx.post(f"{server.url}/tokenize", json={"prompt": SECRET})
    httpx.get(f"{server.url}/v1/" + "%0a" * 100)
    for path in ("/health", "/metrics", "/livez", "/", "/page/chat.css"):
        httpx.get(server.url + path)
    until(lambda: len(lines()) == 3)
    refused, tokenized, odd = lines()
    assert refused.startswith("POST /v1/chat/completions 400 ") and tokenized.startswith("POST /tokenize 200 ")
    assert odd.startswith("GET /v1/\\n\\n") and "\n" not in odd and len(odd) < 160
    assert not any(word in line for line in lines() for word in SECRET.split()[3:])
