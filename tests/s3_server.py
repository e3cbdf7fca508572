"""A real S3 server for tests: versitygw where its program is found, else moto's server, which checks no credentials."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from store_servers import BUCKET, StoreServer, free_port

CREDENTIALS = {
    "AWS_ACCESS_KEY_ID": "storage-test-user",
    "AWS_SECRET_ACCESS_KEY": "storage-test-secret",
    "AWS_CONFIG_FILE": os.devnull,
    "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
    "AWS_EC2_METADATA_DISABLED": "true",
}


class S3Server(StoreServer):
    """versitygw or moto's server."""

    scheme = "s3"

    @classmethod
    @contextmanager
    def start(cls, folder: Path) -> Iterator[S3Server]:
        port, program, data = free_port(), versitygw(folder), folder / "data"
        (data / BUCKET).mkdir(parents=True)
        if program:
            command = [program, "--port", f"127.0.0.1:{port}", "posix", str(data)]
        else:
            pytest.importorskip("moto.server", reason="neither versitygw nor moto's server is installed")
            command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
        server = cls(command, f"http://127.0.0.1:{port}", CREDENTIALS, persistent=program is not None)
        names = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY")
        server.refused = [{name: "not-to-be-seen"} for name in names] if program else []
        server.secrets = ["not-to-be-seen", *(CREDENTIALS[name] for name in names)]
        server.settings = {
            "ROOT_ACCESS_KEY": CREDENTIALS["AWS_ACCESS_KEY_ID"],
            "ROOT_SECRET_KEY": CREDENTIALS["AWS_SECRET_ACCESS_KEY"],
        }
        with server.running():
            yield server

    def make_bucket(self) -> None:
        if not self.persistent:  # moto checks no credentials, so that anybody can make the bucket
            urllib.request.urlopen(
                urllib.request.Request(f"{self.endpoint}/{BUCKET}", method="PUT"), timeout=10
            ).close()


def versitygw(folder: Path) -> str | None:
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
    if not program.exists():
        subprocess.run([zstd, "-q", "-d", str(packed), "-o", str(program)], check=True)
        program.chmod(0o755)
    return str(program)
