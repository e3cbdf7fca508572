"""Round trips with the clients that people use; `make test-clients` installs them, and prints this table.

Those that hand on fields they don't know bring the tool's calls back; to the others an answer is its text.
"""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest

HERE = Path(__file__).parent
pytestmark = pytest.mark.clients

PROGRAMS = {
    "Python": [str(HERE / ".venv/bin/python"), str(HERE / "python_clients.py")],
    "Node.js": ["node", str(HERE / "node_clients.mjs")],
}
KEEPS_PARTS = {("Python", "openai"), ("Node.js", "openai")}
CLIENTS = [
    ("Python", "openai"), ("Python", "litellm"), ("Python", "langchain-openai"), ("Python", "llm"),
    ("Node.js", "openai"), ("Node.js", "@ai-sdk/openai"), ("Node.js", "@ai-sdk/openai, responses"),
    ("Node.js", "@ai-sdk/openai-compatible"),
]  # fmt: skip


@pytest.fixture(scope="session")
def found(url: str) -> dict[tuple[str, str], dict]:
    """What every client got, by language and name."""
    everything = {}
    for language, command in PROGRAMS.items():
        ran = subprocess.run([*command, url], capture_output=True, text=True, timeout=170)
        assert ran.returncode == 0, ran.stderr
        for name, result in json.loads(ran.stdout.splitlines()[-1]).items():
            everything[language, name] = result
    print(
        "\n" + "\n".join(f"{language:8} {name:26} {found['version']}" for (language, name), found in everything.items())
    )
    return everything


def test_the_clients_are_those(found: dict[tuple[str, str], dict]) -> None:
    assert list(found) == CLIENTS


@pytest.mark.parametrize("client", CLIENTS, ids="-".join)
def test_round_trips(found: dict[tuple[str, str], dict], client: tuple[str, str]) -> None:
    cases = dict(found[client]["cases"])
    refused = cases.pop("image")
    assert "is an image, and this model reads text alone; leave it out." in refused
    known = "I calculated it." if client in KEEPS_PARTS else "I said it."
    expected = {case: known if case.startswith("own answer") else "It is 42." for case in cases}
    assert cases == expected and len(cases) >= 5
