"""The server process: a socket that is bound before the model is loaded, and an end that drains.

    with bind(host, port) as socket:
        run(create_app(...), service, socket=socket)

On SIGTERM or Ctrl-C it accepts nothing more, answers what it has begun, and returns.
"""

from __future__ import annotations

import errno
import signal
import socket as sockets
from types import FrameType

import uvicorn
from fastapi import FastAPI

from nanochat.serving.service import EngineService
from nanochat.spec.errors import UserError


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


def run(app: FastAPI, service: EngineService, *, socket: sockets.socket, grace: int = 60) -> None:
    """Serve until SIGTERM or Ctrl-C; what is unfinished after `grace` seconds is dropped."""
    config = uvicorn.Config(app, log_level="warning", timeout_graceful_shutdown=grace)
    server = _DrainingServer(config, service)
    # uvicorn raises the signal again when it has drained; this is a normal end, so it finds no one.
    former = {number: signal.signal(number, _ignore) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        server.run(sockets=[socket])
    finally:
        for number, handler in former.items():
            signal.signal(number, handler)


def _ignore(_number: int, _frame: FrameType | None) -> None:
    pass


class _DrainingServer(uvicorn.Server):
    def __init__(self, config: uvicorn.Config, service: EngineService) -> None:
        super().__init__(config)
        self._service = service

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        self._service.draining = True
        super().handle_exit(sig, frame)
