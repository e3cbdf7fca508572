"""Fetching from S3, as far as reading one object needs it."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from nanochat.data.hub import Hub, Retry
from nanochat.spec.errors import StorageError, UserError
from nanochat.storage import Profile

BODY = bytes(range(256)) * 50_000
LIMIT = len(BODY)


class FakeS3(BaseHTTPRequestHandler):
    """One object, a folder without any, one that is refused and one that fails."""

    protocol_version = "HTTP/1.1"

    def _answer(self, *, send: bool) -> None:
        path = self.path.split("?")[0]
        if path == "/shards/a/b":
            asked = self.headers.get("Range", "bytes=0-")
            first, last = asked.removeprefix("bytes=").split("-")
            body = BODY[int(first) : int(last) + 1 if last else None]
            self._send(206 if "Range" in self.headers else 200, body, send=send)
        elif path == "/shards/refused":
            self._send(403, b"<Error><Code>AccessDenied</Code></Error>", send=send)
        elif path == "/shards/failing":
            self._send(503, b"<Error><Code>SlowDown</Code></Error>", send=send)
        elif "list-type" in self.path:
            self._send(200, b"<ListBucketResult><KeyCount>0</KeyCount></ListBucketResult>", send=send)
        else:
            self._send(404, b"<Error><Code>NoSuchKey</Code></Error>", send=send)

    def _send(self, status: int, body: bytes, *, send: bool) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("ETag", '"1"')
        self.send_header("Last-Modified", "Mon, 01 Jan 2024 00:00:00 GMT")
        self.end_headers()
        if send:
            self.wfile.write(body)

    def do_GET(self) -> None:
        self._answer(send=True)

    def do_HEAD(self) -> None:
        self._answer(send=False)

    def log_message(self, *_: object) -> None: ...


@pytest.fixture
def s3(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), FakeS3)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    for name, value in {
        "AWS_ENDPOINT_URL": f"http://127.0.0.1:{server.server_port}",
        "AWS_ACCESS_KEY_ID": "key",
        "AWS_SECRET_ACCESS_KEY": "secret",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_CONFIG_FILE": os.devnull,
        "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
    }.items():
        monkeypatch.setenv(name, value)
    yield
    server.shutdown()
    thread.join()
    server.server_close()


def test_objects_of_s3(s3: None, tmp_path: Path) -> None:
    with Hub(retry=Retry(attempts=2), sleep=lambda seconds: None) as hub:
        assert hub.fetch("s3://shards/a/b", tmp_path / "b", setting="sources.hub", limit=LIMIT) == len(BODY)
        assert (tmp_path / "b").read_bytes() == BODY
        with pytest.raises(UserError, match=r"s3://shards/none does not exist: correct sources\.hub"):
            hub.fetch("s3://shards/none", tmp_path / "c", setting="sources.hub", limit=LIMIT)
        with pytest.raises(UserError):
            hub.fetch("s3://shards/refused", tmp_path / "c", setting="sources.hub", limit=LIMIT)
        with pytest.raises(StorageError):
            hub.fetch("s3://shards/failing", tmp_path / "c", setting="sources.hub", limit=LIMIT)


def test_the_server_of_the_store(s3: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a user puts into S3 is where the store is, not at AWS."""
    endpoint = os.environ["AWS_ENDPOINT_URL"]
    monkeypatch.delenv("AWS_ENDPOINT_URL")
    with Hub(store=Profile(root="s3://store", endpoint=endpoint, region="us-west-2")) as hub:
        assert hub.fetch("s3://shards/a/b", tmp_path / "b", setting="sources.hub", limit=LIMIT) == len(BODY)
