"""Fixtures of the data tests."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from data_helpers import SPECIAL, FakeHub

from nanochat.data.tokenfile import ConversationFile, write_conversations, write_text


@pytest.fixture
def hub_server() -> Iterator[FakeHub]:
    server = FakeHub()
    yield server
    server.close()


@pytest.fixture
def text_file(tmp_path: Path) -> Callable[[list[list[int]]], Path]:
    """Writes documents as a token file and returns its folder."""
    made = iter(range(1000))

    def make(documents: list[list[int]]) -> Path:
        folder = tmp_path / f"text-{next(made)}"
        folder.mkdir()
        write_text(folder, documents, bos=SPECIAL["bos"], vocab_size=200)
        return folder

    return make


@pytest.fixture
def chat_file(tmp_path: Path) -> Callable[[list[tuple[list[int], list[int]]]], ConversationFile]:
    """Writes conversations and opens them."""
    made = iter(range(1000))

    def make(rows: list[tuple[list[int], list[int]]]) -> ConversationFile:
        folder = tmp_path / f"chat-{next(made)}"
        folder.mkdir()
        write_conversations(folder, rows, special=SPECIAL, vocab_size=200)
        return ConversationFile(folder)

    return make
