"""The chat page: its document at /, and its modules, its style and the libraries that it uses under /page.

app.include_router(page_router())
app.mount(FOLDER, PageFiles())

The page runs nothing but these files, reaches nothing but its own server, and makes elements of text only through
DOMPurify (Trusted Types): the browser holds it to that.
"""

from __future__ import annotations

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
HEADERS = {
    "Cache-Control": "no-cache",  # kept, and asked for again by its tag: page and server are of one version
    "Content-Security-Policy": POLICY,
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}


def page_router() -> APIRouter:
    """The route of the document."""
    router = APIRouter()
    page = resources.files("nanochat.serving").joinpath("static/index.html").read_text(encoding="utf-8")

    @router.get("/", include_in_schema=False)
    async def chat_page() -> HTMLResponse:
        return HTMLResponse(page, headers=HEADERS)

    return router


class PageFiles(StaticFiles):
    """The files that the document loads."""

    def __init__(self) -> None:
        super().__init__(packages=[("nanochat.serving", "static")])

    async def get_response(self, path: str, scope: Scope) -> Response:
        response = await super().get_response(path, scope)
        response.headers.update(HEADERS)
        return response
