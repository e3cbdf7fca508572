"""A server that speaks OpenAI's protocol, as a backend of `nanochat chat`.

    backend = RemoteBackend("http://127.0.0.1:8000")

The server is asked to leave out the oldest exchanges where an answer would have no room; one that refuses the field is
asked without it. The server may be anyone's: what it sends is bounded in size, and so is the time in which it says
something. Nothing is unpacked, and no redirection is followed.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Generator, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager, suppress
from typing import Any, TypeVar

import httpx

from nanochat.cli.chat_backends import ContextFull, Message, ReplySettings, Said
from nanochat.cli.printable import printable
from nanochat.parse.json_text import read_json
from nanochat.spec.errors import UserError
from nanochat.storage.records import RECORD

T = TypeVar("T")

CONNECT_SECONDS = 10.0
SILENT_SECONDS = 300.0  # a busy server may take its time to begin, and a slow one from piece to piece
MOST_ANSWER = 16 << 20  # bytes of a stream
MOST_WORDS = 500  # characters of a server's own messages and names
MOST_MESSAGES = 1 << 20
UNKNOWN_FIELD = (400, 422)  # how servers answer that refuse fields which they do not know
KINDS = ("text", "python", "python_output")
_STRANGE = (ValueError, LookupError, TypeError, AttributeError)  # what reading the wrong protocol meets


class Refused(UserError):
    """The server answers with an error's status."""

    def __init__(self, message: str, *, status: int) -> None:
        super().__init__(message)
        self.status = status


class RemoteBackend:
    """A server at `url`, with or without /v1 at its end; the key goes into the Authorization header."""

    def __init__(self, url: str, *, api_key: str | None = None) -> None:
        if api_key and not (api_key.isascii() and api_key.isprintable()):
            raise UserError("NANOCHAT_API_KEY has a character outside of printable ASCII, which can't be sent.")
        self._headers = {"Accept-Encoding": "identity"}
        if api_key:
            self._headers["Authorization"] = f"Bearer {api_key}"
        self._url = url.rstrip("/").removesuffix("/v1")
        self.finish_reason = ""
        self.dropped: int | None = None
        self._truncation = {"truncation": "auto"}
        self._model = asyncio.run(self._in_time(self._first_model()))
        self.name = _words(self._model)

    def reply(self, messages: Sequence[Message], settings: ReplySettings) -> Generator[Said]:
        self.finish_reason, self.dropped = "", None
        said = self._said(
            {
                "model": self._model,
                "messages": list(messages),
                "stream": True,
                "temperature": settings.temperature,
                "top_k": settings.top_k,
                "max_tokens": settings.max_tokens,
                **({"top_p": settings.top_p} if settings.top_p < 1 else {}),
                **({"seed": settings.seed} if settings.seed is not None else {}),
            }
        )
        with asyncio.Runner() as runner:
            try:
                while (stretch := runner.run(self._in_time(anext(said, None)))) is not None:
                    yield stretch
            finally:
                runner.run(_closed(said))  # which ends the request

    async def _in_time(self, work: Awaitable[T]) -> T:
        """The result; UserError, in one sentence, for all that a server can do instead of giving one."""
        try:
            async with asyncio.timeout(SILENT_SECONDS):
                return await work
        except TimeoutError:
            raise UserError(
                f"The server at {self._url} said nothing for {SILENT_SECONDS:g} seconds; ask again."
            ) from None
        except (httpx.ConnectError, httpx.ConnectTimeout, httpx.UnsupportedProtocol, httpx.InvalidURL) as error:
            raise UserError(
                f"No server answers at {self._url} ({_words(str(error))}); "
                "start one with `nanochat serve` or correct --url."
            ) from error
        except httpx.TransportError as error:
            why = _words(str(error)) or type(error).__name__
            raise UserError(f"The server at {self._url} broke off ({why}); ask again or correct --url.") from error
        except _STRANGE as error:
            raise UserError(f"{self._url} does not speak OpenAI's protocol; correct --url.") from error

    @asynccontextmanager
    async def _asked(self, method: str, path: str, content: str | None = None) -> AsyncIterator[httpx.Response]:
        """A good answer, not yet read."""
        headers = {**self._headers, "Content-Type": "application/json"}
        async with (
            httpx.AsyncClient(timeout=httpx.Timeout(None, connect=CONNECT_SECONDS)) as client,
            client.stream(method, f"{self._url}{path}", headers=headers, content=content) as response,
        ):
            if not response.is_success:
                await self._refused(response)
            yield response

    async def _first_model(self) -> str:
        async with self._asked("GET", "/v1/models") as response:
            name = read_json(await self._whole(response), limit=RECORD)["data"][0]["id"]
        if not isinstance(name, str):
            raise TypeError
        return name

    async def _said(self, body: dict[str, Any]) -> AsyncGenerator[Said]:
        began = False
        async with AsyncExitStack() as stack:
            try:
                response = await stack.enter_async_context(self._completion({**body, **self._truncation}))
            except Refused as error:
                if error.status not in UNKNOWN_FIELD or not self._truncation:
                    raise
                response = await stack.enter_async_context(self._completion(body))
                self._truncation = {}
            async for line in self._lines(response):
                data = line.removeprefix(b"data:").strip()
                if data == b"[DONE]":
                    return
                if line.startswith(b"data:"):
                    for stretch in self._stretches(read_json(data, limit=RECORD)):
                        began = True
                        yield stretch
        if began and not self.finish_reason:
            raise UserError(f"The server at {self._url} ended its answer early; ask again.")
        if not self.finish_reason:
            raise ValueError("no answer")

    def _completion(self, body: dict[str, Any]) -> AbstractAsyncContextManager[httpx.Response]:
        # In ASCII: what a terminal gave that is no text is for the server to refuse.
        return self._asked("POST", "/v1/chat/completions", json.dumps(body))

    def _stretches(self, event: dict[str, Any]) -> list[Said]:
        """The stretches that one event of the stream adds; fields that other servers leave out are not missed."""
        if "error" in event:
            raise UserError(f"The server says: {_words(event['error']['message'])}")
        said: list[Said] = []
        if "dropped_messages" in event:
            self.dropped = _count(event["dropped_messages"])
        for choice in event["choices"]:
            self.finish_reason = choice.get("finish_reason") or self.finish_reason
            delta = choice.get("delta") or {}
            if content := delta.get("content"):
                said.append(Said("text", content))
            if part := delta.get("part"):
                said.append(Said(part["type"], part["text"]))
        if not all(each.kind in KINDS and isinstance(each.text, str) for each in said):
            raise ValueError("a stretch that is no text")
        return said

    async def _lines(self, response: httpx.Response) -> AsyncIterator[bytes]:
        rest = b""
        async for chunk in self._chunks(response, most=MOST_ANSWER):
            *lines, rest = (rest + chunk).split(b"\n")
            for line in lines:
                yield line
            if len(rest) > RECORD:
                raise ValueError("a line without an end")
        yield rest

    async def _whole(self, response: httpx.Response) -> bytes:
        return b"".join([chunk async for chunk in self._chunks(response, most=RECORD)])

    async def _chunks(self, response: httpx.Response, *, most: int) -> AsyncIterator[bytes]:
        read = 0
        async for chunk in response.aiter_raw():
            read += len(chunk)
            if read > most:
                raise UserError(f"The server at {self._url} sent more than {most:,} bytes at once; correct --url.")
            yield chunk

    async def _refused(self, response: httpx.Response) -> None:
        body, code = await self._whole(response), None
        message = f"it answered {response.status_code} {response.reason_phrase}"
        with suppress(*_STRANGE):
            error = read_json(body, limit=RECORD)["error"]
            message, code = str(error["message"]), error.get("code")
        if code == "context_length_exceeded":
            raise ContextFull(_words(message))
        hint = " Set NANOCHAT_API_KEY." if response.status_code == 401 else ""
        raise Refused(f"The server at {self._url} refused: {_words(message)}{hint}", status=response.status_code)


async def _closed(said: AsyncGenerator[Said]) -> None:
    await said.aclose()


def _count(value: object) -> int:
    """How many messages of whole exchanges."""
    if not isinstance(value, int) or value not in range(0, MOST_MESSAGES, 2):
        raise ValueError("no number of messages")
    return value


def _words(text: str) -> str:
    """A server's own words on one line of a terminal."""
    return printable(text[:MOST_WORDS])
