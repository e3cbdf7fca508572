"""A server that answers from a table as an API server does, and a kubeconfig for it, in which its context is `here`.

server = Server()
server.objects[f"{BASE}/small"] = {...}
kubeconfig = write_kubeconfig(folder, server)
"""

from __future__ import annotations

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import yaml

from operators.access import INVALID_TOKEN

BASE = "/apis/nanochat.dev/v1alpha1/namespaces/team/chatpipelines"
PROXY = "/api/v1/namespaces/system/services/http:controller:8080/proxy/v1/team/small"


def failure(code: int, reason: str, message: str, **details: Any) -> tuple[int, dict[str, Any]]:
    """A refusal of the API server: a Status."""
    return code, {"kind": "Status", "status": "Failure", "reason": reason, "message": message, "details": details}


def merged(old: Any, patch: Any) -> Any:
    """A merge patch, applied."""
    if not isinstance(patch, dict):
        return patch
    return {**old, **{name: merged(old.get(name) or {}, value) for name, value in patch.items()}}


class Server:
    """Answers from a table, logs in pieces of four bytes, and keeps what was asked of it."""

    def __init__(self) -> None:
        self.objects: dict[str, Any] = {}
        self.refusals: dict[str, tuple[int, Any]] = {}
        self.asked: list[tuple[str, str, Any]] = []
        self.token = "fresh"
        server = self

        class Handler(BaseHTTPRequestHandler):
            def answer(self) -> None:
                length = int(self.headers.get("Content-Length") or 0)
                body = json.loads(self.rfile.read(length)) if length else None
                path, _, query = self.path.partition("?")
                server.asked.append((self.command, path, body))
                code, found = server.reply(self.command, path, body, self.headers.get("X-Nanochat-Token"))
                data = found if isinstance(found, bytes) else json.dumps(found).encode()
                if query.startswith("offset="):
                    offset = int(query.removeprefix("offset="))
                    data = data[offset : offset + 4]
                self.send_response(code)
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

            do_GET = do_PATCH = answer

            def log_message(self, *_: Any) -> None:
                return

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.http.serve_forever, daemon=True).start()

    def reply(self, verb: str, path: str, body: Any, token: str | None) -> tuple[int, Any]:
        if path in self.refusals:
            return self.refusals[path]
        if path.startswith(PROXY):
            if token != self.token:
                return 404, {"reason": INVALID_TOKEN, "detail": "another one is in the status"}
            found = self.objects.get(path)
            return (200, found) if found is not None else (404, {"detail": "the pipeline has no report yet"})
        if verb == "PATCH":
            self.objects[path] = merged(self.objects.get(path, {}), body)
        if path not in self.objects:
            *_, kind, name = path.split("/")
            return failure(404, "NotFound", f'{kind} "{name}" not found', kind=kind, name=name)
        return 200, self.objects[path]

    def changes(self) -> list[tuple[str, Any]]:
        return [(path, body) for verb, path, body in self.asked if verb == "PATCH"]


def write_kubeconfig(folder: Path, server: Server) -> Path:
    """The kubeconfig of one who works in the namespace `team`."""
    config = {
        "apiVersion": "v1",
        "kind": "Config",
        "current-context": "here",
        "clusters": [{"name": "here", "cluster": {"server": f"http://127.0.0.1:{server.http.server_port}"}}],
        "users": [{"name": "me", "user": {"token": "mine"}}],
        "contexts": [{"name": "here", "context": {"cluster": "here", "user": "me", "namespace": "team"}}],
    }
    (folder / "kubeconfig").write_text(yaml.safe_dump(config))
    return folder / "kubeconfig"
