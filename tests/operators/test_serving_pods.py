"""What a pod of the chat API says of itself, over HTTP and over HTTPS."""

from __future__ import annotations

import ssl
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest
from certificates import write_pair
from kubernetes.client import V1Pod

from operators import serving_pods
from operators.kube_models import from_json
from operators.serving_pods import LONGEST, ask_readyz


class Loading(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        body = b"loading version 3 of nanochat" + b"!" * 2 * LONGEST if self.path == "/readyz" else b""
        self.send_response(503)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: Any) -> None:
        pass


@contextmanager
def server(context: ssl.SSLContext | None) -> Iterator[int]:
    with HTTPServer(("127.0.0.1", 0), Loading) as made:
        if context is not None:
            made.socket = context.wrap_socket(made.socket, server_side=True)
        thread = threading.Thread(target=made.serve_forever)
        thread.start()
        try:
            yield made.server_port
        finally:
            made.shutdown()
            thread.join()


def pod(scheme: str | None, address: str = "127.0.0.1") -> V1Pod:
    probe = {"httpGet": {"path": "/readyz", "port": "http", **({"scheme": scheme} if scheme else {})}}
    container = {"name": "server", "image": "i", "readinessProbe": probe}
    body = {"metadata": {"name": "p"}, "spec": {"containers": [container]}, "status": {"podIP": address}}
    return from_json(V1Pod, body)


@pytest.mark.parametrize("scheme", [None, "HTTP", "HTTPS"])
def test_it_is_asked_as_its_probe_asks(scheme: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    context = None
    if scheme == "HTTPS":
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(*write_pair(tmp_path / "tls", "chat.example.org"))
    with server(context) as port:
        monkeypatch.setattr(serving_pods, "PORT", port)
        said = ask_readyz(pod(scheme))
        assert said.startswith("loading version 3 of nanochat!") and len(said) == LONGEST
    assert ask_readyz(pod(scheme)) == ask_readyz(pod(scheme, address="")) == ""
