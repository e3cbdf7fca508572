"""Errors in the shape that OpenAI's clients expect: {"error": {"message", "type", "param", "code"}}."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from fastapi import Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from nanochat.serving.objects import ErrorObject


class ApiError(Exception):
    """An answer that is an error."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        kind: str = "invalid_request_error",
        param: str | None = None,
        code: str | None = None,
        retry_after: int | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.code = code or kind
        self.body: ErrorObject = {"error": {"message": message, "type": kind, "param": param, "code": code}}
        self.headers = {} if retry_after is None else {"Retry-After": str(retry_after)}


async def api_error(_request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, ApiError)
    return JSONResponse(error.body, status_code=error.status, headers=error.headers)


async def http_error(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, HTTPException)
    allowed, detail = (error.headers or {}).get("Allow"), f"{error.detail}."
    if error.status_code == 404:
        detail = f"there is nothing here. The API is at {', '.join(sorted(request.app.openapi()['paths']))}."
    elif allowed:
        detail = f"it takes {allowed}."
    message = f"{request.method[:20]} {request.url.path[:200]}: {detail}"
    return JSONResponse(ApiError(error.status_code, message).body, status_code=error.status_code, headers=error.headers)


async def internal_error(_request: Request, _error: Exception) -> JSONResponse:
    """The server's own fault; what it was is in the log alone."""
    return JSONResponse(ApiError(500, "The server failed; its log says why.", kind="server_error").body, 500)


async def invalid_request(_request: Request, error: Exception) -> JSONResponse:
    """The first thing that is wrong with a body, with the place where it is."""
    assert isinstance(error, RequestValidationError)
    first = error.errors()[0]
    place = _place(first["loc"][1:], error.body, missing=first["type"] == "missing")
    subject = f"'{place}'" if place else "The body"
    match first["type"]:
        case "json_invalid":
            message = f"The body is not valid JSON: {first['ctx']['error']}."
        case "model_attributes_type" | "missing" if not isinstance(error.body, dict):
            message = "The body is not a JSON object; send one, as Content-Type: application/json."
        case "missing":
            message = f"{subject} is missing."
        case "model_type" | "model_attributes_type" | "dict_type":
            message = f"{subject} must be an object."
        case "value_error":
            message = f"{subject} {first['ctx']['error']}."
        case _:
            said = re.sub(" after validation, not [0-9]+$", "", first["msg"])
            predicate = re.sub("^(Input|Value|List|Dictionary|String|Keys) (?=should)", "", said)
            message = f"{subject}: {predicate}." if predicate == said else f"{subject} {predicate}."
    return JSONResponse(ApiError(400, message, param=place or None).body, status_code=400)


def _place(steps: Sequence[str | int], body: Any, *, missing: bool) -> str:
    """The path to what is wrong, as the client wrote it: without pydantic's names for alternatives and keys."""
    kept: list[str] = []
    for step in steps:
        if isinstance(body, dict | list) and (step in body if isinstance(body, dict) else isinstance(step, int)):
            body = body[step]  # pyright: ignore[reportArgumentType, reportCallIssue]
            kept.append(str(step)[:64])
    if missing and steps:
        kept.append(str(steps[-1]))
    return ".".join(kept)
