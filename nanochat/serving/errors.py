"""Errors in the shape that OpenAI's clients expect: {"error": {"message", "type", "param", "code"}}."""

from __future__ import annotations

import difflib

from fastapi import Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from nanochat.serving.protocol import ChatRequest


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
        self.body = {"error": {"message": message, "type": kind, "param": param, "code": code}}
        self.headers = {} if retry_after is None else {"Retry-After": str(retry_after)}


async def api_error(_request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, ApiError)
    return JSONResponse(error.body, status_code=error.status, headers=error.headers)


async def http_error(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, HTTPException)
    message = f"{request.method} {request.url.path}: {error.detail}"
    return JSONResponse(ApiError(error.status_code, message).body, status_code=error.status_code, headers=error.headers)


async def invalid_request(request: Request, error: Exception) -> JSONResponse:
    """The first thing that is wrong with a body, with the place where it is."""
    assert isinstance(error, RequestValidationError)
    first = error.errors()[0]
    place = ".".join(str(step) for step in first["loc"][1:])
    match first["type"]:
        case "json_invalid":
            place, message = "", f"The body is not valid JSON: {first['ctx']['error']}."
        case "model_attributes_type" | "missing" if not place:
            message = "The body is not a JSON object; send one, as Content-Type: application/json."
        case "extra_forbidden":
            near = difflib.get_close_matches(str(first["loc"][-1]), ChatRequest.model_fields, n=1)
            hint = f"; did you mean '{near[0]}'?" if near else "; leave it out."
            message = f"The field '{place}' is not known{hint}"
        case _:
            message = f"'{place}': {first['msg']}."
    body = ApiError(400, message, param=place or None).body
    return JSONResponse(body, status_code=400)
