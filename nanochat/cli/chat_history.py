"""The questions of earlier chats in the terminal, in a file that nobody else may read and that stays small.

    history = HistoryFile(folder / "chat_history.jsonl")
    history.entries()          # the oldest first
    history.add("Who are you?")

A line is a question as a JSON text; lines that are none are passed over. OSError where the file cannot be used.
"""

from __future__ import annotations

import json
import os
import stat
from pathlib import Path

from nanochat.parse import Malformed
from nanochat.parse.json_text import read_json
from nanochat.storage import files

MOST_BYTES = 1 << 20  # of the file; at more, its older half goes
MOST_ENTRIES = 1000  # that are read
LONGEST = 10_000  # characters; what is longer is not kept


class HistoryFile:
    """Several chats may write it at once."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def entries(self) -> list[str]:
        """The newest questions, the oldest of them first."""
        try:
            lines = self._newest_lines(MOST_BYTES)[-MOST_ENTRIES:]
        except FileNotFoundError:
            return []
        return [text for line in lines if (text := _text(line))]

    def add(self, text: str) -> None:
        """Keep a question, unless it is very long."""
        if len(text) > LONGEST:
            return
        self.path.parent.mkdir(parents=True, exist_ok=True)
        handle = self._open(os.O_WRONLY | os.O_APPEND | os.O_CREAT)
        try:
            os.write(handle, _line(text))
            size = os.fstat(handle).st_size
        finally:
            os.close(handle)
        if size > MOST_BYTES:
            self._halve()

    def _halve(self) -> None:
        lines = self._newest_lines(MOST_BYTES // 2)
        scratch = files.temporary(self.path)
        with open(os.open(scratch, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
            file.write(b"".join(line + b"\n" for line in lines))
        os.replace(scratch, self.path)

    def _newest_lines(self, most: int) -> list[bytes]:
        """The whole lines of the last `most` bytes."""
        handle = self._open(os.O_RDONLY)
        try:
            size = os.fstat(handle).st_size
            data = os.pread(handle, most, max(0, size - most))
        finally:
            os.close(handle)
        lines = data.split(b"\n")
        return lines[1 if size > most else 0 : -1]

    def _open(self, flags: int) -> int:
        handle = os.open(self.path, flags | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, 0o600)
        mode = os.fstat(handle).st_mode
        if not stat.S_ISREG(mode):
            os.close(handle)
            raise OSError(f"{self.path} is no file")
        if stat.S_IMODE(mode) != 0o600:
            os.fchmod(handle, 0o600)
        return handle


def _line(text: str) -> bytes:
    return json.dumps(text).encode() + b"\n"


def _text(line: bytes) -> str:
    try:
        text = read_json(line, limit=MOST_BYTES)
    except Malformed:
        return ""
    return text if isinstance(text, str) else ""
