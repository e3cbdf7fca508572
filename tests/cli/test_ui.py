"""`nanochat ui`: MLflow's server on the store's own database, one behind kubectl, and what is said where none is."""

from __future__ import annotations

import json
import signal
import socket
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import psutil
import pytest
from api_server import BASE, Server, failure, write_kubeconfig
from mlflow_server import free_port
from small_pipeline import called, variables_of

from nanochat.pipeline.run_status import RunStatus
from nanochat.storage import Profile, open_store
from nanochat.tracking.mlflow import marker

RUN = "runs/default.demo/0123"


@contextmanager
def shown_by(command: list[str], **options: Any) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """The command once it has named a page, with the line that does."""
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, **options)
    try:
        assert process.stdout is not None
        yield process, process.stdout.readline()
    finally:
        process.kill()
        process.communicate()


def end(process: subprocess.Popen[str]) -> None:
    """End the command as Ctrl-C does: nothing that it started lives on."""
    started = psutil.Process(process.pid).children(recursive=True)
    process.send_signal(signal.SIGINT)
    assert process.wait(60) == 0 and started
    assert not any(child.is_running() and child.status() != psutil.STATUS_ZOMBIE for child in started)


def test_it_serves_this_stores_runs_until_control_c(tmp_path: Path) -> None:
    home = tmp_path / "state"
    store = open_store(Profile(root=str(home)))
    store.write_json(f"{RUN}/status.json", asdict(RunStatus("demo", "default", "Succeeded")))
    store.write_json(marker(RUN), {"experiment": "7", "run": "ab"})
    (home / "mlflow.db").touch()
    port = free_port()
    command = [sys.executable, "-m", "nanochat", "ui", "--port", str(port)]
    with shown_by(command, cwd=tmp_path, env=variables_of(tmp_path, {})) as (process, said):
        assert said.startswith(f"MLflow: http://127.0.0.1:{port}/#/experiments/7/runs?"), said
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/", timeout=60) as answer:
            assert b"<title>MLflow</title>" in answer.read()
        end(process)
    assert [path.name for path in tmp_path.iterdir()] == ["state"], "nothing is left where it was typed"


def test_what_there_is_to_show_is_said(tmp_path: Path) -> None:
    done = called(tmp_path, "ui", "--no-open")
    assert done.returncode == 2 and "mlflow.db is not there yet: nothing has run in this store" in done.stderr
    done = called(tmp_path, "ui", "--no-open", MLFLOW_TRACKING_URI="https://mlflow.example.org/")
    assert (done.returncode, done.stdout) == (0, "MLflow: https://mlflow.example.org/#/experiments\n")


def test_a_port_that_is_taken_is_said(tmp_path: Path) -> None:
    (tmp_path / "state").mkdir()
    (tmp_path / "state" / "mlflow.db").touch()
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        done = called(tmp_path, "ui", "--port", str(port), "--no-open")
    assert done.returncode == 2 and f"port {port} is in use: choose another with --port" in done.stderr


# Keeps its words, and leads to an MLflow of one experiment; or fails as kubectl does.
KUBECTL = """#!{python}
import json, os, sys
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
Path(r"{folder}/words.json").write_text(json.dumps(sys.argv[1:]))
if Path(r"{folder}/refused").exists():
    sys.exit('Error from server (NotFound): services "mlflow" not found')
class MLflow(BaseHTTPRequestHandler):
    def do_GET(self):
        if self.path == "/lost":
            os._exit(1)
        known = self.path == "/pages/api/2.0/mlflow/experiments/get-by-name?experiment_name=nanochat"
        self.send_response(200 if known else 404)
        self.end_headers()
        self.wfile.write(json.dumps(dict(experiment=dict(experiment_id="7"))).encode())
HTTPServer(("127.0.0.1", int(sys.argv[-1].partition(":")[0])), MLflow).serve_forever()
"""


class Cluster:
    """A cluster whose pipelines are tracked at an address, and a kubectl that leads to its services."""

    def __init__(self, folder: Path, server: Server) -> None:
        self.folder, self.server, self.port = folder, server, free_port()
        self.kubectl = folder / "bin" / "kubectl"
        self.kubectl.parent.mkdir()
        self.kubectl.write_text(KUBECTL.format(python=sys.executable, folder=folder))
        self.kubectl.chmod(0o755)
        self.variables = {"KUBECONFIG": str(write_kubeconfig(folder, server)), "PATH": str(self.kubectl.parent)}

    def track(self, uri: str) -> None:
        meta = {"name": "small", "uid": "12ab", "resourceVersion": "1"}
        new = {"metadata": {**meta, "name": "new"}, "spec": {}}  # no controller has looked at it
        tracked = {"metadata": meta, "spec": {}, "status": {"profile": {"tracking": uri}}}
        self.server.objects[BASE] = {"metadata": {"resourceVersion": "1"}, "items": [new, tracked]}

    def ui(self, *more: str) -> list[str]:
        return ["ui", "-n", "team", "--no-open", "--port", str(self.port), *more]

    def said(self, *more: str, **variables: str) -> tuple[int, str]:
        done = called(self.folder, *self.ui(*more), **self.variables, **variables)
        return done.returncode, done.stdout + done.stderr


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[Cluster]:
    server = Server()
    yield Cluster(tmp_path, server)
    server.http.shutdown()
    server.http.server_close()


def test_kubectl_leads_to_a_clusters_runs_until_control_c(cluster: Cluster) -> None:
    cluster.track("http://mlflow.tools.svc.cluster.local:5000/pages")
    command = [sys.executable, "-m", "nanochat", *cluster.ui("--context", "here")]
    with shown_by(command, cwd=cluster.folder, env=variables_of(cluster.folder, cluster.variables)) as (process, said):
        page = f"http://127.0.0.1:{cluster.port}/pages/#/experiments/7/runs?workflowType=machine_learning"
        assert said == f"MLflow: {page}; Ctrl-C ends it\n"
        end(process)
    words = json.loads((cluster.folder / "words.json").read_text())
    port = f"{cluster.port}:5000"
    there = ["--context", "here", "-n", "tools", "port-forward", "--address", "127.0.0.1", "service/mlflow", port]
    assert words == there


def test_a_connection_to_a_cluster_that_ends_is_an_error(cluster: Cluster) -> None:
    cluster.track("http://mlflow.tools.svc:5000")
    command = [sys.executable, "-m", "nanochat", *cluster.ui()]
    options = {"cwd": cluster.folder, "env": variables_of(cluster.folder, cluster.variables), "stderr": subprocess.PIPE}
    with shown_by(command, **options) as (process, said):
        assert said == f"MLflow: http://127.0.0.1:{cluster.port}/#/experiments; Ctrl-C ends it\n"
        with pytest.raises(OSError):
            urllib.request.urlopen(f"http://127.0.0.1:{cluster.port}/lost", timeout=60)
        _, errors = process.communicate(timeout=60)
    assert process.returncode == 2
    assert "error: kubectl has ended, its words are above: type the command again" in errors


def test_what_a_cluster_has_to_show_is_said(cluster: Cluster) -> None:
    cluster.server.objects[BASE] = {"metadata": {"resourceVersion": "1"}, "items": []}
    untracked = "no pipeline of this namespace is tracked by MLflow yet: submit one, or name another with -n"
    code, said = cluster.said()
    assert code == 2 and untracked in said
    cluster.track("http://127.0.0.1:9/mlflow")
    assert cluster.said() == (0, "MLflow: http://127.0.0.1:9/mlflow/#/experiments\n")
    cluster.track("http://mlflow.tools.svc:5000")
    (cluster.folder / "refused").touch()
    code, said = cluster.said()
    assert code == 2 and "kubectl did not start: its words are above" in said
    cluster.kubectl.unlink()
    code, said = cluster.said()
    assert code == 2 and "kubectl is not installed, and MLflow is inside of the cluster: install it" in said
    cluster.server.refusals[BASE] = failure(403, "Forbidden", "you may not list them")
    code, said = cluster.said()
    assert (code, said) == (2, "error: you may not do this: you may not list them\n")
