"""docs/serving.md has every field of the chat API and the versions of the clients that are tried."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from nanochat.serving.bodies import Body
from nanochat.serving.completion_request import CompletionRequest
from nanochat.serving.messages import ChatMessage
from nanochat.serving.protocol import ChatRequest
from nanochat.serving.responses_request import ResponsesRequest
from nanochat.serving.sampled import SampledRequest

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs/serving.md").read_text()
PYTHON = ("openai", "litellm", "langchain-openai", "llm")
NODE = ("openai", "ai", "@ai-sdk/openai", "@ai-sdk/openai-compatible")


@pytest.mark.parametrize(
    ("head", "body"),
    [
        ("| field |", ChatRequest),
        ("| field of a message |", ChatMessage),
        ("| field of a response |", ResponsesRequest),
    ],
)
def test_every_field_is_in_its_table(head: str, body: type[Body]) -> None:
    rows = PAGE[PAGE.index(head) :].split("\n\n")[0].splitlines()[2:]
    named = [name for row in rows for name in re.findall(r"`(\w+)`", row.split("|")[1])]
    assert sorted(named) == sorted(body.model_fields)


def test_every_field_of_a_completion_is_in_its_table_or_one_of_the_chat_api() -> None:
    rows = PAGE[PAGE.index("| field of a completion |") :].split("\n\n")[0].splitlines()[2:]
    named = {name for row in rows for name in re.findall(r"`(\w+)`", row.split("|")[1])}
    assert named | SampledRequest.model_fields.keys() == CompletionRequest.model_fields.keys()


def test_the_clients_have_their_versions() -> None:
    pinned = dict(re.findall(r"^([\w-]+)==(\S+)$", (ROOT / "tests/clients/requirements.txt").read_text(), re.M))
    installed = json.loads((ROOT / "tests/clients/package.json").read_text())["dependencies"]
    rows = PAGE[PAGE.index("| client |") :].split("\n\n")[0]
    for version in [*(pinned[name] for name in PYTHON), *(installed[name] for name in NODE)]:
        assert version in rows
