"""Access without the account's key: workload identity, whose tokens come from the cloud, and tokens of a container."""

from __future__ import annotations

import base64
import datetime
import ipaddress
import json
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from urllib.parse import parse_qs

import pytest
from azure.storage.blob import ContainerSasPermissions, generate_container_sas
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import rsa
from store_servers import BUCKET, AzureServer, GcsServer, Service, StoreServer

from nanochat.storage import open_store

Answer = Callable[[str, bytes], tuple[int, dict[str, object] | str]]


@contextmanager
def service(answer: Answer, context: ssl.SSLContext | None = None) -> Iterator[int]:
    """A server with an answer to each path and body; yields its port."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            status, said = answer(self.path, self.rfile.read(int(self.headers.get("Content-Length", 0))))
            body = (said if isinstance(said, str) else json.dumps(said)).encode()
            self.send_response(status)
            self.send_header("Metadata-Flavor", "Google")
            self.send_header("Content-Type", "application/text" if isinstance(said, str) else "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        do_POST = do_GET

        def log_message(self, *_: object) -> None: ...

    server = Service(("127.0.0.1", 0), Handler)
    if context:
        server.socket = context.wrap_socket(server.socket, server_side=True)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    try:
        yield server.server_port
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def check(server: StoreServer, **environment: str) -> subprocess.CompletedProcess[str]:
    """Try a store there without the server's credentials, in a process of its own: libraries read variables once."""
    program = "import sys; from nanochat.storage import *; open_store(Profile(sys.argv[1], sys.argv[2])).check()"
    profile = server.profile("identity")
    kept = {name: value for name, value in server.environment.items() if name not in server.credentials}
    command = [sys.executable, "-c", program, profile.root, str(profile.endpoint)]
    return subprocess.run(command, env=kept | environment, capture_output=True, text=True, timeout=120, check=False)


def test_a_pod_on_gke(gcs_server: GcsServer, tmp_path: Path) -> None:
    asked = []

    def metadata(path: str, _body: bytes) -> tuple[int, dict[str, object] | str]:
        asked.append(path)
        if "/token" in path:
            return 200, {"access_token": "token", "expires_in": 3600, "token_type": "Bearer"}
        return 200, "project" if "project" in path else {"email": "trainer@project", "scopes": ["scope"]}

    with service(metadata) as port:
        names = ("GCE_METADATA_HOST", "GCE_METADATA_IP", "GCE_METADATA_ROOT")
        done = check(gcs_server, HOME=str(tmp_path), **dict.fromkeys(names, f"127.0.0.1:{port}"))
    assert done.returncode == 0, done.stderr
    assert any("/token" in path for path in asked)


@pytest.fixture
def certificate(tmp_path: Path) -> Path:
    """A file with a certificate of 127.0.0.1 that vouches for itself, and its key."""
    key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "test")])
    now = datetime.datetime.now(datetime.UTC)
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    pem = serialization.Encoding.PEM
    secret = key.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    path = tmp_path / "certificate.pem"
    path.write_bytes(made.public_bytes(pem) + secret)
    return path


def token(audience: str) -> str:
    """A token as Entra ID's, without a signature."""
    now = int(time.time())
    claims = {"aud": audience, "iss": "https://sts.windows.net/tenant/", "iat": now, "nbf": now - 60, "exp": now + 3600}
    parts = [json.dumps(part).encode() for part in ({"alg": "none", "typ": "JWT"}, claims)]
    return ".".join([*(base64.urlsafe_b64encode(part).decode().rstrip("=") for part in parts), "none"])


def test_a_pod_on_aks(certificate: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The token of the pod's service account is exchanged for one of Azure's."""
    (tmp_path / "federated").write_text("the pod's own token")

    def exchange(path: str, body: bytes) -> tuple[int, dict[str, object] | str]:
        form = parse_qs(body.decode())
        if path != "/tenant/oauth2/v2.0/token" or form["client_assertion"] != ["the pod's own token"]:
            return 400, {"error": "invalid_client"}
        assert form["client_id"] == ["trainer"] and form["scope"] == ["https://storage.azure.com/.default"]
        return 200, {"access_token": token("https://storage.azure.com"), "expires_in": 3600, "token_type": "Bearer"}

    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)
    for name in ("SSL_CERT_FILE", "REQUESTS_CA_BUNDLE"):
        monkeypatch.setenv(name, str(certificate))
    with AzureServer.start(tmp_path, certificate) as server, service(exchange, context) as port:
        identity = {
            "AZURE_TENANT_ID": "tenant",
            "AZURE_CLIENT_ID": "trainer",
            "AZURE_FEDERATED_TOKEN_FILE": str(tmp_path / "federated"),
            "AZURE_AUTHORITY_HOST": f"https://127.0.0.1:{port}",
        }
        done = check(server, **identity)
        assert done.returncode == 0, done.stderr
        (tmp_path / "federated").write_text("another pod's token")
        refused = check(server, **identity)
        assert "UserError: there are no credentials for abfs://bucket/identity" in refused.stderr
        assert "token" not in refused.stderr.splitlines()[-1]


def test_a_token_of_the_container_alone(
    azure_server: AzureServer, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    token = generate_container_sas(
        "account",
        BUCKET,
        azure_server.credentials["AZURE_STORAGE_ACCOUNT_KEY"],
        permission=ContainerSasPermissions.from_string("racwdl"),
        expiry=datetime.datetime.now(datetime.UTC) + datetime.timedelta(hours=1),
    )
    monkeypatch.setenv("AZURE_STORAGE_SAS_TOKEN", token)
    store = open_store(azure_server.profile("token"))
    assert not store.list() and not store.children() and store.size("x") is None
    store.check()
    (tmp_path / "local").write_bytes(b"content")
    store.download(store.upload(tmp_path / "local", "x"), tmp_path / "back")
    assert (tmp_path / "back").read_bytes() == b"content"
