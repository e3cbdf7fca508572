"""The chat page at /, the API's page at /docs, and under /page the modules, styles and libraries that they use.

app.include_router(page_router())
app.mount(FOLDER, PageFiles())

The pages run nothing but these files, reach nothing but their own server, and make elements of text only through
DOMPurify (Trusted Types): the browser holds them to that.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from importlib import resources

from fastapi import APIRouter
from fastapi.responses import HTMLResponse
from starlette.responses import Response
from starlette.staticfiles import StaticFiles
from starlette.types import Scope

FOLDER = "/page"
POLICY = "; ".join(
    [
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self'",
        "connect-src 'self'",
        "img-src data:",
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'none'",
        "require-trusted-types-for 'script'",
        "trusted-types dompurify",
    ]
)
DOCUMENTS = {  # by path: the file, and the policy; Swagger UI knows no trusted types, and is given a default one
    "/": ("index.html", POLICY),
    "/docs": ("docs.html", f"{POLICY} default 'allow-duplicates'"),
}
HEADERS = {
    "Cache-Control": "no-cache",  # kept, and asked for again by its tag: page and server are of one version
    "Content-Security-Policy": POLICY,
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}


def page_router() -> APIRouter:
    """The routes of the documents."""
    router = APIRouter(include_in_schema=False)
    for path, (name, policy) in DOCUMENTS.items():
        router.add_api_route(path, _document(name, policy))
    return router


def _document(name: str, policy: str) -> Callable[[], Awaitable[HTMLResponse]]:
    text = resources.files("nanochat.serving").joinpath("static", name).read_text(encoding="utf-8")

    async def document() -> HTMLResponse:
        return HTMLResponse(text, headers={**HEADERS, "Content-Security-Policy": policy})

    return document


class PageFiles(StaticFiles):
    """The files that the documents load."""

    def __init__(self) -> None:
        super().__init__(packages=[("nanochat.serving", "static")])

    async def get_response(self, path: str, scope: Scope) -> Response:
        response = await super().get_response(path, scope)
        response.headers.update(HEADERS)
        return response
