"""Identity: conversations that say who the model is, from any file with one JSON array of messages a line."""

from __future__ import annotations

from functools import cached_property
from pathlib import Path
from random import Random
from types import MappingProxyType
from typing import Any

from nanochat.parse import Malformed
from nanochat.parse.json_text import read_json
from tasks.conversation import conversation_problem
from tasks.task import DataError, Example, Message, SourceFile, Task

LARGEST = 256 << 20  # bytes of a file, which is held in memory
LINE = 1 << 20  # bytes


class Identity(Task):
    name = "identity"
    kind = "chat"
    splits = ("train",)
    files = MappingProxyType({"train": (SourceFile("identity"),)})

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> Example:
        return Example(self._rows[index])

    @cached_property
    def _rows(self) -> list[list[Message]]:
        rows = read_conversations(self.paths()[0])
        Random(self.seed).shuffle(rows)
        return rows


def read_conversations(path: Path) -> list[list[Message]]:
    """The conversations of a JSONL file, each an array of messages or an object with `messages`.

    Raises DataError, with the line, for what is not UTF-8, not JSON, or no conversation of texts up to an answer.
    """
    if path.stat().st_size > LARGEST:
        raise DataError(path, f"more than {LARGEST >> 20} MiB: leave conversations out")
    rows: list[list[Message]] = []
    for number, raw in enumerate(path.read_bytes().split(b"\n"), start=1):
        try:
            line = raw.decode("utf-8-sig" if number == 1 else "utf-8").strip()
        except UnicodeDecodeError:
            raise DataError(path, "not UTF-8: save the file in that encoding", line=number) from None
        if not line:
            continue
        try:
            row = read_json(line, limit=LINE)
        except Malformed as error:
            raise DataError(path, f"{error}: write one conversation a line", line=number) from None
        messages: Any = row.get("messages") if isinstance(row, dict) else row
        problem = conversation_problem(messages, last="assistant", parts=False)
        if problem:
            raise DataError(path, problem, line=number)
        rows.append(list(messages))
    if not rows:
        raise DataError(path, "no conversation in this file: write one JSON array of messages a line")
    return rows
