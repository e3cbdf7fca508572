"""`nanochat ui`: MLflow's pages on the runs of this store, or of a cluster.

Where runs are tracked in a database file a server is started for it, on this machine alone; where a server of a cluster
tracks them, kubectl leads to it. Both end with Ctrl-C.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import webbrowser
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Annotated
from urllib.parse import urlsplit

import typer

from nanochat.cli.cluster_run import ClusterRun
from nanochat.cli.local_run import find_runs
from nanochat.cli.mlflow_proxy import named_service
from nanochat.cli.options import Context, Namespace, Store, option
from nanochat.parse.address import shown
from nanochat.pipeline.profiles import resolve_profile
from nanochat.runtime.stopping import on_stop
from nanochat.spec.bounds import integer
from nanochat.spec.errors import UserError
from nanochat.storage.failures import Damaged
from nanochat.storage.records import read_object
from nanochat.tracking.links import runs_page
from nanochat.tracking.mlflow import EXPERIMENT, marker
from nanochat.tracking.rest import experiment_at

HOST = "127.0.0.1"
START_SECONDS = 600.0  # that a server may take to answer, on a busy machine too
END_SECONDS = 10.0  # and to end
ENDS = "; Ctrl-C ends it"
SQLITE = "sqlite:///"
LEAN = {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", "MLFLOW_DISABLE_TELEMETRY": "true"}  # of MLflow's processes


def ui(
    port: Annotated[int, option(integer(1, 65535), help="Port of this machine.")] = 5000,
    open_: Annotated[bool, typer.Option("--open/--no-open", help="Open the page in the browser.")] = True,
    store: Store = "default",
    namespace: Namespace = None,
    context: Context = None,
) -> None:
    """Open MLflow's pages on the runs of this store or, with -n, of a cluster."""
    if namespace is not None or context is not None:
        _of_cluster(port, namespace=namespace, context=context, opened=open_)
        return
    resolved = resolve_profile(store)
    uri, experiment = resolved.tracking, _experiment(store)
    if not uri.startswith(SQLITE):
        _open(shown(uri), experiment, opened=open_)
        return
    if not Path(uri.removeprefix(SQLITE)).exists():
        raise UserError(f"{uri.removeprefix(SQLITE)} is not there yet: nothing has run in this store")
    if not all(importlib.util.find_spec(name) for name in ("mlflow", "flask")):
        raise UserError(f"MLflow's server is not installed: run 'make setup', or pip install mlflow into {sys.prefix}")
    server = [sys.executable, "-m", "mlflow", "server", "--host", HOST, "--port", str(port), "--workers", "1"]
    server += [
        "--backend-store-uri",
        uri,
        "--artifacts-destination",
        str(Path(uri.removeprefix(SQLITE)).parent / "mlflow"),
    ]
    _serve(server, "MLflow", port, lambda: _open(f"http://{HOST}:{port}", experiment, opened=open_, more=ENDS))


def _of_cluster(port: int, *, namespace: str | None, context: str | None, opened: bool) -> None:
    """The server that the pipelines of a namespace are tracked by."""
    runs = ClusterRun.all(namespace=namespace, context=context)
    found = (run.status.get("profile") or {} for run in runs)
    uri = next((profile["tracking"] for profile in found if profile.get("tracking")), "")
    if not uri:
        raise UserError("no pipeline of this namespace is tracked by MLflow yet: submit one, or name another with -n")
    service = named_service(uri)
    if service is None:
        _open(shown(uri), experiment_at(uri, EXPERIMENT), opened=opened)
        return
    if shutil.which("kubectl") is None:
        raise UserError("kubectl is not installed, and MLflow is inside of the cluster: install it")
    parts = urlsplit(uri)
    there = parts.port or (443 if parts.scheme == "https" else 80)
    command = ["kubectl", *(["--context", context] if context else []), "-n", service[0], "port-forward"]
    command += ["--address", HOST, f"service/{service[1]}", f"{port}:{there}"]
    here = f"{parts.scheme}://{HOST}:{port}{parts.path}"
    _serve(command, "kubectl", port, lambda: _open(here, experiment_at(here, EXPERIMENT), opened=opened, more=ENDS))


def _experiment(store: str) -> str:
    """The id of the experiment that MLflow keeps this store's runs in; '' where it knows none yet."""
    for run in find_runs(store):
        with suppress(Damaged):
            found = str((read_object(run.store, marker(run.paths.root)) or {}).get("experiment", ""))
            if found.isdecimal():
                return found
    return ""


def _serve(command: Sequence[str], name: str, port: int, tell: Callable[[], None]) -> None:
    """Run what serves a port until Ctrl-C, or to its own end, which is an error; `tell` once it answers."""
    if _answers(port):
        raise UserError(f"port {port} is in use: choose another with --port")
    process = subprocess.Popen(
        command, env=os.environ | LEAN, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, start_new_session=True
    )
    restore = on_stop(_interrupt)
    try:
        deadline = time.monotonic() + START_SECONDS
        while process.poll() is None and not _answers(port) and time.monotonic() < deadline:
            time.sleep(0.2)
        if not _answers(port):
            raise UserError(f"{name} did not start: its words are above")
        tell()
        process.wait()
        raise UserError(f"{name} has ended, its words are above: type the command again")
    except KeyboardInterrupt:
        print()
    finally:
        _end(process)
        restore()


def _interrupt(*_: object) -> None:
    raise KeyboardInterrupt


def _end(process: subprocess.Popen[bytes]) -> None:
    """End a server with all that it started."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        with suppress(ProcessLookupError):
            os.killpg(process.pid, number)
        with suppress(subprocess.TimeoutExpired):
            process.wait(END_SECONDS)
            break


def _answers(port: int) -> bool:
    with socket.socket() as found:
        found.settimeout(1.0)
        return found.connect_ex((HOST, port)) == 0


def _open(address: str, experiment: str, *, opened: bool, more: str = "") -> None:
    """Name the page of an experiment's runs, and open it; without one that of all experiments."""
    page = runs_page(address, experiment) if experiment else f"{address.rstrip('/')}/#/experiments"
    print(f"MLflow: {page}{more}", flush=True)
    if opened and sys.stdout.isatty():
        webbrowser.open(page)
