"""`nanochat rollback`: on this machine, and on a cluster through the API server, each with a real MLflow."""

from __future__ import annotations

import http.client
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
import yaml
from mlflow_server import serving
from small_pipeline import called, mistake

from nanochat.cli.mlflow_proxy import registry_of, service_of
from nanochat.model.artifact import SERVED
from nanochat.spec.errors import UserError
from nanochat.storage import Artifacts, Profile, open_store
from nanochat.tracking.registry import Candidate, Registry
from operators.kube_error import KubeError

pytestmark = pytest.mark.filterwarnings(
    "ignore::Warning:mlflow", "ignore::DeprecationWarning", "ignore::ResourceWarning"
)
PIPELINE = {"metadata": {"name": "demo", "namespace": "default"}, "spec": {"stages": {"release": {"model": "robin"}}}}


def release(registry: Registry, model: str, *versions: str, root: str = "s3://bucket") -> None:
    """Register versions and promote each in its turn."""
    for name in versions:
        source = f"{root}/artifacts/model/{name}/01-a"
        version = registry.register(model, Candidate(source=source, key=name, metrics={}))
        registry.promote(model, version.version)


def test_on_this_machine(tmp_path: Path) -> None:
    run = tmp_path / "state" / "runs" / "default.demo" / "0123"
    run.mkdir(parents=True)
    (run / "pipeline.json").write_text(json.dumps(PIPELINE))
    status = {"name": "demo", "namespace": "default", "phase": "Succeeded", "message": "", "stages": []}
    (run / "status.json").write_text(json.dumps(status))
    registry = Registry(f"sqlite:///{tmp_path}/state/mlflow.db")
    assert "has no model 'robin'" in mistake(called(tmp_path, "rollback"))
    root = f"{tmp_path}/state"
    artifacts = Artifacts(open_store(Profile(root=root)), tmp_path / "cache")
    for name in ("one", "two"):
        with artifacts.writer("model", name, "01-a") as writer:
            for file in SERVED:
                (writer.folder / file).write_bytes(b"weights")
            writer.commit(recipe={}, inputs={})
    release(registry, "robin", "one", root=root)
    assert "no former champion: choose a version with --to: 1" in mistake(called(tmp_path, "rollback", "demo"))
    release(registry, "robin", "two", root=root)
    done = called(tmp_path, "rollback", "demo")
    assert done.stdout.splitlines() == [
        "Version 1 of robin is now champion instead of version 2, which is now the former one.",
        f"Servers that follow the registry serve it from now on: {root}/artifacts/model/one/01-a",
    ], done.stderr
    champion = registry.champion("robin")
    assert champion is not None and champion.version == "1"
    assert "has no version 7: there are 1, 2" in mistake(called(tmp_path, "rollback", "demo", "--to", "7"))
    artifacts.remove("model", "two")
    for options in ((), ("--to", "2")):
        said = mistake(called(tmp_path, "rollback", "demo", *options))
        assert "version 2 of robin cannot be champion: there is no model at" in said
    champion = registry.champion("robin")
    assert champion is not None and champion.version == "1", "nothing has changed"
    (run / "pipeline.json").unlink()
    for command in ("rollback", "retry"):
        said = mistake(called(tmp_path, command, "demo"))
        assert "there is no run in" in said and "begins anew" in said


class ApiServer:
    """One ChatPipeline, and the proxy to the service `mlflow` in the namespace `tools`."""

    def __init__(self, tracking: str) -> None:
        self.pipeline: dict[str, Any] = {
            **PIPELINE,
            "status": {
                "profile": {"tracking": "http://mlflow.tools.svc.cluster.local:5000"},
                "access": {"service": "tools/controller:80", "token": "t"},
            },
        }  # fmt: skip
        self.refused, self.missing = 0, ""
        address, server = urlsplit(tracking).netloc, self

        class Handler(BaseHTTPRequestHandler):
            def answer(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
                prefix = "/api/v1/namespaces/tools/services/http:mlflow:5000/proxy"
                if self.path.startswith(prefix):
                    onward = http.client.HTTPConnection(address, timeout=30)
                    headers = {"Host": self.headers["Host"], "Content-Type": "application/json"}
                    onward.request(self.command, self.path.removeprefix(prefix), body, headers)
                    reply = onward.getresponse()
                    code, data = reply.status, reply.read()
                    server.refused += code == 403
                    onward.close()
                elif "/services/http:controller:80/proxy/v1/team/demo/model?uri=s3" in self.path:
                    code, data = 200, json.dumps({"missing": server.missing}).encode()
                elif self.path.endswith("/namespaces/team/chatpipelines/demo"):
                    code, data = 200, json.dumps(server.pipeline).encode()
                else:
                    code, data = 404, json.dumps({"message": f"{self.path} not found"}).encode()
                self.send_response(code)
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

            do_GET = do_POST = answer

            def log_message(self, *_: Any) -> None:
                return

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.http.serve_forever, daemon=True).start()


@pytest.fixture
def server(tmp_path: Path) -> Iterator[ApiServer]:
    """With a tracking server that answers to its name in the cluster alone, and to its health check."""
    with serving(tmp_path, "--allowed-hosts", "mlflow.tools.svc.cluster.local:5000") as url:
        yield from api_server(url, tmp_path)


def api_server(tracking: str, tmp_path: Path) -> Iterator[ApiServer]:
    found = ApiServer(tracking)
    config = {
        "apiVersion": "v1",
        "kind": "Config",
        "current-context": "here",
        "clusters": [{"name": "here", "cluster": {"server": f"http://127.0.0.1:{found.http.server_port}"}}],
        "users": [{"name": "me", "user": {"token": "mine"}}],
        "contexts": [{"name": "here", "context": {"cluster": "here", "user": "me", "namespace": "team"}}],
    }
    (tmp_path / "kubeconfig").write_text(yaml.safe_dump(config))
    yield found
    found.http.shutdown()
    found.http.server_close()


def test_on_a_cluster(server: ApiServer, tmp_path: Path) -> None:
    kubeconfig = {"KUBECONFIG": str(tmp_path / "kubeconfig")}
    assert "has no model 'robin'" in mistake(called(tmp_path, "rollback", "demo", "-n", "team", **kubeconfig))
    assert server.refused, "the API server's own name is none of MLflow's"
    registry = Registry(f"sqlite:///{tmp_path}/mlflow.db")
    release(registry, "robin", "one", "two", "three")
    for options, now, before in (([], "2", "3"), ([], "3", "2"), (["--to", "1"], "1", "3")):
        done = called(tmp_path, "rollback", "demo", "-n", "team", *options, **kubeconfig)
        assert f"Version {now} of robin is now champion instead of version {before}" in done.stdout, done.stderr
        champion = registry.champion("robin")
        assert champion is not None and champion.version == now
    done = called(tmp_path, "rollback", "demo", "-n", "team", "--to", "1", **kubeconfig)
    assert "Version 1 of robin was already champion; a server that gave it up tries it again." in done.stdout
    server.missing = "there is no model at s3://bucket/artifacts/model/two"
    said = mistake(called(tmp_path, "rollback", "demo", "-n", "team", "--to", "2", **kubeconfig))
    assert f"version 2 of robin cannot be champion: {server.missing}; choose another with --to" in said
    server.pipeline["status"] = {"profile": {"tracking": "http://absent.tools.svc:5000"}}
    said = mistake(called(tmp_path, "rollback", "demo", "-n", "team", **kubeconfig))
    assert "MLflow (service tools/absent): " in said and "not found" in said
    server.pipeline["status"] = {}
    said = mistake(called(tmp_path, "rollback", "demo", "-n", "team", **kubeconfig))
    assert "demo has no tracking server" in said


def test_the_api_servers_own_refusal_is_final() -> None:
    """Only MLflow's, which has no code, is answered with the name that MLflow knows."""
    asked: list[str] = []

    class FakeKube:
        def json(self, verb: str, path: str, **options: Any) -> Any:
            asked.append(path)
            raise KubeError("", said="services is forbidden", status=403, code="Forbidden")

    kube: Any = FakeKube()
    with pytest.raises(UserError, match="you may not do this: services is forbidden"):
        registry_of("http://mlflow.tools:5000", kube).champion("robin")
    assert len(asked) == 1


@pytest.mark.parametrize(
    ("uri", "proxy"),
    [
        ("http://mlflow.tools:5000", "/api/v1/namespaces/tools/services/http:mlflow:5000/proxy"),
        ("http://mlflow.tools.svc/ml/", "/api/v1/namespaces/tools/services/http:mlflow:80/proxy/ml"),
        ("https://mlflow.tools.svc.cluster.local", "/api/v1/namespaces/tools/services/https:mlflow:443/proxy"),
        ("https://example.org", None),
        ("https://mlflow.example.org", None),
        ("http://10.1.2.3:5000", None),
        ("http://localhost:5000", None),
    ],
)
def test_which_addresses_are_services_of_the_cluster(uri: str, proxy: str | None) -> None:
    found = service_of(uri)
    assert (found and found[0]) == proxy
