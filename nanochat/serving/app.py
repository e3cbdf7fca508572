"""The HTTP application: chat completions, models, health and the page.

    service = EngineService(Engine(model, tokenizer))
    app = create_app(service, tokenizer, served=Served("my-model", fingerprint), settings=ServerSettings())

/livez says whether the process works, /readyz whether it should get requests, /health both for people.
"""

from __future__ import annotations

import asyncio
import hmac
import secrets
import time
from collections.abc import AsyncIterator, Awaitable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, TypeVar

from fastapi import APIRouter, Depends, FastAPI, Request, Response
from fastapi.concurrency import run_in_threadpool
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse, JSONResponse, StreamingResponse
from starlette.exceptions import HTTPException
from starlette.types import Receive, Scope, Send

from nanochat.inference import Completion, ContextTooLong, Sampling
from nanochat.serving.answers import Chunks, Head, answer, logprob, sse
from nanochat.serving.errors import ApiError, api_error, http_error, invalid_request
from nanochat.serving.exchange import Exchange
from nanochat.serving.page import content_security_policy, read_page
from nanochat.serving.protocol import ChatRequest
from nanochat.serving.service import EngineFailed, EngineService, Overloaded
from nanochat.spec.errors import UserError
from nanochat.tokenizer import Tokenizer
from nanochat.tokenizer.chat import check_messages, render_prompt

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Served:
    """The model as the API names it."""

    name: str
    fingerprint: str
    created: int = field(default_factory=lambda: int(time.time()))


@dataclass(frozen=True, slots=True)
class ServerSettings:
    """What holds for requests that do not say otherwise, and the limits of the server."""

    temperature: float = 0.8
    top_k: int = 50
    api_keys: frozenset[str] = frozenset()  # none: everyone may ask
    queue_seconds: float = 60.0  # how long a request waits for its first token


def create_app(service: EngineService, tokenizer: Tokenizer, *, served: Served, settings: ServerSettings) -> FastAPI:
    """The application. It starts the service when it starts, and stops it when it ends."""

    @asynccontextmanager
    async def lifespan(_app: FastAPI) -> AsyncIterator[None]:
        service.start()
        yield
        await run_in_threadpool(service.stop)

    app = FastAPI(title="nanochat", lifespan=lifespan, openapi_url=None)
    app.add_exception_handler(ApiError, api_error)
    app.add_exception_handler(RequestValidationError, invalid_request)
    app.add_exception_handler(HTTPException, http_error)
    app.include_router(_pages(service, served))
    app.include_router(_Api(service, tokenizer, served=served, settings=settings).router())
    return app


def _pages(service: EngineService, served: Served) -> APIRouter:
    router = APIRouter()
    page = read_page()
    headers = {
        "Content-Security-Policy": content_security_policy(page),
        "Referrer-Policy": "no-referrer",
        "X-Content-Type-Options": "nosniff",
    }

    @router.get("/", include_in_schema=False)
    async def chat_page() -> HTMLResponse:
        return HTMLResponse(page, headers=headers)

    @router.get("/health")
    async def health() -> JSONResponse:
        status = "failed" if not service.alive else "draining" if service.draining else "ok"
        body = {"status": status, "model": served.name, "open": service.open, "slots": service.slots}
        return JSONResponse(body, status_code=200 if status == "ok" else 503)

    @router.get("/livez")
    async def livez() -> Response:
        return Response(status_code=200 if service.alive else 503)

    @router.get("/readyz")
    async def readyz() -> Response:
        return Response(status_code=200 if service.alive and not service.draining else 503)

    return router


class _Api:
    """The routes under /v1."""

    def __init__(
        self, service: EngineService, tokenizer: Tokenizer, *, served: Served, settings: ServerSettings
    ) -> None:
        self._service = service
        self._tokenizer = tokenizer
        self._served = served
        self._settings = settings

    def router(self) -> APIRouter:
        router = APIRouter(prefix="/v1", dependencies=[Depends(self._authorize)])
        router.add_api_route("/models", self._models, methods=["GET"])
        router.add_api_route("/models/{name:path}", self._model, methods=["GET"])
        router.add_api_route("/chat/completions", self._chat, methods=["POST"], response_model=None)
        return router

    async def _authorize(self, request: Request) -> None:
        keys = self._settings.api_keys
        scheme, _, given = request.headers.get("Authorization", "").partition(" ")
        if not keys or (scheme == "Bearer" and _among(given.strip(), keys)):
            return
        raise ApiError(
            401,
            "The API key is missing or unknown; send it as 'Authorization: Bearer KEY'.",
            code="invalid_api_key",
        )

    async def _models(self) -> dict[str, Any]:
        return {"object": "list", "data": [self._description()]}

    async def _model(self, name: str) -> dict[str, Any]:
        self._check_model(name)
        return self._description()

    def _description(self) -> dict[str, Any]:
        return {
            "id": self._served.name,
            "object": "model",
            "created": self._served.created,
            "owned_by": "nanochat",
            "context_length": self._service.length,
            "system_fingerprint": self._served.fingerprint,
        }

    def _check_model(self, name: str) -> None:
        if name != self._served.name:
            message = f"The model '{name}' is not served here; ask for '{self._served.name}'."
            raise ApiError(404, message, param="model", code="model_not_found")

    async def _chat(self, body: ChatRequest, request: Request) -> Response:
        if body.model is not None:
            self._check_model(body.model)
        prompt = await run_in_threadpool(self._render, body)
        exchange = self._submit(prompt, self._sampling(body, prompt).split(body.n))
        head = Head(self._served.name, self._served.fingerprint)
        handed_on = False
        try:
            first = exchange.wait(seconds=self._settings.queue_seconds)
            await _unless_disconnected(request, first)
            if body.stream:
                handed_on = True
                return _EventStream(exchange, self._chunks(exchange, body, prompt=len(prompt), head=head))
            work = self._collect(exchange, body, prompt=len(prompt), head=head)
            return JSONResponse(await _unless_disconnected(request, work))
        except TimeoutError:
            message = "No slot was free in time; try again."
            raise ApiError(503, message, kind="server_error", code="queue_timeout", retry_after=5) from None
        except EngineFailed as error:
            raise ApiError(500, str(error), kind="server_error") from error
        finally:
            if not handed_on:
                exchange.close()

    def _render(self, body: ChatRequest) -> list[int]:
        messages = [message.message() for message in body.messages]
        try:
            check_messages(messages)
            return render_prompt(self._tokenizer, messages)
        except UserError as error:
            raise ApiError(400, error.message, param="messages") from error

    def _sampling(self, body: ChatRequest, prompt: Sequence[int]) -> Sampling:
        room = max(1, self._service.length - len(prompt))
        settings = self._settings
        if body.top_logprobs is not None and not body.logprobs:
            raise ApiError(400, "top_logprobs needs logprobs to be true.", param="top_logprobs")
        return Sampling(
            max_tokens=min(body.max_completion_tokens or body.max_tokens or room, room),
            temperature=settings.temperature if body.temperature is None else body.temperature,
            top_k=body.top_k or settings.top_k,
            top_p=1.0 if body.top_p is None else body.top_p,
            seed=secrets.randbits(62) if body.seed is None else body.seed,
            stop=body.stops,
            min_tokens=body.min_tokens,
            logprobs=(body.top_logprobs or 0) if body.logprobs else None,
        )

    def _submit(self, prompt: Sequence[int], samplings: list[Sampling]) -> Exchange:
        try:
            return Exchange(self._service, prompt, samplings)
        except ContextTooLong as error:
            code = "context_length_exceeded"
            raise ApiError(400, error.message, param="messages", code=code) from error
        except EngineFailed as error:
            raise ApiError(503, str(error), kind="server_error", retry_after=5) from error
        except Overloaded as error:
            if self._service.draining:
                message = "The server is about to end; try again."
                raise ApiError(503, message, kind="server_error", retry_after=5) from error
            message = "Too many requests are running and waiting; try again later."
            raise ApiError(429, message, kind="rate_limit_error", code="overloaded", retry_after=2) from error

    async def _collect(self, exchange: Exchange, body: ChatRequest, *, prompt: int, head: Head) -> dict[str, Any]:
        completions: dict[int, Completion] = {}
        logprobs: list[list[dict[str, Any]]] = [[] for _ in range(body.n)]
        async for index, event in exchange:
            logprobs[index] += logprob(event, self._tokenizer)
            if event.finish_reason is not None:
                completions[index] = event.request.completion
        ordered = [completions[index] for index in range(body.n)]
        return answer(head, ordered, prompt=prompt, logprobs=logprobs if body.logprobs else None)

    async def _chunks(self, exchange: Exchange, body: ChatRequest, *, prompt: int, head: Head) -> AsyncIterator[str]:
        chunks = Chunks(head, self._tokenizer, choices=body.n, logprobs=body.logprobs)
        yield chunks.begin()
        try:
            async for index, event in exchange:
                if text := chunks.add(index, event):
                    yield text
        except EngineFailed as error:
            yield sse(ApiError(500, str(error), kind="server_error").body)
            return
        include_usage = body.stream_options is not None and body.stream_options.include_usage
        yield chunks.end(prompt=prompt if include_usage else None)


class _EventStream(StreamingResponse):
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


async def _unless_disconnected(request: Request, work: Awaitable[T]) -> T:
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


def _among(given: str, keys: frozenset[str]) -> bool:
    """Whether a key is known, in a time that says nothing about it."""
    return any([hmac.compare_digest(given.encode(), key.encode()) for key in keys])
