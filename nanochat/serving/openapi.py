"""The part of /openapi.json about answers: the shapes of the good ones, and which errors there are and why.

router.add_api_route("/things", things, responses=answered(Thing) | documented(400, 404))
"""

from __future__ import annotations

from typing import Any, Literal

from fastapi.security import HTTPBearer

from nanochat.serving.objects import ErrorObject

_ERRORS: dict[int | str, str] = {
    400: "Something in the request is wrong or can't be honoured; `param` says where.",
    401: "The API key is missing or unknown.",
    404: "The model is not served here.",
    408: "The body did not arrive in time.",
    413: "The body is too large.",
    429: "Too many requests are running and waiting; `Retry-After` says when there is room for this one.",
    500: "The server failed.",
    503: "No model, no free slot in time, or the server is about to end; `Retry-After` says when to try.",
    "default": "Another error, in the same shape.",
}

# Only documented here: `nanochat.serving.gate` checks the key before anything of a request is parsed.
BEARER = HTTPBearer(auto_error=False, description="One of the server's keys, where it has any.")


def answered(shape: Any) -> dict[int | str, dict[str, Any]]:
    """The good answer of a route that also streams."""
    return {
        200: {
            "model": shape,
            "description": "The answer; where `stream` is true, `data:` events with its chunks, and `[DONE]`.",
            "content": {"text/event-stream": {"schema": {"type": "string"}}},
        }
    }


def documented(*statuses: int | Literal["default"]) -> dict[int | str, dict[str, Any]]:
    """The errors of a route, all in the same shape."""
    return {status: {"model": ErrorObject, "description": _ERRORS[status]} for status in statuses}
