"""The backends of `nanochat chat`, which answer: a model in this process, or a server (`nanochat.cli.chat_remote`).

    for said in backend.reply(messages, settings):
        print(said.text)
    backend.finish_reason      # "stop", "length"
    backend.dropped            # messages at the beginning that it left out; None where it can't say

Closing the iterator stops the reply.
"""

from __future__ import annotations

import secrets
from collections.abc import Generator, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any, Protocol

from nanochat.spec.errors import UserError

Message = dict[str, Any]


@dataclass(frozen=True, slots=True)
class ReplySettings:
    """Settings that the slash commands change."""

    temperature: float
    top_k: int  # 0: all
    max_tokens: int
    top_p: float = 1.0
    seed: int | None = None  # None: another one for each answer


@dataclass(frozen=True, slots=True)
class Said:
    """A stretch of a reply, of the kind "text", "python" (a call of the tool) or "python_output"."""

    kind: str
    text: str


def merged(said: Sequence[Said]) -> list[Said]:
    """Neighbours of one kind as one."""
    return [Said(kind, "".join(each.text for each in run)) for kind, run in groupby(said, lambda each: each.kind)]


def to_content(said: Sequence[Said]) -> str | list[dict[str, str]]:
    """A reply as a message's content: a string, or its parts where the tool was used."""
    parts = merged(said)
    if all(part.kind == "text" for part in parts):
        return "".join(part.text for part in parts)
    return [{"type": part.kind, "text": part.text} for part in parts]


def from_content(content: str | list[dict[str, str]]) -> list[Said]:
    """The reply that a message's content was."""
    if isinstance(content, str):
        return [Said("text", content)]
    return [Said(part["type"], part["text"]) for part in content]


class ContextFull(UserError):
    """The conversation does not fit into the model's context, or leaves too little room for the reply."""


class ChatBackend(Protocol):
    finish_reason: str
    dropped: int | None

    @property
    def name(self) -> str: ...

    def reply(self, messages: Sequence[Message], settings: ReplySettings) -> Generator[Said]: ...


class LocalBackend:
    """A model artifact, loaded into this process."""

    def __init__(self, folder: Path, *, int8: bool = False, guesses: int = 0) -> None:
        # torch takes a second or two to import, which talking to a server does not need.
        from nanochat.inference import Engine
        from nanochat.serving.loading import load

        model, self._tokenizer, extra = load(folder, int8=int8, beside=True)
        self._engine = Engine(model, self._tokenizer, slots=1, guesses=guesses)
        self.name = f"the {extra['stage']} model" if "stage" in extra else str(folder)
        self.finish_reason = ""
        self.dropped: int | None = 0  # it says ContextFull instead

    def reply(self, messages: Sequence[Message], settings: ReplySettings) -> Generator[Said]:
        from nanochat.inference import Sampling
        from nanochat.tokenizer.chat import render_prompt

        prompt = render_prompt(self._tokenizer, messages)
        self._check_room(len(prompt), settings.max_tokens, alone=len(messages) <= 2)
        sampling = Sampling(
            max_tokens=settings.max_tokens,
            temperature=settings.temperature,
            top_k=settings.top_k or None,
            top_p=settings.top_p,
            seed=secrets.randbits(62) if settings.seed is None else settings.seed,
            repeatable=settings.seed is not None,
        )
        request = self._engine.submit(prompt, sampling)
        try:
            while request.finish_reason is None:
                for event in self._engine.step():
                    for piece in event.pieces:
                        yield Said(piece.kind, piece.text)
        finally:
            self._engine.cancel(request)
            self.finish_reason = request.finish_reason or ""

    def _check_room(self, prompt: int, max_tokens: int, *, alone: bool) -> None:
        """A question that stands alone may fill the context; a longer history gives way to a whole reply."""
        limit = self._engine.length
        room = 1 if alone else min(max_tokens, limit // 4)
        if prompt + room > limit:
            raise ContextFull(
                f"The conversation has {prompt:,} tokens and the model's context holds {limit:,}; "
                "ask something shorter, or begin a new conversation with /clear."
            )
