"""Long texts of awkward kinds are refused before they are encoded, and the server goes on answering meanwhile."""

from __future__ import annotations

import threading
from typing import Any

import httpx
import pytest

from nanochat.serving.gate import LEAST_BODY_LIMIT
from nanochat.tokenizer import Tokenizer

KINDS = {
    "spaces": " ", "newlines": "\n", "tabs": "\t", "one letter": "a", "digits": "7", "punctuation": "!",
    "joined emoji": "\U0001f469\u200d\U0001f680", "combining marks": "e\u0301\u0308", "CJK": "\u6f22\u5b57",
    "mixed whitespace": " \n\t\u3000\u00a0", "NUL and control characters": "\0\x1b\x07", "special tokens": "<|bos|>",
    "apostrophes": "'s", "runs just below the cut": " " * 65_535 + "x",
}  # fmt: skip


def _text(kind: str, characters: int) -> str:
    return (KINDS[kind] * (characters // len(KINDS[kind]) + 1))[:characters]


def _post(url: str, text: str) -> httpx.Response:
    body = {"messages": [{"role": "user", "content": text}], "max_tokens": 1}
    return httpx.post(f"{url}/v1/chat/completions", json=body, timeout=60)


@pytest.mark.parametrize("kind", KINDS)
def test_a_text_is_refused_while_the_server_answers(server: Any, kind: str) -> None:
    answers: list[httpx.Response] = []
    asking = threading.Thread(target=lambda: answers.append(_post(server.url, _text(kind, 400_000))))
    asking.start()
    alive = [httpx.get(f"{server.url}/livez", timeout=5).status_code]
    while asking.is_alive():
        alive.append(httpx.get(f"{server.url}/livez", timeout=5).status_code)
    assert [answer.status_code for answer in answers] == [413]
    assert set(alive) == {200}


@pytest.mark.parametrize("kind", KINDS)
def test_a_text_that_is_surely_too_long_is_not_encoded(server: Any, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def encode(_self: Tokenizer, _text: str) -> list[int]:
        raise AssertionError("it was encoded")

    monkeypatch.setattr(Tokenizer, "encode", encode)
    text = _text(kind, LEAST_BODY_LIMIT // 8)  # with \u0000 for a NUL it is still below the limit
    answer = _post(server.url, text)
    assert (answer.status_code, answer.json()["error"]["code"]) == (400, "context_length_exceeded")
    assert answer.json()["error"]["message"].startswith("The prompt has at least ")
