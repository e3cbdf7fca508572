"""The requests on the wire, and the errors that answers mean."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from kubernetes import client as kubernetes_client

from nanochat.spec.errors import UserError
from operators.kube_client import CONFIG_MAPS, DEPLOYMENTS, PIPELINES, PODS, KubeClient, Listing
from operators.kube_error import KubeError, NoCluster


def status(code: int, reason: str, message: str = "", **details: Any) -> tuple[int, bytes]:
    """An answer that is a Kubernetes Status."""
    body = {"kind": "Status", "apiVersion": "v1", "code": code, "reason": reason, "message": message}
    return code, json.dumps({**body, "details": details}).encode()


class Server:
    """Answers every request with `answer` and keeps what was asked."""

    def __init__(self) -> None:
        self.answer: tuple[int, bytes] = (200, b"{}")
        self.answers: list[tuple[int, bytes]] = []  # before it
        self.asked: list[tuple[str, str, str | None, Any]] = []
        self.requests: list[str] = []  # verbs that the client told of
        own = self

        class Handler(BaseHTTPRequestHandler):
            def reply(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
                own.asked.append((self.command, self.path, self.headers["Content-Type"], json.loads(body or "null")))
                code, text = own.answers.pop(0) if own.answers else own.answer
                self.send_response(code)
                self.send_header("Content-Length", str(len(text)))
                self.end_headers()
                self.wfile.write(text)

            do_GET = do_POST = do_PUT = do_PATCH = do_DELETE = reply

            def log_message(self, *_: Any) -> None:
                return

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.http.serve_forever, daemon=True).start()
        self.url = f"http://127.0.0.1:{self.http.server_port}"

    def client(self) -> KubeClient:
        api = kubernetes_client.ApiClient(kubernetes_client.Configuration(host=self.url))
        return KubeClient(api, on_request=lambda verb, seconds: self.requests.append(verb))


@pytest.fixture
def server() -> Iterator[Server]:
    server = Server()
    yield server
    server.http.shutdown()
    server.http.server_close()


BODY = {"metadata": {"name": "who", "namespace": "team"}, "data": {"a": "b"}}


def test_requests(server: Server) -> None:
    kube = server.client()
    server.answer = (200, json.dumps({"items": [BODY], "metadata": {"resourceVersion": "7"}}).encode())
    assert kube.listing(PODS, labelSelector="a=b,c") == Listing([BODY], 7)
    kube.listing(PIPELINES, "team")
    kube.get(DEPLOYMENTS, "team", "server")
    kube.create(CONFIG_MAPS, BODY)
    kube.apply(CONFIG_MAPS, BODY, manager="me")
    kube.delete(PODS, "team", "pod", uid="u", grace=1, propagation="Background")
    options = {
        "apiVersion": "v1", "kind": "DeleteOptions", "gracePeriodSeconds": 1, "propagationPolicy": "Background",
        "preconditions": {"uid": "u"},
    }  # fmt: skip
    asked = [
        ("GET", "/api/v1/pods?labelSelector=a%3Db%2Cc&limit=100", None),
        ("GET", "/apis/nanochat.dev/v1alpha1/namespaces/team/chatpipelines?limit=100", None),
        ("GET", "/apis/apps/v1/namespaces/team/deployments/server", None),
        ("POST", "/api/v1/namespaces/team/configmaps", {"apiVersion": "v1", "kind": "ConfigMap", **BODY}),
        (
            "PATCH",
            "/api/v1/namespaces/team/configmaps/who?fieldManager=me&force=true&fieldValidation=Strict",
            {"apiVersion": "v1", "kind": "ConfigMap", **BODY},
        ),
        ("DELETE", "/api/v1/namespaces/team/pods/pod", options),
    ]
    assert [(method, path, body) for method, path, _, body in server.asked] == asked
    assert server.asked[4][2] == "application/apply-patch+yaml"
    assert server.requests == ["list", "list", "get", "create", "patch", "delete"]


def test_long_listings_come_in_pages(server: Server) -> None:
    pages = [
        {"items": [BODY], "metadata": {"resourceVersion": "7", "continue": "more"}},
        {"items": [BODY, BODY], "metadata": {"resourceVersion": "7"}},
    ]
    server.answers = [(200, json.dumps(page).encode()) for page in pages]
    assert server.client().listing(PODS) == Listing([BODY] * 3, 7)
    assert [path for _, path, _, _ in server.asked] == [
        "/api/v1/pods?limit=100",
        "/api/v1/pods?limit=100&continue=more",
    ]


def test_kinds_are_looked_for_in_the_discovery(server: Server) -> None:
    server.answer = (200, json.dumps({"resources": [{"name": "deployments"}]}).encode())
    assert server.client().serves(DEPLOYMENTS) and not server.client().serves(PIPELINES)
    assert [path for _, path, _, _ in server.asked] == ["/apis/apps/v1", "/apis/nanochat.dev/v1alpha1"]


def test_absence_and_existence_are_no_errors(server: Server) -> None:
    kube = server.client()
    server.answer = status(404, "NotFound", kind="pods")
    assert kube.get(PODS, "team", "pod") is None and not kube.serves(PODS)
    kube.delete(PODS, "team", "pod")
    server.answer = status(409, "AlreadyExists", kind="configmaps")
    assert kube.create(CONFIG_MAPS, BODY) is None
    server.answer = status(409, "Conflict", kind="configmaps")
    kube.delete(PODS, "team", "pod", uid="another")
    with pytest.raises(KubeError):
        kube.delete(PODS, "team", "pod")
    with pytest.raises(KubeError):
        kube.create(CONFIG_MAPS, BODY)
    server.answer = status(404, "NotFound", kind="namespaces")
    with pytest.raises(KubeError) as caught:
        kube.create(CONFIG_MAPS, BODY)
    assert (caught.value.kind, caught.value.is_unserved) == ("namespaces", False)


@pytest.mark.parametrize(
    ("answer", "code", "kind", "said", "unserved", "passing"),
    [
        (status(404, "NotFound", 'pods "a" not found', kind="pods"), "NotFound", "pods", 'pods "a"', False, False),
        (status(404, "NotFound", "the server could not find"), "NotFound", "", "the server", True, False),
        ((404, b"404 page not found\n"), "", "", "404 page not found", True, False),
        ((404, b'{"reason": "InvalidToken", "detail": "no"}'), "InvalidToken", "", "no", False, False),
        (status(403, "Forbidden", "no", kind="pods"), "Forbidden", "pods", "no", False, False),
        ((403, b"Invalid Host header"), "", "", "Invalid Host header", False, False),
        ((502, b'{"kind": "Pod"}'), "", "", '{"kind": "Pod"}', False, True),
        (status(429, "TooManyRequests", "later"), "TooManyRequests", "", "later", False, True),
        ((500, b""), "", "", "HTTP status 500", False, True),
    ],
)
def test_errors_are_told_apart_by_codes(
    server: Server, answer: tuple[int, bytes], code: str, kind: str, said: str, unserved: bool, passing: bool
) -> None:
    server.answer = answer
    with pytest.raises(KubeError) as caught:
        server.client().request("get", "/version", what="version")
    error = caught.value
    assert (error.status, error.code, error.kind) == (answer[0], code, kind)
    assert error.said.startswith(said) and error.message == f"cannot get version: {error.said}"
    assert (error.is_unserved, error.is_passing) == (unserved, passing)


def test_a_refused_object_names_its_faults(server: Server) -> None:
    cause = {"reason": "FieldValueInvalid", "field": "spec.store", "message": "cannot change"}
    server.answer = status(422, "Invalid", "it is invalid", kind="ChatPipeline", causes=[cause])
    with pytest.raises(KubeError) as caught:
        server.client().create(CONFIG_MAPS, BODY)
    (found,) = caught.value.causes
    assert (found.reason, found.field, found.message) == tuple(cause.values())


def test_no_answer(server: Server) -> None:
    server.http.shutdown()
    server.http.server_close()
    with pytest.raises(
        KubeError, match="cannot list pods in all namespaces: the API server cannot be reached"
    ) as caught:
        server.client().listing(PODS)
    assert (caught.value.status, caught.value.is_passing) == (0, True)
    assert server.requests == ["list"]


def test_the_kubeconfig(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, server: Server) -> None:
    path = tmp_path / "config"
    monkeypatch.setenv("KUBECONFIG", str(path))
    with pytest.raises(NoCluster, match="no cluster is configured"):
        KubeClient.connect()
    context = {"cluster": "c", "user": "u", "namespace": "team"}
    config = {
        "current-context": "here",
        "contexts": [{"name": "here", "context": context}, {"name": "there", "context": {**context, "namespace": ""}}],
        "clusters": [{"name": "c", "cluster": {"server": server.url}}],
        "users": [{"name": "u", "user": {"token": "mine"}}],
    }
    path.write_text(json.dumps(config))
    assert (KubeClient.connect().namespace, KubeClient.connect("there").namespace) == ("team", "default")
    with pytest.raises(UserError, match="no context 'elsewhere': it has here, there"):
        KubeClient.connect("elsewhere")
    kube = KubeClient.in_cluster(connections=7, on_request=lambda verb, seconds: server.requests.append(verb))
    assert kube.json("get", "/version", what="version") == {} and server.requests == ["get"]


def test_a_command_line_needs_no_package_of_the_controller() -> None:
    script = "import sys, operators.kube_client; print(*{name.partition('.')[0] for name in sys.modules})"
    loaded = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout.split()
    assert not {"kopf", "kubeflow", "kubernetes", "prometheus_client", "fastapi"} & set(loaded)


@pytest.mark.parametrize(
    "body", [b"", b"[1]", b"null", b'{"message": "no", "details": ["@type"], "reason": 7}', b"\xff"]
)
def test_an_answer_that_is_no_status_is_an_error_all_the_same(body: bytes) -> None:
    error = KubeError.of_answer("get it", 502, body)
    assert (error.status, error.kind, error.causes, error.is_passing) == (502, "", (), True)
    assert error.said
