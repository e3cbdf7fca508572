"""One line of log for each request to the API: how it was answered, and how much was said, never what.

    app.add_middleware(RequestLog)
    note(request, exchange)         # whose figures the line gets too

    POST /v1/chat/completions 200 1.842s prompt=57 reused=32 completion=64 first=0.093s

Health, metrics and the page, which are asked for all the time, have no lines.
"""

from __future__ import annotations

import logging
import time

from fastapi import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from nanochat.serving.exchange import Exchange
from nanochat.serving.gate import is_open

_log = logging.getLogger(__name__)

LONGEST_PATH = 64  # characters; a client chooses what a path says


class RequestLog:
    """The middleware; see the module's docstring."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or is_open(scope["path"]):
            await self._app(scope, receive, send)
            return
        begun, status = time.monotonic(), 0  # 0: there was no answer

        async def sent(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self._app(scope, receive, sent)
        finally:
            path = ascii(scope["path"][:LONGEST_PATH])[1:-1]
            exchange = scope.get("state", {}).get("exchange")
            figures = f" {exchange.figures}" if exchange is not None else ""
            _log.info("%s %s %d %.3fs%s", scope["method"][:16], path, status, time.monotonic() - begun, figures)


def note(request: Request, exchange: Exchange) -> None:
    """Have the request's line tell the figures of this exchange."""
    request.state.exchange = exchange
