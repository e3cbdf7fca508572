"""The gate in front of the application: what a request has to show before anything of it is parsed.

    app.add_middleware(Gate, keys=keys, hosts=hosts, limit=lambda: body_limit(context))

In this order: few enough headers, a host that is ours, a key that is known and has not asked too often, and a body that
came whole, in time and within its limit, while all bodies together are within theirs. Who is refused is answered at
once; what else he sends is not read.
"""

from __future__ import annotations

import asyncio
import hmac
import ipaddress
import math
import re
import time
from collections.abc import Callable
from dataclasses import dataclass

from fastapi.responses import JSONResponse
from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from nanochat.serving.errors import ApiError
from nanochat.serving.page import DOCUMENTS, FOLDER
from nanochat.serving.rates import Rates

OPEN = frozenset({*DOCUMENTS, "/health", "/livez", "/readyz", "/metrics", "/openapi.json"})
MAX_HEADERS = 100
BODY_SECONDS = 30.0  # in which a body has to arrive
# A token is four bytes of usual text. The rest is room for escapes (\\u0041), long tokens, and fields besides the text.
BODY_BYTES_PER_TOKEN = 256
LEAST_BODY_LIMIT = 256 << 10  # bytes
# Of all bodies that are being read or answered, what each has beyond a small one's size counts: there may be as much as
# so many of the largest have. Small ones are bounded by the number of connections, and never refused for large ones.
SMALL_BODY, MOST_LARGE_BODIES = 16 << 10, 32
# What a refused client may still send: who sends no more gets to read the answer, for his connection is not cut.
LEFTOVER_BYTES, LEFTOVER_SECONDS = 256 << 10, 1.0
_HOST = re.compile(r"(?:\[(?P<address>[0-9a-f:.]+)\]|(?P<name>[a-z0-9._-]+))(?::[0-9]*)?")


def is_open(path: str) -> bool:
    """Whether everyone may ask for it, without a key: health, metrics, the API's description and the pages."""
    return path in OPEN or path.startswith(f"{FOLDER}/")


def body_limit(context: int) -> int:
    """The bytes that a body may have before a model with so many tokens of context."""
    return max(LEAST_BODY_LIMIT, BODY_BYTES_PER_TOKEN * context)


@dataclass(frozen=True, slots=True)
class Hosts:
    """The names under which the server may be asked. Where they are checked, no web page of another name reaches it,
    though its name may have been made to point here (DNS rebinding). Loopback addresses and localhost are always ours.
    """

    names: frozenset[str] = frozenset()
    addresses: bool = False  # whether any IP address is ours too: probes and Prometheus ask a pod by its address

    def allows(self, host: str) -> bool:
        """Whether the Host header of a request is one of ours; its port says nothing."""
        found = _HOST.fullmatch(host.lower())
        if found is None:
            return False
        name = found["address"] or found["name"]
        if name == "localhost" or name in self.names:
            return True
        try:
            address = ipaddress.ip_address(name)
        except ValueError:
            return False
        return self.addresses or address.is_loopback


class Gate:
    """The middleware; see the module's docstring. Without `keys` everyone may ask, without `hosts` under any name."""

    def __init__(
        self,
        app: ASGIApp,
        *,
        keys: frozenset[str],
        hosts: Hosts | None,
        limit: Callable[[], int],
        rates: Rates | None = None,
    ) -> None:
        self._app, self._keys, self._hosts, self._limit, self._rates = app, keys, hosts, limit, rates
        self._large = 0  # bytes of bodies in flight beyond SMALL_BODY of each

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers, body = Headers(scope=scope), bytearray()
        try:
            self._check(scope, headers)
            whole = await self._read(body, receive, declared=_length(headers), limit=self._limit())
            if whole:
                await self._app(scope, _replay(bytes(body), receive), send)
        except ApiError as error:  # of the gate: those of the application it answers itself
            self._drop(body)
            await _refuse(error, scope, receive, send)
        finally:
            self._drop(body)

    def _check(self, scope: Scope, headers: Headers) -> None:
        if len(scope["headers"]) > MAX_HEADERS:
            raise ApiError(431, f"The request has {len(scope['headers'])} headers; send at most {MAX_HEADERS}.")
        if self._hosts is not None and not self._hosts.allows(headers.get("Host", "")):
            message = (
                "The server is not asked under this name; use localhost, "
                "or name the host in NANOCHAT_ALLOWED_HOSTS where the server is started."
            )
            raise ApiError(403, message, code="host_not_allowed")
        scheme, _, given = headers.get("Authorization", "").partition(" ")
        known = scheme.lower() == "bearer" and _among(given.strip(), self._keys)
        if not self._keys or is_open(scope["path"]):
            return
        if not known:
            message = "The API key is missing or unknown; send it as 'Authorization: Bearer KEY'."
            raise ApiError(401, message, code="invalid_api_key")
        if self._rates and (seconds := self._rates.wait(given.strip(), time.monotonic())):
            message, after = f"This key may ask {self._rates.most} times a minute", math.ceil(seconds)
            message = f"{message}, and has; try again in {after} seconds."
            raise ApiError(429, message, kind="rate_limit_error", code="rate_limit_exceeded", retry_after=after)

    async def _read(self, body: bytearray, receive: Receive, *, declared: int, limit: int) -> bool:
        """Read the whole body; False where the client went before its end."""
        too_large = ApiError(
            413, f"The body is larger than the {limit:,} bytes that are read; send less.", code="body_too_large"
        )
        if declared > limit:
            raise too_large
        try:
            async with asyncio.timeout(BODY_SECONDS):
                while True:
                    message = await receive()
                    if message["type"] == "http.disconnect":
                        return False
                    self._large -= _beyond_small(body)
                    body += message.get("body", b"")
                    self._large += _beyond_small(body)
                    if len(body) > limit:
                        raise too_large
                    if self._large > MOST_LARGE_BODIES * limit:
                        text = "Other large requests fill the memory that bodies may have; try again, or send less."
                        raise ApiError(503, text, kind="server_error", code="bodies_full", retry_after=2)
                    if not message.get("more_body", False):
                        return True
        except TimeoutError:
            text = f"The body did not arrive within {BODY_SECONDS:.0f} seconds; send it again."
            raise ApiError(408, text, code="body_timeout") from None

    def _drop(self, body: bytearray) -> None:
        """Count a body no more."""
        self._large -= _beyond_small(body)
        body.clear()


def _beyond_small(body: bytearray) -> int:
    return max(0, len(body) - SMALL_BODY)


def _replay(body: bytes, receive: Receive) -> Receive:
    """Give the application the whole body, which was read before, and then what comes from the client."""
    messages: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

    async def replayed() -> Message:
        return messages.pop() if messages else await receive()

    return replayed


async def _refuse(error: ApiError, scope: Scope, receive: Receive, send: Send) -> None:
    """Answer, and end the connection; a client that is still sending gets a moment to see the answer."""

    async def sent(message: Message) -> None:
        if message["type"] == "http.response.body":
            await send({**message, "more_body": True})
            await _leftover(receive)
            message = {"type": "http.response.body", "body": b"", "more_body": False}
        await send(message)

    response = JSONResponse(error.body, status_code=error.status, headers={**error.headers, "Connection": "close"})
    await response(scope, receive, sent)


async def _leftover(receive: Receive) -> None:
    read = 0
    try:
        async with asyncio.timeout(LEFTOVER_SECONDS):
            while read < LEFTOVER_BYTES:
                message = await receive()
                read += len(message.get("body", b""))
                if not message.get("more_body", False):
                    return
    except TimeoutError:
        return


def _length(headers: Headers) -> int:
    """The declared length of the body; 0 where none is declared (the HTTP parser lets only digits through)."""
    return int(headers.get("Content-Length", "0"))


def _among(given: str, keys: frozenset[str]) -> bool:
    """Whether a key is known, in a time that says nothing about it."""
    return any([hmac.compare_digest(given.encode(), key.encode()) for key in keys])
