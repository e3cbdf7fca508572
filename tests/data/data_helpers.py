"""A hub that misbehaves on request, and conversations with known ids."""

from __future__ import annotations

import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np

Answer = Callable[[BaseHTTPRequestHandler, bytes], None]
SPECIAL = {"bos": 100, "user_start": 101, "user_end": 102, "assistant_start": 103, "assistant_end": 104}


class FakeHub:
    """Serves `files` by path. `answers[path]` is a list of misbehaviours, one used up by each request."""

    def __init__(self) -> None:
        self.files: dict[str, bytes] = {}
        self.answers: dict[str, list[Answer]] = {}
        self.requests: list[tuple[str, dict[str, str]]] = []
        self.tag: str | None = '"1"'
        hub = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                hub.requests.append((self.path, dict(self.headers)))
                body = hub.files.get(self.path)
                waiting = hub.answers.get(self.path)
                if waiting:
                    waiting.pop(0)(self, body or b"")
                elif body is None:
                    status(404)(self, b"")
                else:
                    whole(self, body, hub.tag)

            def log_message(self, *_: object) -> None: ...

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02})
        self._thread.start()
        self.base = f"http://127.0.0.1:{self._server.server_port}"

    def ranges(self, path: str) -> list[str | None]:
        """The Range of each request for a path."""
        return [headers.get("Range") for asked, headers in self.requests if asked == path]

    def close(self) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()


def whole(handler: BaseHTTPRequestHandler, body: bytes, tag: str | None) -> None:
    """The file, or the range that was asked for if the client's copy is of the same file."""
    asked = handler.headers.get("Range")
    start = int(asked.removeprefix("bytes=").rstrip("-")) if asked and handler.headers.get("If-Range") == tag else 0
    handler.send_response(206 if start else 200)
    if start:
        handler.send_header("Content-Range", f"bytes {start}-{len(body) - 1}/{len(body)}")
    if tag:
        handler.send_header("ETag", tag)
    handler.send_header("Content-Length", str(len(body) - start))
    handler.end_headers()
    handler.wfile.write(body[start:])


def status(code: int, **headers: str) -> Answer:
    """An answer with this status and nothing else."""

    def answer(handler: BaseHTTPRequestHandler, body: bytes) -> None:
        handler.send_response(code)
        for name, value in headers.items():
            handler.send_header(name.replace("_", "-"), value)
        handler.send_header("Content-Length", "0")
        handler.end_headers()

    return answer


def cut(share: float, *, length: bool = True, tag: str | None = '"1"') -> Answer:
    """A transfer that ends early, with or without having said how long it would be."""

    def answer(handler: BaseHTTPRequestHandler, body: bytes) -> None:
        handler.send_response(200)
        if tag:
            handler.send_header("ETag", tag)
        if length:
            handler.send_header("Content-Length", str(len(body)))
        handler.send_header("Connection", "close")
        handler.end_headers()
        handler.wfile.write(body[: int(len(body) * share)])
        handler.close_connection = True

    return answer


def conversation(turns: list[tuple[int, int]], first: int = 0) -> tuple[list[int], list[int]]:
    """Ids and mask of exchanges with texts of these lengths; the text's ids count up from `first`."""
    ids, mask, at = [SPECIAL["bos"]], [0], first
    for asked, answered in turns:
        question = [(at + i) % 100 for i in range(asked)]
        answer = [(at + asked + i) % 100 for i in range(answered)]
        ids += [SPECIAL["user_start"], *question, SPECIAL["user_end"], SPECIAL["assistant_start"], *answer]
        ids.append(SPECIAL["assistant_end"])
        mask += [0] * (asked + 3) + [1] * (answered + 1)
        at += asked + answered
    return ids, mask


def flat(*batches: np.ndarray) -> list[int]:
    return [int(i) for batch in batches for i in batch.reshape(-1)]
