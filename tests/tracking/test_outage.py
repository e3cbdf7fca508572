"""MLflow away for two hours in the midst of training: training never waits for it, and the curve is whole afterwards.

A gate stands before a real server. While it is shut it refuses connections, or never answers, or answers that it is
unwell; or the server's own disk is full. The training loop is the real one, and its clock is the test's: what it
measures in the outage is two hours of steps. No times are compared: the gate opens only when training is over.
"""

from __future__ import annotations

import http.client
import math
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import psutil
import pytest
from mlflow_server import serving

from nanochat.storage import Store
from nanochat.tracking.background import Ticker
from nanochat.tracking.client import connect
from nanochat.tracking.journal import Journal
from nanochat.tracking.mlflow import EXPERIMENT, Projection, TrackedRun, TrackedStage, find_run
from tests.training.rig import Rig

pytestmark = pytest.mark.filterwarnings(
    "ignore::Warning:mlflow", "ignore::DeprecationWarning", "ignore::ResourceWarning", "ignore::UserWarning"
)
FOLDER = "runs/default.demo/outage"
STEPS, EVERY = 24, 300.0  # steps of five minutes: two hours
RUN = TrackedRun(
    name="default.demo-outage", uid="outage", status="running", started=1000.0,
    stages=(TrackedStage(name="base", status="running", started=1000.0),),
)  # fmt: skip


class Gate:
    """A proxy of one server that can be shut in three ways; `asked` tells that somebody stood before it then."""

    def __init__(self, target: str) -> None:
        self.shut = ""
        self.opened, self.asked = threading.Event(), threading.Event()
        gate, address = self, urlsplit(target).netloc

        class Handler(BaseHTTPRequestHandler):
            def handle_one_request(self) -> None:
                if gate.shut == "stopped":
                    gate.asked.set()
                    self.close_connection = True
                    return
                super().handle_one_request()

            def answer(self) -> None:
                if gate.shut:
                    gate.asked.set()
                    if gate.shut == "slow":
                        gate.opened.wait()
                    else:
                        self.send_error(503)
                        return
                body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
                server = http.client.HTTPConnection(address)
                headers = {name: value for name, value in self.headers.items() if name.lower() != "host"}
                server.request(self.command, self.path, body, headers)
                response = server.getresponse()
                content = response.read()
                self.send_response(response.status)
                self.send_header("Content-Type", response.headers.get("Content-Type", ""))
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                self.wfile.write(content)

            do_GET = do_POST = do_PUT = do_PATCH = answer

            def log_message(self, format: str, *args: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def open(self) -> None:
        self.shut = ""
        self.opened.set()

    def close(self) -> None:
        self.open()
        self._server.shutdown()
        self._server.server_close()


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with serving(tmp_path_factory.mktemp("server")) as url:
        yield url


@contextmanager
def full_disk(server: str) -> Iterator[None]:
    """The processes of the server at this address may write no file any further."""
    port = urlsplit(server).port
    found = [p for p in psutil.process_iter(["cmdline"]) if str(port) in (p.info["cmdline"] or [])]
    processes = {process for each in found for process in (each, *each.children(recursive=True))}
    assert processes
    before = {process: process.rlimit(psutil.RLIMIT_FSIZE) for process in processes}
    for process, (_, hard) in before.items():
        process.rlimit(psutil.RLIMIT_FSIZE, (0, hard))
    try:
        yield
    finally:
        for process, limits in before.items():
            process.rlimit(psutil.RLIMIT_FSIZE, limits)


@pytest.mark.parametrize("how", ["stopped", "slow", "refusing", "full"])
def test_an_outage_of_two_hours_delays_no_step_and_loses_no_point(
    how: str, server: str, store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "2")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    gate, experiment = Gate(server), f"{EXPERIMENT}-{how}"
    projection = Projection(store, gate.url, experiment=experiment)
    tellers: set[int] = set()
    failed = threading.Event()

    def tell() -> None:
        tellers.add(threading.get_ident())
        if not projection.sync(FOLDER, RUN):
            failed.set()

    clock = iter(1000.0 + EVERY * number for number in range(10_000))
    rig = Rig(tmp_path, steps=STEPS)
    trainer = rig.loop()
    trainer.journal.close()
    trainer.journal = Journal(store, FOLDER, stage="base", launch="01-a", interval=0.01, clock=lambda: next(clock))
    assert projection.sync(FOLDER, RUN), projection.trouble
    ticker = Ticker("mlflow", tell, lambda: 0.01)
    disk = full_disk(server) if how == "full" else None
    if disk is not None:
        disk.__enter__()
    else:
        gate.shut = how
    trained = trainer.run()  # it comes to its end though MLflow answers nobody
    trainer.journal.close()
    assert trained.step == STEPS
    assert (failed if how == "full" else gate.asked).wait(120), "MLflow was asked, and did not answer"
    assert threading.get_ident() not in tellers, "what trains never talks to MLflow"
    if disk is not None:
        disk.__exit__(None, None, None)
    gate.open()
    assert ticker.close(120)
    if not projection.sync(FOLDER, RUN):
        pytest.fail(projection.trouble)
    client: Any = connect(server)
    found = find_run(client, client.get_experiment_by_name(experiment).experiment_id, "outage", "base")
    assert found is not None
    curve = client.get_metric_history(found.info.run_id, "train/loss")
    assert sorted(point.step for point in curve) == list(range(1, STEPS + 1)), "each point is there once"
    assert all(math.isfinite(point.value) for point in curve)
    assert max(point.timestamp for point in curve) - min(point.timestamp for point in curve) >= 1000 * EVERY * (
        STEPS - 1
    )
    gate.close()
