"""HF_TOKEN and HF_ENDPOINT against a server that behaves as the hub: gated data, redirects to another host, ranges."""

from __future__ import annotations

from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler
from pathlib import Path

import pytest
from data_helpers import Answer, FakeHub, cut, status, whole

from nanochat.data.hub import Hub, Retry
from nanochat.data.hub_access import HubAccess
from nanochat.spec.errors import UserError
from nanochat.spec.sources import PUBLIC_HUB, Sources

BODY = bytes(range(256)) * 4000
TOKEN = "hf_SeCrEtSeCrEtSeCrEt"
FILE = "/datasets/a/b/resolve/main/c.parquet"


@pytest.fixture
def other_host() -> Iterator[FakeHub]:
    """Where the hub redirects to: the network that holds the files."""
    server = FakeHub()
    server.files["/signed"] = BODY
    yield server
    server.close()


def gated(*answers: Answer, token: str = TOKEN) -> list[Answer]:
    """Each answer is given to the token alone, as the hub refuses without it."""

    def answer(wanted: Answer) -> Answer:
        def check(handler: BaseHTTPRequestHandler, body: bytes) -> None:
            right = handler.headers.get("Authorization") == f"Bearer {token}"
            (wanted if right else status(401, X_Error_Code="GatedRepo", X_Error_Message="Access is restricted"))(
                handler, body
            )

        return check

    return [answer(wanted) for wanted in answers]


def fetch(server: FakeHub, target: Path, environment: dict[str, str]) -> bytes:
    access = HubAccess.of({"HF_ENDPOINT": server.base} | environment)
    with Hub(retry=Retry(attempts=3), sleep=lambda seconds: None, access=access) as hub:
        hub.fetch(f"{server.base}{FILE}", target, setting="sources.hub", limit=len(BODY))
    return target.read_bytes()


def tokens(server: FakeHub) -> list[str | None]:
    return [headers.get("Authorization") for _, headers in server.requests]


def test_the_token_opens_what_is_gated(hub_server: FakeHub, tmp_path: Path) -> None:
    hub_server.files[FILE] = BODY
    hub_server.answers[FILE] = gated(lambda handler, body: whole(handler, body, '"1"'))
    assert fetch(hub_server, tmp_path / "a", {"HF_TOKEN": f" {TOKEN}\n"}) == BODY
    assert tokens(hub_server) == [f"Bearer {TOKEN}"]


@pytest.mark.parametrize("code", [301, 302, 303, 307, 308])
def test_the_token_stays_at_the_hub(hub_server: FakeHub, other_host: FakeHub, tmp_path: Path, code: int) -> None:
    """The first redirect stays at the hub, the second goes to another host; what was cut there is continued there."""
    on = status(code, Location=f"{hub_server.base}/resolve-cache")
    away = status(code, Location=f"{other_host.base}/signed", ETag='"0"')
    hub_server.answers |= {FILE: gated(on, on), "/resolve-cache": gated(away, away)}
    other_host.answers["/signed"] = [cut(0.5)]
    assert fetch(hub_server, tmp_path / "a", {"HF_TOKEN": TOKEN}) == BODY
    assert tokens(hub_server) == [f"Bearer {TOKEN}"] * 4
    assert tokens(other_host) == [None, None]
    assert other_host.ranges("/signed") == [None, f"bytes={len(BODY) // 2}-"]


def test_no_other_source_gets_the_token(hub_server: FakeHub, other_host: FakeHub, tmp_path: Path) -> None:
    access = HubAccess.of({"HF_ENDPOINT": hub_server.base, "HF_TOKEN": TOKEN})
    with Hub(access=access) as hub:
        hub.fetch(f"{other_host.base}/signed", tmp_path / "a", setting="sources.words.url", limit=len(BODY))
    assert tokens(other_host) == [None]


@pytest.mark.parametrize(
    ("code", "why", "token", "message"),
    [
        (
            401,
            "GatedRepo",
            "",
            r"HTTP 401, GatedRepo\): it is gated or private: .* set HF_TOKEN .* correct sources\.hub",
        ),
        (403, "", "", r"HTTP 403\): it is gated or private"),
        (403, "GatedRepo", TOKEN, r"HTTP 403, GatedRepo\): accept its terms on the hub with the account of HF_TOKEN"),
        (401, "", TOKEN, r"HTTP 401\): accept its terms .* give that token the right to read it"),
        (403, "<script>", TOKEN, r"HTTP 403\): accept its terms"),
        (404, "EntryNotFound", TOKEN, r"does not exist \(HTTP 404, EntryNotFound\): correct sources\.hub"),
    ],
)
def test_a_source_that_is_refused_is_named(
    hub_server: FakeHub, tmp_path: Path, code: int, why: str, token: str, message: str
) -> None:
    hub_server.answers[FILE] = [status(code, X_Error_Code=why)]
    with pytest.raises(UserError, match=message) as error:
        fetch(hub_server, tmp_path / "a", {"HF_TOKEN": token})
    assert error.value.message.startswith(f"{hub_server.base}{FILE} ")
    assert TOKEN not in error.value.message
    assert len(hub_server.requests) == 1


def test_who_is_refused_elsewhere_learns_where_the_token_goes(other_host: FakeHub, tmp_path: Path) -> None:
    other_host.answers["/x"] = [status(401)]
    with Hub(access=HubAccess.of({"HF_TOKEN": TOKEN})) as hub, pytest.raises(UserError, match=PUBLIC_HUB) as error:
        hub.fetch(f"{other_host.base}/x", tmp_path / "a", setting="sources.text", limit=1)
    assert "HF_ENDPOINT" in error.value.message and TOKEN not in error.value.message


@pytest.mark.parametrize(
    ("given", "hub"),
    [
        ({}, "https://hub.example/x"),
        ({"hub": "https://own.example"}, "https://own.example"),
        ({"mirror": "https://mirror.example/"}, "https://mirror.example"),
    ],
)
def test_the_endpoint_stands_where_nothing_else_is_said(given: dict[str, str], hub: str) -> None:
    access = HubAccess.of({"HF_ENDPOINT": "https://hub.example/x/"})
    assert access.located(Sources.model_validate(given)).hub == hub
    assert HubAccess.of({}).located(Sources()).hub == HubAccess.of({"HF_ENDPOINT": ""}).endpoint == PUBLIC_HUB


@pytest.mark.parametrize(
    ("url", "sent"),
    [
        ("https://hub.example/a", True), ("https://hub.example:443/a", True), ("https://HUB.example/a", True),
        ("http://hub.example/a", False), ("https://hub.example:8443/a", False), ("https://hub.example.org/a", False),
        ("https://hub.example@evil.example/a", False), ("https://a.hub.example/a", False),
        ("https://evil.example/https://hub.example", False), ("https://hub.example:x/", False),
    ],
)  # fmt: skip
def test_the_token_goes_to_one_origin(url: str, sent: bool) -> None:
    access = HubAccess.of({"HF_ENDPOINT": "https://hub.example", "HF_TOKEN": TOKEN})
    assert bool(access.headers(url)) == sent
    assert TOKEN not in repr(access)


@pytest.mark.parametrize(
    "environment",
    [
        {"HF_ENDPOINT": "hub.example"}, {"HF_ENDPOINT": "s3://bucket"}, {"HF_ENDPOINT": "https:///x"},
        {"HF_ENDPOINT": "https://a:b@hub.example"}, {"HF_ENDPOINT": "https://hub.example:99999"},
        {"HF_ENDPOINT": "https://hub.example/?x=1"}, {"HF_ENDPOINT": "https://[hub"},
        {"HF_TOKEN": "two words"}, {"HF_TOKEN": "a\nX-Evil: 1"}, {"HF_TOKEN": "é"}, {"HF_TOKEN": "a" * 3000},
    ],
)  # fmt: skip
def test_variables_that_cannot_be_are_one_sentence(environment: dict[str, str]) -> None:
    (name,) = environment
    with pytest.raises(UserError, match=rf"^{name} (must be an address|is no token)") as error:
        HubAccess.of(environment)
    assert environment[name] not in error.value.message
