"""The server process: a socket that is bound before the model is loaded, and an end that drains.

    begin_log()
    with bind(address, port) as socket:
        run(create_app(host, settings), host, socket=socket)

On SIGTERM, SIGHUP or Ctrl-C it accepts nothing more, answers what it has begun, and returns. Behind a load balancer,
which takes a while to notice, it lingers first: not ready any more, it still answers, and then lets connections go.
Where the engine has failed for good, it ends by itself.
"""

from __future__ import annotations

import errno
import ipaddress
import logging
import signal
import socket as sockets
import threading
from functools import partial
from types import FrameType

import uvicorn
from fastapi import FastAPI

from nanochat.runtime.stopping import on_stop
from nanochat.serving.connections import Connection, EncryptedConnection, most_connections
from nanochat.serving.holder import ModelHolder
from nanochat.serving.tls import Certificate
from nanochat.spec.errors import NanochatError, UserError

# That a connection may be idle. Most load balancers keep theirs for 60 s: with a shorter time here they would send
# requests into connections that are being closed.
KEEP_ALIVE_SECONDS = 75
HEAD_BYTES = 32 << 10  # of a request's line and headers
DEAD_TICKS = 50  # uvicorn's, of a tenth of a second, in which /livez says so before the process ends


def begin_log() -> None:
    """Log to standard error what a server does, on a cluster and off it."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")


def bind(host: str, port: int) -> sockets.socket:
    """A listening socket; UserError where that can't be had."""
    try:
        family, kind, protocol, _, address = sockets.getaddrinfo(
            host, port, type=sockets.SOCK_STREAM, flags=sockets.AI_PASSIVE
        )[0]
    except sockets.gaierror as error:
        raise UserError(f"The host '{host}' is not an address of this machine; use 127.0.0.1.") from error
    socket = sockets.socket(family, kind, protocol)
    try:
        socket.setsockopt(sockets.SOL_SOCKET, sockets.SO_REUSEADDR, 1)
        socket.bind(address)
        socket.listen(2048)
    except OSError as error:
        socket.close()
        if error.errno == errno.EADDRINUSE:
            message = f"Port {port} on {host} is in use; stop what listens there or choose another --port."
        elif error.errno == errno.EACCES:
            message = f"Port {port} needs rights that this process does not have; choose a --port above 1023."
        else:
            message = f"{host}:{port} can't be listened on ({error.strerror}); choose another --host or --port."
        raise UserError(message) from error
    return socket


def is_local(socket: sockets.socket) -> bool:
    """Whether only this machine reaches the socket."""
    return ipaddress.ip_address(socket.getsockname()[0].partition("%")[0]).is_loopback


def server_config(app: FastAPI, *, grace: int, certificate: Certificate | None = None) -> uvicorn.Config:
    """The settings of uvicorn: what of a connection is bounded in number, size and time; HTTPS with a certificate."""
    return uvicorn.Config(
        app,
        log_level="warning",
        loop="asyncio",
        http=partial(EncryptedConnection, certificate) if certificate else Connection,  # type: ignore[arg-type]
        ws="none",
        h11_max_incomplete_event_size=HEAD_BYTES,
        limit_concurrency=most_connections(),
        timeout_keep_alive=KEEP_ALIVE_SECONDS,
        timeout_graceful_shutdown=grace,
    )


def run(
    app: FastAPI,
    host: ModelHolder,
    *,
    socket: sockets.socket,
    certificate: Certificate | None = None,
    grace: int = 60,
    linger: float = 0.0,
) -> None:
    """Serve until SIGTERM or Ctrl-C, and `linger` seconds more; what is unfinished `grace` seconds later is dropped.

    Raises NanochatError where it ended because the engine can't go on: the process has to be started again.
    """
    config = server_config(app, grace=grace, certificate=certificate)
    server = _DrainingServer(config, host, linger)

    def stop(number: int, frame: FrameType | None) -> None:
        if number == signal.SIGHUP:  # of the others uvicorn takes care, and raises them again when it has drained
            server.handle_exit(signal.SIGTERM, frame)

    restore = on_stop(stop, signal.SIGINT)
    try:
        server.run(sockets=[socket])
    finally:
        restore()
    if server.dead_ticks > DEAD_TICKS:
        raise NanochatError("the engine failed and could not be made anew (the log says why): start the server again")


class _DrainingServer(uvicorn.Server):
    def __init__(self, config: uvicorn.Config, host: ModelHolder, linger: float) -> None:
        super().__init__(config)
        self._host, self._linger = host, linger
        self.dead_ticks = 0  # how often the engine was found dead without a break

    async def on_tick(self, counter: int) -> bool:
        """Whether to end. A process that was stopped for a while (Ctrl-Z) finds its engine late, but not for long."""
        self.dead_ticks = 0 if self._host.alive else self.dead_ticks + 1
        return await super().on_tick(counter) or self.dead_ticks > DEAD_TICKS

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        if self._host.leaving or not self._linger:  # asked twice, it ends at once
            self._end(sig, frame)
            return
        self._host.leaving = True
        timer = threading.Timer(self._linger, self._end, (sig, frame))
        timer.daemon = True
        timer.start()

    def _end(self, sig: int, frame: FrameType | None) -> None:
        self._host.drain()
        super().handle_exit(sig, frame)
