"""The answer to one request, from the engine's events to what is sent; what is left ends when the client goes.

talk = ChatResponder(model, exchange, body, prompt)
EventStream(exchange, talk.chunks())                    # a stream
await unless_disconnected(request, talk.collect())      # the whole answer
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Mapping
from typing import Any, Protocol, TypeVar

from fastapi import Request
from fastapi.responses import StreamingResponse
from starlette.types import Receive, Scope, Send

from nanochat.inference import Completion, Event
from nanochat.serving.answers import StreamEncoder, answer, head, logprob
from nanochat.serving.chat_prompt import ChatPrompt
from nanochat.serving.errors import ApiError
from nanochat.serving.exchange import Exchange
from nanochat.serving.holder import Model
from nanochat.serving.objects import ChatCompletion, ChosenToken
from nanochat.serving.protocol import ChatRequest
from nanochat.serving.service import EngineFailed
from nanochat.spec.errors import UserError

T = TypeVar("T")


class Responder(Protocol):
    """An answer, in the shape of one of the APIs."""

    async def collect(self) -> Mapping[str, Any]: ...

    def chunks(self) -> AsyncIterator[str]: ...


class Encoder(Protocol):
    """The server-sent events of an answer."""

    def begin(self) -> str: ...

    def add(self, index: int, event: Event) -> str: ...

    def end(self, *, prompt: int | None) -> str: ...

    def fail(self, error: ApiError) -> str: ...


class ChatResponder:
    """The answer to one request, whole or as a stream."""

    def __init__(self, model: Model, exchange: Exchange, body: ChatRequest, prompt: ChatPrompt) -> None:
        self._tokenizer, self._exchange, self._body, self._prompt = model.tokenizer, exchange, body, len(prompt.ids)
        self._head = head(model.served.full_name, model.served.fingerprint, kind="chatcmpl")
        if body.truncation == "auto":
            self._head["dropped_messages"] = prompt.dropped

    async def collect(self) -> ChatCompletion:
        """The whole answer."""
        body = self._body
        completions: dict[int, Completion] = {}
        logprobs: list[list[ChosenToken]] = [[] for _ in range(body.choices)]
        async for index, event in self._exchange:
            logprobs[index] += logprob(event, self._tokenizer)
            if event.finish_reason is not None:
                completions[index] = event.request.completion
        ordered = [completions[index] for index in range(body.choices)]
        return answer(self._head, ordered, prompt=self._prompt, logprobs=logprobs if body.logprobs else None)

    def chunks(self) -> AsyncIterator[str]:
        """The stream, chunk by chunk."""
        body = self._body
        encoder = StreamEncoder(self._head, self._tokenizer, choices=body.choices, logprobs=bool(body.logprobs))
        return streamed(self._exchange, encoder, prompt=self._prompt if body.wants_usage else None)


async def streamed(exchange: Exchange, encoder: Encoder, *, prompt: int | None) -> AsyncIterator[str]:
    """The events of an answer as they come, those together that are there together: of several samples, or because the
    client reads slowly; with the tokens of the `prompt` the usage is the last one."""
    yield encoder.begin()
    texts: list[str] = []
    try:
        async for index, event in exchange:
            texts.append(encoder.add(index, event))
            if not exchange.more and any(texts):
                yield "".join(texts)
                texts = []
    except (EngineFailed, UserError) as error:
        yield "".join(texts) + encoder.fail(ended(error))
        return
    yield encoder.end(prompt=prompt)


def ended(error: EngineFailed | UserError) -> ApiError:
    """The error that a client is told where the engine ended the answer: it failed, or it refuses the request."""
    if isinstance(error, UserError):
        return ApiError(400, error.message)
    return ApiError(500, str(error), kind="server_error")


class EventStream(StreamingResponse):
    """Server-sent events; what is left is cancelled when the client goes, even before the first one."""

    media_type = "text/event-stream"

    def __init__(self, exchange: Exchange, content: AsyncIterator[str]) -> None:
        super().__init__(content, headers={"Cache-Control": "no-store", "X-Accel-Buffering": "no"})
        self._exchange = exchange

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._exchange.close()


async def unless_disconnected(request: Request, work: Awaitable[T]) -> T:
    """The result of `work`, which is cancelled when the client goes first."""

    async def gone() -> None:
        while (await request.receive())["type"] != "http.disconnect":
            pass

    task, watch = asyncio.ensure_future(work), asyncio.ensure_future(gone())
    try:
        await asyncio.wait((task, watch), return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            # Nobody reads this answer; 499 is what proxies log for it.
            raise ApiError(499, "The client went away.", kind="client_closed_request")
        return task.result()
    finally:
        for each in (task, watch):
            each.cancel()
        await asyncio.gather(task, watch, return_exceptions=True)
