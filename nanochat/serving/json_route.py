"""Routes whose JSON bodies are read with bounds of their own (`nanochat.parse.json_text`).

router = APIRouter(prefix="/v1", route_class=JsonRoute)
"""

from __future__ import annotations

import json
from collections.abc import Callable, Coroutine
from typing import Any

from fastapi import Request, Response
from fastapi.routing import APIRoute

from nanochat.parse import Malformed
from nanochat.parse.json_text import read_json


class JsonRoute(APIRoute):
    """A route that refuses deep nesting, halves of surrogate pairs and numbers that are not finite."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        handler = super().get_route_handler()

        async def handle(request: Request) -> Response:
            return await handler(_JsonRequest(request.scope, request.receive))

        return handle


class _JsonRequest(Request):
    async def json(self) -> Any:
        body = await self.body()
        try:
            return read_json(body, limit=len(body))  # the gate has bounded it
        except Malformed as error:
            # The error that FastAPI answers as json_invalid.
            raise json.JSONDecodeError(str(error).removeprefix("not JSON: "), "", 0) from None
