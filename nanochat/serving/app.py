"""The HTTP application: chat completions, models, health and the page.

    app = create_app(ModelHolder("loading version 3 of nanochat"), ServerSettings())

Without a model the API answers 503, with the reason.
"""

from __future__ import annotations

import secrets
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Annotated

from fastapi import APIRouter, Depends, FastAPI, Path, Request, Response
from fastapi.concurrency import run_in_threadpool
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from nanochat.inference import ContextTooLong, Sampling
from nanochat.serving.bodies import UnknownFields
from nanochat.serving.errors import ApiError, api_error, http_error, internal_error, invalid_request
from nanochat.serving.exchange import Exchange
from nanochat.serving.gate import LEAST_BODY_LIMIT, Gate, Hosts, body_limit
from nanochat.serving.health import health_router
from nanochat.serving.holder import Model, ModelHolder
from nanochat.serving.json_route import JsonRoute
from nanochat.serving.messages import conversation
from nanochat.serving.objects import ModelList, ModelObject
from nanochat.serving.openapi import ANSWER, BEARER, documented
from nanochat.serving.page import FOLDER, PageFiles, page_router
from nanochat.serving.protocol import ANY_MODEL, MODEL, ChatRequest
from nanochat.serving.responder import ChatResponder, EventStream, unless_disconnected
from nanochat.serving.service import EngineFailed, Overloaded
from nanochat.spec.errors import UserError
from nanochat.tokenizer.chat import least_prompt, render_prompt

SUMMARY = "OpenAI's chat API for one model; docs/serving.md says how each field is treated."

NO_KEYS = "No key is asked for: everyone who reaches the server may use it. NANOCHAT_API_KEYS sets keys."


@dataclass(frozen=True, slots=True)
class ServerSettings:
    """Defaults for requests, and the limits of the server."""

    temperature: float = 0.8
    top_k: int = 50
    api_keys: frozenset[str] = frozenset()  # none: everyone may ask
    hosts: Hosts | None = None  # the names under which the server may be asked; None: under any
    queue_seconds: float = 60.0  # how long a request waits for its first token

    @classmethod
    def from_environment(cls, environment: Mapping[str, str], *, local: bool) -> ServerSettings:
        """With what NANOCHAT_API_KEYS and NANOCHAT_ALLOWED_HOSTS list, separated by commas.

        A `local` server, which listens on a loopback address, is asked under its own names alone; any other under all
        names, unless hosts are listed.
        """
        keys, names = _listed(environment, "NANOCHAT_API_KEYS"), _listed(environment, "NANOCHAT_ALLOWED_HOSTS")
        hosts = Hosts(frozenset(name.lower() for name in names), addresses=not local) if local or names else None
        return cls(api_keys=keys, hosts=hosts)


def _listed(environment: Mapping[str, str], name: str) -> frozenset[str]:
    """The items of a variable; UserError where it is set without any: who sets it does not mean everyone."""
    items = frozenset(item.strip() for item in environment.get(name, "").split(",") if item.strip())
    if name in environment and not items:
        raise UserError(f"{name} is set and lists nothing; list at least one item, separated by commas, or unset it.")
    if not all(item.isascii() and item.isprintable() for item in items):
        raise UserError(f"{name} has a character outside of printable ASCII, which no client can send; leave it out.")
    return items


def create_app(host: ModelHolder, settings: ServerSettings) -> FastAPI:
    """The application. It closes the host when it ends."""

    @asynccontextmanager
    async def lifespan(_app: FastAPI) -> AsyncIterator[None]:
        yield
        await run_in_threadpool(host.close)

    async def refused(request: Request, error: Exception) -> JSONResponse:
        assert isinstance(error, ApiError)
        if error.status in (429, 503):
            host.metrics.rejected.labels(reason=error.code).inc()
        return await api_error(request, error)

    def limit() -> int:
        return LEAST_BODY_LIMIT if host.model is None else body_limit(host.model.service.length)

    app = FastAPI(title="nanochat", summary=SUMMARY, lifespan=lifespan, docs_url=None, redoc_url=None)
    app.add_middleware(Gate, keys=settings.api_keys, hosts=settings.hosts, limit=limit)
    app.add_middleware(CloseConnectionsMiddleware, host=host)
    app.add_exception_handler(ApiError, refused)
    app.add_exception_handler(RequestValidationError, invalid_request)
    app.add_exception_handler(HTTPException, http_error)
    app.add_exception_handler(Exception, internal_error)
    app.include_router(page_router())
    app.mount(FOLDER, PageFiles())
    app.include_router(health_router(host))
    app.include_router(_Api(host, settings=settings).router())
    return app


class CloseConnectionsMiddleware:
    """While the process is about to end, clients are to make their next request on a connection to another one."""

    def __init__(self, app: ASGIApp, host: ModelHolder) -> None:
        self._app, self._host = app, host

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def sent(message: Message) -> None:
            if message["type"] == "http.response.start" and self._host.leaving:
                message["headers"] = [*message["headers"], (b"connection", b"close")]
            await send(message)

        await self._app(scope, receive, sent)


class _Api:
    """The routes under /v1."""

    def __init__(self, host: ModelHolder, *, settings: ServerSettings) -> None:
        self._host = host
        self._settings = settings
        self._unknown = UnknownFields()

    def router(self) -> APIRouter:
        keys = [Depends(BEARER)] if self._settings.api_keys else []
        errors = documented(401, 503, "default")
        router = APIRouter(prefix="/v1", route_class=JsonRoute, dependencies=keys, responses=errors)
        router.add_api_route("/models", self._models, methods=["GET"])
        router.add_api_route("/models/{name:path}", self._model, methods=["GET"], responses=documented(404))
        router.add_api_route(
            "/chat/completions",
            self._chat,
            methods=["POST"],
            response_model=None,
            responses={200: ANSWER, **documented(400, 404, 408, 413, 429, 500)},
        )
        return router

    def _loaded(self, name: str | None) -> Model:
        """The model, if there is one and the request means it."""
        model = self._host.model
        if model is None:
            message = f"There is no model to ask: {self._host.reason}."
            raise ApiError(503, message, kind="server_error", code="no_model", retry_after=5)
        if name not in (None, ANY_MODEL, model.served.name, model.served.full_name):
            message = f"The model '{name[:64]}' is not served here; ask for '{model.served.name}'."
            raise ApiError(404, message, param="model", code="model_not_found")
        return model

    async def _models(self) -> ModelList:
        """The model that is served."""
        return {"object": "list", "data": [self._description(self._loaded(None))]}

    async def _model(
        self, name: Annotated[str, Path(description=MODEL, json_schema_extra={"enum": [ANY_MODEL]})]
    ) -> ModelObject:
        """The model, by a name that requests may use."""
        return self._description(self._loaded(name))

    def _description(self, model: Model) -> ModelObject:
        return {
            "id": model.served.name,
            "object": "model",
            "created": model.served.created,
            "owned_by": "nanochat",
            "context_length": model.service.length,
            "version": model.served.version,
            "system_fingerprint": model.served.fingerprint,
        }

    async def _chat(self, body: ChatRequest, request: Request) -> Response:
        """Answer a conversation, whole or as a stream of events."""
        self._unknown.note(body)
        model = self._loaded(body.model)
        prompt = await run_in_threadpool(self._render, model, body)
        exchange = self._submit(model, prompt, self._sampling(model, body, prompt).split(body.choices))
        talk = ChatResponder(model, exchange, body, prompt=len(prompt))
        handed_on = False
        try:
            first = exchange.wait(seconds=self._settings.queue_seconds)
            await unless_disconnected(request, first)
            if body.stream:
                handed_on = True
                return EventStream(exchange, talk.chunks())
            return JSONResponse(await unless_disconnected(request, talk.collect()))
        except TimeoutError:
            message = "No slot was free in time; try again."
            raise ApiError(503, message, kind="server_error", code="queue_timeout", retry_after=5) from None
        except EngineFailed as error:
            raise ApiError(500, str(error), kind="server_error") from error
        except UserError as error:  # which only the engine can find, as a token that its vocabulary does not have
            raise ApiError(400, error.message) from error
        finally:
            if not handed_on:
                exchange.close()

    def _render(self, model: Model, body: ChatRequest) -> list[int]:
        messages = conversation(body.messages)
        try:
            least, limit = least_prompt(model.tokenizer, messages), model.service.length
            if least >= limit:
                raise ContextTooLong(prompt=least, limit=limit, at_least=True)
            return render_prompt(model.tokenizer, messages)
        except ContextTooLong as error:
            raise _too_long(error) from None
        except UserError as error:
            raise ApiError(400, error.message, param="messages") from error

    def _sampling(self, model: Model, body: ChatRequest, prompt: Sequence[int]) -> Sampling:
        room = max(1, model.service.length - len(prompt))
        settings, vocabulary = self._settings, model.tokenizer.vocab_size
        if body.top_logprobs and not body.logprobs:
            raise ApiError(400, "top_logprobs needs logprobs to be true.", param="top_logprobs")
        bias = body.logit_bias or {}
        if bias and max(bias) >= vocabulary:
            message = f"'logit_bias' names the token {max(bias)}, and the model's are 0 to {vocabulary - 1}."
            raise ApiError(400, message, param="logit_bias")
        return Sampling(
            max_tokens=min(body.max_completion_tokens or body.max_tokens or room, room),
            temperature=settings.temperature if body.temperature is None else body.temperature,
            top_k=settings.top_k if body.top_k is None else max(body.top_k, 0) or None,
            top_p=1.0 if body.top_p is None else body.top_p,
            seed=secrets.randbits(62) if body.seed is None else body.seed,
            repeatable=body.seed is not None,
            stop=body.stops,
            min_tokens=body.min_tokens or 0,
            logprobs=(body.top_logprobs or 0) if body.logprobs else None,
            frequency_penalty=body.frequency_penalty or 0.0,
            presence_penalty=body.presence_penalty or 0.0,
            logit_bias=tuple(bias.items()),
        )

    def _submit(self, model: Model, prompt: Sequence[int], samplings: list[Sampling]) -> Exchange:
        try:
            return Exchange(model.service, prompt, samplings)
        except ContextTooLong as error:
            raise _too_long(error) from None
        except EngineFailed as error:
            raise ApiError(503, str(error), kind="server_error", code="engine_failed", retry_after=5) from error
        except Overloaded as error:
            if model.service.draining:
                message = "The server is about to end; try again."
                raise ApiError(503, message, kind="server_error", code="draining", retry_after=5) from error
            message = "Too many requests are running and waiting; try again later."
            raise ApiError(429, message, kind="rate_limit_error", code="overloaded", retry_after=2) from error


def _too_long(error: ContextTooLong) -> ApiError:
    return ApiError(400, error.message, param="messages", code="context_length_exceeded")
