"""How often a key may ask."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nanochat.serving.rates import WINDOW, Rates
from nanochat.serving.settings import ServerSettings
from nanochat.spec.errors import UserError

MODELS = "/v1/models"


@given(most=st.integers(1, 5), pauses=st.lists(st.integers(0, 160).map(lambda quarters: quarters / 4), max_size=40))
def test_never_more_than_so_many_in_any_minute_and_each_refusal_is_honest(most: int, pauses: list[float]) -> None:
    rates, now, taken = Rates(most), 1000.0, []
    for pause in pauses:
        now += pause
        left = rates.wait("a", now)
        within = [at for at in taken if now - at < WINDOW]
        assert (left == 0) == (len(within) < most)
        if left:
            assert left == pytest.approx(within[-most] + WINDOW - now)
        else:
            taken.append(now)


def test_keys_are_counted_each_for_itself_and_what_is_refused_is_not_counted() -> None:
    rates = Rates(2)
    assert [rates.wait("a", at) for at in (0.0, 1.0, 2.0, 3.0)] == [0.0, 0.0, 58.0, 57.0]
    assert rates.wait("b", 3.0) == 0.0
    assert rates.wait("a", 60.0) == 0.0 and rates.wait("a", 60.5) == 0.5


def test_a_key_that_asks_too_often_is_told_when_to_ask(start: Callable[..., Any]) -> None:
    settings = ServerSettings(api_keys=frozenset({"one", "two"}), key_requests=2)
    url = start(settings=settings).url

    def ask(key: str, path: str = MODELS) -> httpx.Response:
        return httpx.get(url + path, headers={"Authorization": f"Bearer {key}"})

    assert [ask("one").status_code for _ in range(2)] == [200, 200]
    refused = ask("one")
    assert refused.status_code == 429 and refused.json()["error"]["code"] == "rate_limit_exceeded"
    after = int(refused.headers["Retry-After"])
    assert 1 <= after <= 60
    assert (
        refused.json()["error"]["message"]
        == f"This key may ask 2 times a minute, and has; try again in {after} seconds."
    )
    assert ask("two").status_code == 200 and ask("three").status_code == 401
    assert {ask("one", path).status_code for path in ("/", "/health", "/metrics")} == {200}


@pytest.mark.parametrize("wrong", ["", "0", "-1", "1.5", "x", "10001", "1e3", "\u0663"])
def test_the_setting_is_a_whole_number_within_bounds(wrong: str) -> None:
    name = "NANOCHAT_KEY_REQUESTS_PER_MINUTE"
    keys = {"NANOCHAT_API_KEYS": "a"}
    assert ServerSettings.from_environment({**keys, name: " 60 "}, local=True).key_requests == 60
    with pytest.raises(UserError, match=f"^{name} is .*; set it to a whole number from 1 to 10000"):
        ServerSettings.from_environment({**keys, name: wrong}, local=True)
    with pytest.raises(UserError, match="NANOCHAT_API_KEYS is not: it counts by key"):
        ServerSettings.from_environment({name: "60"}, local=True)
