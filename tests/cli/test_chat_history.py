"""The file of earlier questions: private, bounded, and of any content."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from nanochat.cli import chat_history
from nanochat.cli.chat_history import HistoryFile


def test_questions_come_back_in_their_order(tmp_path: Path) -> None:
    history = HistoryFile(tmp_path / "folder" / "history.jsonl")
    assert history.entries() == []
    for text in ("one", "two\nlines", "é\u2028"):
        history.add(text)
    assert HistoryFile(history.path).entries() == ["one", "two\nlines", "é\u2028"]


def test_nobody_else_reads_it(tmp_path: Path) -> None:
    history = HistoryFile(tmp_path / "history.jsonl")
    history.path.write_text('"one"\n')
    history.path.chmod(0o644)
    assert history.entries() == ["one"]
    assert history.path.stat().st_mode & 0o777 == 0o600


def test_it_stays_small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chat_history, "MOST_BYTES", 1000)
    monkeypatch.setattr(chat_history, "MOST_ENTRIES", 10)
    history = HistoryFile(tmp_path / "history.jsonl")
    for number in range(500):
        history.add(f"question {number}")
        assert history.path.stat().st_size <= 1000
    assert history.entries() == [f"question {number}" for number in range(490, 500)]
    assert history.path.stat().st_mode & 0o777 == 0o600
    assert [path.name for path in tmp_path.iterdir()] == ["history.jsonl"]
    history.add("x" * (chat_history.LONGEST + 1))
    assert history.entries()[-1] == "question 499"


def test_a_file_of_anything_is_read_within_bounds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chat_history, "MOST_BYTES", 100)
    history = HistoryFile(tmp_path / "history.jsonl")
    history.path.write_bytes(b'"old"\n' * 1000 + b'\xff\n5\n["list"]\nnull\n"\\ud800"\n' + b'"new"\n"half')
    assert set(history.entries()[:-1]) == {"old"} and history.entries()[-1] == "new"


@pytest.mark.parametrize("kind", ["link", "pipe", "folder"])
def test_what_is_no_file_is_an_error(tmp_path: Path, kind: str) -> None:
    history = HistoryFile(tmp_path / "history.jsonl")
    if kind == "link":
        (tmp_path / "other").write_text('"secret"\n')
        history.path.symlink_to("other")
    elif kind == "pipe":
        os.mkfifo(history.path)
    else:
        history.path.mkdir()
    with pytest.raises(OSError):
        history.entries()
    with pytest.raises(OSError):
        history.add("one")
