"""The HTTP application: the API, health and the page.

    app = create_app(ModelHolder("loading version 3 of nanochat"), ServerSettings())

Without a model the API answers 503, with the reason.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from fastapi import FastAPI, Request
from fastapi.concurrency import run_in_threadpool
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from nanochat import __version__
from nanochat.serving.api import Api
from nanochat.serving.errors import ApiError, api_error, http_error, internal_error, invalid_request
from nanochat.serving.gate import LEAST_BODY_LIMIT, Gate, body_limit
from nanochat.serving.health import health_router
from nanochat.serving.holder import ModelHolder
from nanochat.serving.page import FOLDER, PageFiles, page_router
from nanochat.serving.rates import Rates
from nanochat.serving.request_log import RequestLog
from nanochat.serving.settings import ServerSettings

SUMMARY = "OpenAI's chat API for one model; docs/serving.md says how each field is treated."


def create_app(host: ModelHolder, settings: ServerSettings) -> FastAPI:
    """The application. It closes the host when it ends."""

    @asynccontextmanager
    async def lifespan(_app: FastAPI) -> AsyncIterator[None]:
        yield
        await run_in_threadpool(host.close)

    async def refused(request: Request, error: Exception) -> JSONResponse:
        assert isinstance(error, ApiError)
        if error.status in (429, 503):
            host.metrics.reject(error.code)
        return await api_error(request, error)

    def limit() -> int:
        return LEAST_BODY_LIMIT if host.model is None else body_limit(host.model.service.length)

    app = FastAPI(
        title="nanochat", version=__version__, summary=SUMMARY, lifespan=lifespan, docs_url=None, redoc_url=None
    )
    rates = Rates(settings.key_requests) if settings.key_requests else None
    app.add_middleware(Gate, keys=settings.api_keys, hosts=settings.hosts, limit=limit, rates=rates)
    if settings.origins:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=sorted(settings.origins),
            allow_methods=["GET", "POST"],
            allow_headers=["*"],
            expose_headers=["Retry-After"],
        )
    app.add_middleware(RequestLog)
    app.add_middleware(CloseConnectionsMiddleware, host=host)
    app.add_exception_handler(ApiError, refused)
    app.add_exception_handler(RequestValidationError, invalid_request)
    app.add_exception_handler(HTTPException, http_error)
    app.add_exception_handler(Exception, internal_error)
    app.include_router(page_router())
    app.mount(FOLDER, PageFiles())
    app.include_router(health_router(host), tags=["health"])
    app.include_router(Api(host, settings=settings).router(), tags=["API"])
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
