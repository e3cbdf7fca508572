"""Where the server stands: /livez, /readyz and /health, and Prometheus' /metrics. None of them asks for a key.

/livez says whether the process works, /readyz whether it should get requests, /health both for people.
"""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Response
from fastapi.responses import JSONResponse, PlainTextResponse

from nanochat.serving.holder import ModelHolder
from nanochat.serving.metrics import CONTENT_TYPE


def health_router(host: ModelHolder) -> APIRouter:
    """The routes."""
    router = APIRouter()

    @router.get("/health", responses=_because("application/json"))
    async def health() -> JSONResponse:
        model, unready = host.model, host.unready
        body: dict[str, Any] = {"status": unready or "ok"}
        if model is not None:
            service, served = model.service, model.served
            body |= {"model": served.name, "version": served.version, "fingerprint": served.fingerprint}
            body |= {"open": service.open, "slots": service.slots}
        return JSONResponse(body, status_code=503 if unready else 200)

    @router.get("/livez", response_class=Response, responses={503: {"description": "The process should be restarted."}})
    async def livez() -> Response:
        return Response(status_code=200 if host.alive else 503)

    @router.get("/readyz", response_class=PlainTextResponse, responses=_because("text/plain"))
    async def readyz() -> Response:
        unready = host.unready
        return PlainTextResponse(unready or "ok", status_code=503 if unready else 200)

    @router.get("/metrics", response_class=PlainTextResponse)
    def metrics() -> Response:
        return Response(host.metrics.render(), media_type=CONTENT_TYPE)

    return router


def _because(media: str) -> dict[int | str, dict[str, Any]]:
    return {503: {"description": "No requests should come here; the body says why.", "content": {media: {}}}}
