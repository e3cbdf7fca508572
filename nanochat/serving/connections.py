"""HTTP connections with bounds that uvicorn's own do not have.

    uvicorn.Config(app, http=Connection, limit_concurrency=most_connections(), ...)
    uvicorn.Config(app, http=partial(EncryptedConnection, certificate), ...)

Who sends no whole head, or takes nothing of his answer, is left after a while. A new connection that would be one too
many takes the place of the one that has been silent longest, as long as one is not being answered: connections that
are held half-open never keep others out, nor do those whose TLS is never agreed on.
"""

from __future__ import annotations

import asyncio
import resource
from typing import Any

from uvicorn.protocols.http.h11_impl import H11Protocol

from nanochat.serving.tls import Certificate

HEAD_SECONDS = 10.0  # from the first byte of a request, or from the connection's beginning, to the end of its head
WRITE_SECONDS = 60.0  # in which a client has to take some of its answer
READ_BYTES = 16 << 10  # read at a time: what the parser does with them must not hold up the others
MOST_CONNECTIONS = 1000
OTHER_FILES = 256  # files that the process may have open besides


def most_connections() -> int:
    """How many connections there may be: as many as files can be open, the limit of which is raised where it can be."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = MOST_CONNECTIONS + OTHER_FILES
    if soft != resource.RLIM_INFINITY and soft < wanted:
        soft = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    return MOST_CONNECTIONS if soft == resource.RLIM_INFINITY else max(1, min(MOST_CONNECTIONS, soft - OTHER_FILES))


class Connection(H11Protocol):
    """One connection; see the module's docstring."""

    _late: asyncio.TimerHandle | None = None  # while a head is awaited
    _stuck: asyncio.TimerHandle | None = None  # while the client takes nothing of its answer
    heard = 0.0  # when the client sent something, or was sent the end of an answer

    @property
    def awaits_head(self) -> bool:
        """Whether no request is being read or answered."""
        return self.cycle is None or self.cycle.response_complete

    @property
    def busy(self) -> bool:
        """Whether a request that came whole is being answered."""
        return not (self.awaits_head or self.cycle.more_body)

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        transport.max_size = READ_BYTES  # type: ignore[attr-defined]  (256 KiB in asyncio's own transports)
        self.heard = self.loop.time()
        self._late = self.loop.call_later(HEAD_SECONDS, self._abort)
        if self.limit_concurrency is not None and len(self.connections) >= self.limit_concurrency:
            self._make_room()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        self.heard = self.loop.time()
        if not self.awaits_head:
            self._late = _cancelled(self._late)
        elif self._late is None:
            self._late = self.loop.call_later(HEAD_SECONDS, self._abort)

    def on_response_complete(self) -> None:
        self.heard = self.loop.time()
        super().on_response_complete()

    def pause_writing(self) -> None:
        super().pause_writing()
        self._stuck = self.loop.call_later(WRITE_SECONDS, self.transport.abort)

    def resume_writing(self) -> None:
        super().resume_writing()
        self._stuck = _cancelled(self._stuck)

    def connection_lost(self, exc: Exception | None) -> None:
        self._late, self._stuck = _cancelled(self._late), _cancelled(self._stuck)
        super().connection_lost(exc)

    def _abort(self) -> None:
        self.transport.abort()

    def _make_room(self) -> None:
        others = (each for each in self.connections if isinstance(each, Connection) and each is not self)
        silent = min((each for each in others if not each.busy), key=lambda each: each.heard, default=None)
        if silent is not None:
            self.connections.discard(silent)
            silent.transport.abort()


class EncryptedConnection(Connection):
    """One that first agrees on TLS, within the time for its first head; until then it counts as awaiting that."""

    def __init__(self, certificate: Certificate, **given: Any) -> None:
        super().__init__(**given)
        self._certificate = certificate
        self._agreeing: asyncio.Task[None] | None = None
        self._early = bytearray()  # what came encrypted before `_agree` went on

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        transport.pause_reading()  # what comes is for TLS
        self._agreeing = self.loop.create_task(self._agree(transport))

    def data_received(self, data: bytes) -> None:
        if self._agreeing is not None:
            self._early += data
        else:
            super().data_received(data)

    async def _agree(self, transport: asyncio.Transport) -> None:
        try:
            context = self._certificate.current()
            encrypted = await self.loop.start_tls(transport, self, context, server_side=True)
        except OSError:  # the client does not speak TLS, does not trust the certificate, or has gone
            encrypted = None
        self._agreeing = None
        if encrypted is None or encrypted.is_closing():
            self.connection_lost(None)
            return
        H11Protocol.connection_made(self, encrypted)
        if self._early:
            self.data_received(bytes(self._early))


def _cancelled(timer: asyncio.TimerHandle | None) -> None:
    if timer is not None:
        timer.cancel()
