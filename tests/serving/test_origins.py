"""Scripts of other web pages: who may ask, and read what is answered."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import httpx
import pytest

from nanochat.serving.settings import ServerSettings
from nanochat.spec.errors import UserError

CHAT = "/v1/chat/completions"
BODY = {"messages": [{"role": "user", "content": "Hi"}], "max_tokens": 1}
PAGE = "https://chat.example.org"
ASKS = {"Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "authorization, x-stainless-os"}
ALLOWED = "access-control-allow-origin"


def test_without_the_setting_no_other_page_may(server: Any) -> None:
    for answer in (
        httpx.options(server.url + CHAT, headers={"Origin": PAGE, **ASKS}),
        httpx.post(server.url + CHAT, json=BODY, headers={"Origin": PAGE}),
    ):
        assert ALLOWED not in answer.headers


@pytest.mark.parametrize(("origins", "allowed"), [({PAGE}, PAGE), ({"*"}, "*")])
def test_listed_pages_may_also_read_errors(start: Callable[..., Any], origins: set[str], allowed: str) -> None:
    url = start(settings=ServerSettings(api_keys=frozenset({"key"}), origins=frozenset(origins))).url
    asked = httpx.options(url + CHAT, headers={"Origin": PAGE, **ASKS})
    assert asked.status_code == 200 and asked.headers[ALLOWED] == allowed
    assert "x-stainless-os" in asked.headers["access-control-allow-headers"]
    for headers, status in (({}, 401), ({"Authorization": "Bearer key"}, 200)):
        answer = httpx.post(url + CHAT, json=BODY, headers={"Origin": PAGE, **headers})
        assert (answer.status_code, answer.headers[ALLOWED]) == (status, allowed)
        assert answer.headers["access-control-expose-headers"] == "Retry-After"
    other = httpx.options(url + CHAT, headers={"Origin": "https://elsewhere.example", **ASKS})
    assert (other.headers.get(ALLOWED) == "*") == (allowed == "*")


def test_origins_of_the_environment() -> None:
    def read(value: str) -> frozenset[str]:
        return ServerSettings.from_environment({"NANOCHAT_ALLOWED_ORIGINS": value}, local=True).origins

    assert read(f"{PAGE}, http://LOCALHOST:3000") == {PAGE, "http://localhost:3000"}
    assert read("*") == {"*"}
    for wrong in ("chat.example.org", f"{PAGE}/", f"{PAGE}/chat", "https://*.example.org", "https://a@b", "null"):
        with pytest.raises(UserError, match="which is no origin; write it as https://"):
            read(wrong)
