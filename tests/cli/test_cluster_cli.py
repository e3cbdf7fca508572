"""The commands on a cluster, against a server that answers as an API server does, and as it should not."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import yaml
from small_pipeline import PIPELINE, nanochat

BASE = "/apis/nanochat.dev/v1alpha1/namespaces/team/chatpipelines"
PROXY = "/api/v1/namespaces/system/services/http:controller:8080/proxy/v1/team/small"


def told(**changes: Any) -> dict[str, Any]:
    stages = [
        {"name": "base", "phase": "Running", "attempts": 2, "step": 40, "total": 100, "loss": 2.5, "rate": "9 tokens/s",
         "eta": 60, "started": "2026-11-24T10:00:00Z"},
        {"name": "mid", "phase": "Waiting", "attempts": 0, "message": "waits for base"},
    ]  # fmt: skip
    access = {"service": "system/controller:8080", "token": "fresh"}
    return {"phase": "Running", "stages": stages, "access": access} | changes


class Server:
    """Answers from a table, and keeps what was asked of it."""

    def __init__(self) -> None:
        self.objects: dict[str, Any] = {}
        self.refusals: dict[str, tuple[int, dict[str, Any]]] = {}
        self.asked: list[tuple[str, str, Any]] = []
        self.token = "fresh"
        server = self

        class Handler(BaseHTTPRequestHandler):
            def answer(self) -> None:
                length = int(self.headers.get("Content-Length") or 0)
                body = json.loads(self.rfile.read(length)) if length else None
                path, _, query = self.path.partition("?")
                server.asked.append((self.command, path, body))
                code, found, extra = server.reply(self.command, path, body, self.headers.get("X-Nanochat-Token"))
                if isinstance(found, bytes) and query.startswith("offset="):
                    found = found[int(query.removeprefix("offset=")) :]
                data = found if isinstance(found, bytes) else json.dumps(found).encode()
                self.send_response(code)
                for name, value in {"Content-Length": str(len(data)), **extra}.items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(data)

            do_GET = do_PATCH = answer

            def log_message(self, *_: Any) -> None:
                return

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.http.serve_forever, daemon=True).start()

    def reply(self, verb: str, path: str, body: Any, token: str | None) -> tuple[int, Any, dict[str, str]]:
        if path in self.refusals:
            return *self.refusals[path], {}
        if path.startswith(PROXY):
            if token != self.token:
                return (
                    404,
                    {"detail": "there is no such pipeline, or the token is not its (read status.access again)"},
                    {},
                )
            found = self.objects.get(path)
            offset = {"X-Nanochat-Next": str(len(found))} if isinstance(found, bytes) else {}
            return (200, found, offset) if found is not None else (404, {"detail": "there is no such file"}, {})
        if verb == "PATCH":
            self.objects[path] = {**self.objects.get(path, {}), **body}
        if path not in self.objects:
            return 404, {"message": f'chatpipelines "{path.rsplit("/")[-1]}" not found'}, {}
        return 200, self.objects[path], {}

    def changes(self) -> list[tuple[str, Any]]:
        return [(path, body) for verb, path, body in self.asked if verb == "PATCH"]


@pytest.fixture
def server() -> Iterator[Server]:
    found = Server()
    found.objects[f"{BASE}/small"] = {"metadata": {"name": "small"}, "status": told()}
    yield found
    found.http.shutdown()
    found.http.server_close()


Run = Callable[..., tuple[int, str]]


@pytest.fixture
def run(server: Server, tmp_path: Path) -> Run:
    """The command in a folder with a pipeline's file, and a kubeconfig for the server."""
    (tmp_path / "small.yaml").write_text(PIPELINE)
    config = {
        "apiVersion": "v1",
        "kind": "Config",
        "current-context": "here",
        "clusters": [{"name": "here", "cluster": {"server": f"http://127.0.0.1:{server.http.server_port}"}}],
        "users": [{"name": "me", "user": {"token": "mine"}}],
        "contexts": [{"name": "here", "context": {"cluster": "here", "user": "me", "namespace": "team"}}],
    }
    (tmp_path / "kubeconfig").write_text(yaml.safe_dump(config))

    def command(*arguments: str, **environment: str) -> tuple[int, str]:
        done = nanochat(tmp_path, *arguments, **{"KUBECONFIG": str(tmp_path / "kubeconfig"), **environment})
        return done.returncode, done.stdout + done.stderr

    return command


def test_submit_applies_what_was_set_and_uploads_the_identity(server: Server, run: Run, tmp_path: Path) -> None:
    line = json.dumps([{"role": "user", "content": "Who are you?"}, {"role": "assistant", "content": "I am Robin."}])
    (tmp_path / "me.jsonl").write_text(line + "\n")
    extra = "stages.mid.mixture=[{task: world-facts, rows: 200}, {task: identity}]"
    code, said = run("submit", "small.yaml", "--set", "stages.mid.identity=me.jsonl", "--set", extra)
    assert code == 0, said
    assert "nanochat logs small --follow" in said
    (config_path, config_map), (path, applied) = server.changes()
    assert config_path == "/api/v1/namespaces/team/configmaps/small-identity"
    assert config_map["data"]["identity.jsonl"] == line + "\n"
    assert path == f"{BASE}/small"
    assert applied["spec"]["stages"]["mid"]["identity"] == "configmap://small-identity/identity.jsonl"
    assert "retries" not in applied["spec"], "what the file does not say is the API server's default"


@pytest.mark.parametrize(
    ("setting", "says"),
    [
        ("sources.mirror=data", "sources.mirror is data, on this machine"),
        ("stages.base.dept=4", "unknown field 'spec.stages.base.dept'"),
        ("stages.mid.identity=absent.jsonl", "cannot read"),
    ],
)
def test_submit_refuses_what_a_cluster_cannot_have(server: Server, run: Run, setting: str, says: str) -> None:
    code, said = run("submit", "small.yaml", "--set", setting)
    assert code == 2 and says in said
    assert server.changes() == []


def test_status_without_a_local_run_is_the_clusters(run: Run) -> None:
    code, said = run("status", "small")
    assert code == 0, said
    assert "team/small: Running" in said and "40/100, loss 2.500, 9 tokens/s" in said and "waits for base" in said


@pytest.mark.parametrize(
    ("command", "spec"),
    [
        ("suspend", {"suspend": True}),
        ("resume", {"suspend": False}),
        ("cancel", {"cancel": True}),
        ("retry", {"cancel": False}),
    ],
)
def test_what_is_asked_of_a_pipeline(server: Server, run: Run, command: str, spec: dict[str, bool]) -> None:
    code, said = run(command, "small")
    assert code == 0, said
    ((path, body),) = server.changes()
    assert (path, body["spec"]) == (f"{BASE}/small", spec)
    assert ("nanochat.dev/retry" in body.get("metadata", {}).get("annotations", {})) is (command == "retry")


def test_logs_of_the_last_attempt_and_of_all(server: Server, run: Run) -> None:
    files = [{"name": "launch", "bytes": 1}, {"name": "rank0", "bytes": 6}]
    launches = [
        {"launch": "01-a", "files": files},
        {"launch": "01-b", "files": files[:1]},
        {"launch": "02-c", "files": files},
    ]
    server.objects |= {
        f"{PROXY}/logs/base": launches,
        f"{PROXY}/logs/base/01-a/rank0": b"first\n",
        f"{PROXY}/logs/base/02-c/rank0": b"second\n",
    }
    assert run("logs", "small", "base") == (0, "second\n")
    assert run("logs", "small", "base", "--attempt", "1") == (0, "first\n")
    code, said = run("logs", "small", "bsae")
    assert code == 2 and "Did you mean 'base'" in said


def test_a_token_that_has_changed_is_read_again(server: Server, run: Run) -> None:
    server.objects[f"{PROXY}/report"] = ["report.md"]
    server.objects[f"{PROXY}/report/report.md"] = b"# small: report\n"
    server.objects[f"{BASE}/small"]["status"] = told(access={"service": "system/controller:8080", "token": "stale"})
    answers = iter(["stale", "fresh", "fresh", "fresh"])
    reply = server.reply

    def renewed(verb: str, path: str, body: Any, token: str | None) -> tuple[int, Any, dict[str, str]]:
        if path == f"{BASE}/small":
            access = {"service": "system/controller:8080", "token": next(answers)}
            server.objects[path]["status"] = told(access=access)
        return reply(verb, path, body, token)

    server.reply = renewed  # type: ignore[method-assign]
    code, said = run("report", "small")
    assert code == 0 and "# small: report" in said


def test_what_a_cluster_may_answer(server: Server, run: Run) -> None:
    path = f"{BASE}/small"
    cases = [
        ((401, {"message": "Unauthorized"}), "the cluster does not know you"),
        ((403, {"message": "chatpipelines is forbidden: User bob"}), "you may not do this: chatpipelines is forbidden"),
        ((404, {"message": "the server could not find the requested resource"}), "install nanochat's chart first"),
        ((404, {"message": 'chatpipelines "small" not found'}), "there is no pipeline team/small on the cluster"),
        ((500, {"message": "etcd is gone"}), "etcd is gone"),
    ]
    for refusal, says in cases:
        server.refusals[path] = refusal
        code, said = run("status", "small", "-n", "team")
        assert code == 2 and says in said and said.startswith("error:") and said.count("\n") == 1, said


def test_no_cluster_at_all(run: Run, server: Server, tmp_path: Path) -> None:
    code, said = run("status", "small", "-n", "team", KUBECONFIG=str(tmp_path / "absent"))
    assert code == 2 and "no cluster is configured" in said
    code, said = run("status", "small", "--context", "there")
    assert code == 2 and "the kubeconfig has no context 'there': it has here" in said
    server.http.shutdown()
    server.http.server_close()
    code, said = run("status", "small", "-n", "team")
    assert code == 2 and "the cluster cannot be reached" in said
