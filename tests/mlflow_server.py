"""A real MLflow server for tests.

with serving(folder) as url: ...
with serving(folder, "--allowed-hosts", "mlflow.team.svc:5000") as url: ...
"""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

# As in the chart: without the processes for jobs, five that take ten seconds to start.
LEAN = {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}


@contextmanager
def serving(folder: Path, *options: str, port: int = 0) -> Iterator[str]:
    """Run one with its database and artifacts in `folder`; yields its address."""
    port = port or free_port()
    url = f"http://127.0.0.1:{port}"
    command = [
        sys.executable, "-W", "ignore", "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port),
        "--workers", "1", "--backend-store-uri", f"sqlite:///{folder}/mlflow.db",
        "--artifacts-destination", str(folder / "artifacts"), *options,
    ]  # fmt: skip
    with (folder / "mlflow.out").open("ab") as out:
        # It starts further processes, which end with its group.
        process = subprocess.Popen(command, stdout=out, stderr=out, env=os.environ | LEAN, start_new_session=True)
    try:
        deadline = time.monotonic() + 600  # a busy machine takes its time
        while not _answers(f"{url}/health"):
            assert process.poll() is None and time.monotonic() < deadline, (folder / "mlflow.out").read_text()
            time.sleep(0.1)
        yield url
    finally:
        os.killpg(process.pid, 9)
        process.wait()


def _answers(url: str) -> bool:
    try:
        urllib.request.urlopen(url, timeout=5).close()
    except (OSError, urllib.error.URLError):
        return False
    return True


def free_port() -> int:
    """A port that nothing listens on."""
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        return server.getsockname()[1]
