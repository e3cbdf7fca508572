"""The backends of `nanochat chat`, which answer: a model in this process, or a server that speaks OpenAI's protocol.

    for said in backend.reply(messages, settings):
        print(said.text)
    backend.finish_reason      # "stop", "length"

Closing the iterator stops the reply.
"""

from __future__ import annotations

import json
import secrets
from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import httpx

from nanochat.parse.json_text import read_json
from nanochat.spec.errors import UserError
from nanochat.storage.records import RECORD

Message = dict[str, Any]

_TIMEOUT = httpx.Timeout(10.0, read=300.0)  # seconds; a busy server may take its time to begin


@dataclass(frozen=True, slots=True)
class ReplySettings:
    """Settings that the slash commands change."""

    temperature: float
    top_k: int  # 0: all
    max_tokens: int


@dataclass(frozen=True, slots=True)
class Said:
    """A stretch of a reply, of the kind "text", "python" (a call of the tool) or "python_output"."""

    kind: str
    text: str


class ContextFull(UserError):
    """The conversation does not fit into the model's context, or leaves too little room for the reply."""


class ChatBackend(Protocol):
    finish_reason: str

    @property
    def name(self) -> str: ...

    def reply(self, messages: Sequence[Message], settings: ReplySettings) -> Generator[Said]: ...


class LocalBackend:
    """A model artifact, loaded into this process."""

    def __init__(self, folder: Path) -> None:
        # torch takes a second or two to import, which talking to a server does not need.
        from nanochat.inference import Engine
        from nanochat.serving.loading import load

        model, self._tokenizer, extra = load(folder)
        self._engine = Engine(model, self._tokenizer, slots=1)
        self.name = f"the {extra['stage']} model" if "stage" in extra else str(folder)
        self.finish_reason = ""

    def reply(self, messages: Sequence[Message], settings: ReplySettings) -> Generator[Said]:
        from nanochat.inference import Sampling
        from nanochat.tokenizer.chat import render_prompt

        prompt = render_prompt(self._tokenizer, messages)
        self._check_room(len(prompt), settings.max_tokens, alone=len(messages) <= 2)
        sampling = Sampling(
            max_tokens=settings.max_tokens,
            temperature=settings.temperature,
            top_k=settings.top_k or None,
            seed=secrets.randbits(62),
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


class RemoteBackend:
    """A server at `url`, with or without /v1 at its end; the key goes into the Authorization header."""

    def __init__(self, url: str, *, api_key: str | None = None) -> None:
        if api_key and not (api_key.isascii() and api_key.isprintable()):
            raise UserError("NANOCHAT_API_KEY has a character outside of printable ASCII, which can't be sent.")
        self._headers = {"Authorization": f"Bearer {api_key}"} if api_key else {}
        self._url = url.rstrip("/").removesuffix("/v1")
        self.finish_reason = ""
        self.name = self._first_model()

    def _first_model(self) -> str:
        try:
            response = httpx.get(f"{self._url}/v1/models", headers=self._headers, timeout=_TIMEOUT)
            self._check(response)
            return response.json()["data"][0]["id"]
        except (httpx.TransportError, httpx.InvalidURL) as error:
            raise self._unreachable(error) from error
        except (ValueError, LookupError, TypeError) as error:
            raise self._stranger() from error

    def reply(self, messages: Sequence[Message], settings: ReplySettings) -> Generator[Said]:
        body: dict[str, Any] = {
            "model": self.name,
            "messages": list(messages),
            "stream": True,
            "temperature": settings.temperature,
            "top_k": settings.top_k,
            "max_tokens": settings.max_tokens,
        }
        try:
            address = f"{self._url}/v1/chat/completions"
            # In ASCII: what a terminal gave that is no text is for the server to refuse.
            sent: dict[str, Any] = {"content": json.dumps(body), "timeout": _TIMEOUT}
            headers = {**self._headers, "Content-Type": "application/json"}
            with httpx.stream("POST", address, headers=headers, **sent) as response:
                self._check(response)
                yield from self._read(response.iter_lines())
        except httpx.TransportError as error:
            raise self._unreachable(error) from error

    def _read(self, lines: Iterator[str]) -> Iterator[Said]:
        for line in lines:
            data = line.removeprefix("data:").strip()
            if not line.startswith("data:") or data == "[DONE]":
                continue
            try:
                said = self._said(read_json(data, limit=RECORD))
            except (ValueError, LookupError, TypeError, AttributeError) as error:
                raise self._stranger() from error
            yield from said

    def _said(self, event: dict[str, Any]) -> list[Said]:
        """The stretches that one event of the stream adds; fields that other servers leave out are not missed."""
        if "error" in event:
            raise UserError(f"The server says: {event['error']['message']}")
        said: list[Said] = []
        for choice in event["choices"]:
            self.finish_reason = choice.get("finish_reason") or self.finish_reason
            delta = choice.get("delta") or {}
            if content := delta.get("content"):
                said.append(Said("text", str(content)))
            if part := delta.get("part"):
                said.append(Said(str(part["type"]), str(part["text"])))
        return said

    def _check(self, response: httpx.Response) -> None:
        if response.is_success:
            return
        response.read()
        try:
            error = response.json()["error"]
            message, code = str(error["message"]), error.get("code")
        except (ValueError, LookupError, TypeError):
            message, code = f"it answered {response.status_code} {response.reason_phrase}", None
        if code == "context_length_exceeded":
            raise ContextFull(message)
        hint = " Set NANOCHAT_API_KEY." if response.status_code == 401 else ""
        raise UserError(f"The server at {self._url} refused: {message}{hint}")

    def _stranger(self) -> UserError:
        return UserError(f"{self._url} does not speak OpenAI's protocol; correct --url.")

    def _unreachable(self, error: Exception) -> UserError:
        return UserError(
            f"No server answers at {self._url} ({error}); start one with `nanochat serve` or correct --url."
        )
