"""`nanochat ui`: MLflow's server on the store's own database, and what is said where there is none to show."""

from __future__ import annotations

import signal
import socket
import subprocess
import sys
import urllib.request
from dataclasses import asdict
from pathlib import Path

import psutil
from mlflow_server import free_port
from small_pipeline import called, variables_of

from nanochat.pipeline.run_status import RunStatus
from nanochat.storage import Profile, open_store
from nanochat.tracking.mlflow import marker

RUN = "runs/default.demo/0123"


def test_it_serves_this_stores_runs_until_control_c(tmp_path: Path) -> None:
    home = tmp_path / "state"
    store = open_store(Profile(root=str(home)))
    store.write_json(f"{RUN}/status.json", asdict(RunStatus("demo", "default", "Succeeded")))
    store.write_json(marker(RUN), {"experiment": "7", "run": "ab"})
    (home / "mlflow.db").touch()
    port = free_port()
    command = [sys.executable, "-m", "nanochat", "ui", "--port", str(port)]
    variables = variables_of(tmp_path, {})
    process = subprocess.Popen(command, cwd=tmp_path, env=variables, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        said = process.stdout.readline()
        assert said.startswith(f"MLflow: http://127.0.0.1:{port}/#/experiments/7/runs?"), said
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/", timeout=60) as answer:
            assert b"<title>MLflow</title>" in answer.read()
        started = psutil.Process(process.pid).children(recursive=True)
        process.send_signal(signal.SIGINT)
        assert process.wait(60) == 0
        assert not any(child.is_running() and child.status() != psutil.STATUS_ZOMBIE for child in started)
    finally:
        process.kill()
        process.communicate()
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
