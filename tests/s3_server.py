"""A real S3 server for tests: versitygw where its program is found, else moto's server.

with S3Server.start(folder) as server:
    server.endpoint, server.environment      # where it is, and the variables that a client needs
    server.pause(); server.resume()          # it hangs, and goes on
    server.kill(); server.restart()          # it is gone, and back with what it held (versitygw)
"""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

BUCKET = "bucket"
CREDENTIALS = {
    "AWS_ACCESS_KEY_ID": "storage-test-user",
    "AWS_SECRET_ACCESS_KEY": "storage-test-secret",
    "AWS_CONFIG_FILE": os.devnull,
    "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
    "AWS_EC2_METADATA_DISABLED": "true",
}


@dataclass
class S3Server:
    """A running server that has the bucket."""

    command: list[str]
    endpoint: str
    data: Path  # where versitygw keeps its buckets
    persistent: bool  # whether a restart keeps what it holds
    process: subprocess.Popen[bytes] | None = None

    @classmethod
    @contextmanager
    def start(cls, folder: Path) -> Iterator[S3Server]:
        """Start one with its data in `folder`; skips where neither program is there."""
        port, program, data = _free_port(), _versitygw(folder), folder / "data"
        (data / BUCKET).mkdir(parents=True)
        if program:
            command = [program, "--port", f"127.0.0.1:{port}", "posix", str(data)]
        else:
            pytest.importorskip("moto.server", reason="neither versitygw nor moto's server is installed")
            command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
        server = cls(command, f"http://127.0.0.1:{port}", data, persistent=program is not None)
        try:
            server.restart()
            if program is None:
                # Moto checks no credentials, so that anybody can make the bucket.
                request = urllib.request.Request(f"{server.endpoint}/{BUCKET}", method="PUT")
                urllib.request.urlopen(request, timeout=10).close()
            yield server
        finally:
            server.kill()

    @property
    def environment(self) -> dict[str, str]:
        """This process's environment with the server's credentials, and none of this machine's."""
        return {name: value for name, value in os.environ.items() if not name.startswith("AWS_")} | CREDENTIALS

    def restart(self) -> None:
        """Start it and wait until it answers."""
        keys = {
            "ROOT_ACCESS_KEY": CREDENTIALS["AWS_ACCESS_KEY_ID"],
            "ROOT_SECRET_KEY": CREDENTIALS["AWS_SECRET_ACCESS_KEY"],
        }
        self.process = subprocess.Popen(
            self.command, env=os.environ | keys, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline:
            assert self.process.poll() is None, "the S3 server ended"
            try:
                urllib.request.urlopen(self.endpoint, timeout=5).close()
                return
            except urllib.error.HTTPError as error:
                error.close()
                return
            except OSError:
                time.sleep(0.05)
        raise TimeoutError(self.endpoint)

    def kill(self) -> None:
        """End it at once."""
        if self.process is not None:
            self.process.kill()
            self.process.wait(timeout=20)

    def pause(self) -> None:
        """Let it take connections and answer none."""
        assert self.process is not None
        self.process.send_signal(signal.SIGSTOP)

    def resume(self) -> None:
        """Let it answer again."""
        assert self.process is not None
        self.process.send_signal(signal.SIGCONT)


def _versitygw(folder: Path) -> str | None:
    """The program on PATH, or unpacked from $NANOCHAT_TOOLS or the folder of tools beside the checkout."""
    found = shutil.which("versitygw")
    if found:
        return found
    beside = Path(__file__).resolve().parents[1] / ".." / "shared" / "cluster" / "bin"
    packed = Path(os.environ.get("NANOCHAT_TOOLS", beside)) / "versitygw.zst"
    zstd = shutil.which("zstd")
    if not packed.exists() or zstd is None:
        return None
    program = folder / "versitygw"
    subprocess.run([zstd, "-q", "-d", str(packed), "-o", str(program)], check=True)
    program.chmod(0o755)
    return str(program)


def _free_port() -> int:
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        return server.getsockname()[1]
