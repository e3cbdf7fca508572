"""HTTPS by a certificate in files: what is agreed on, what is refused, and files that are renewed."""

from __future__ import annotations

import logging
import socket
import ssl
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import httpx
import pytest
from certificates import pem, write_pair
from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from nanochat.serving import connections, server
from nanochat.serving.tls import CERTIFICATE, KEY, LARGEST_FILE, Certificate
from nanochat.spec.errors import UserError

CHAT = "/v1/chat/completions"
BODY = {"messages": [{"role": "user", "content": "Hi"}], "max_tokens": 3}


@pytest.fixture
def pair(tmp_path: Path) -> tuple[Path, Path]:
    return write_pair(tmp_path / "tls", "first")


def shown(url: str) -> str:
    """The name in the certificate that a server shows to a new connection."""
    host, port = url.removeprefix("https://").split(":")
    context = ssl._create_unverified_context()
    with socket.create_connection((host, int(port)), timeout=30) as plain, context.wrap_socket(plain) as made:
        found = x509.load_der_x509_certificate(made.getpeercert(binary_form=True) or b"")
    return str(found.subject.get_attributes_for_oid(NameOID.COMMON_NAME)[0].value)


def test_it_answers_whole_and_in_streams_and_by_https_alone(start: Callable[..., Any], pair: tuple[Path, Path]) -> None:
    url = start(certificate=Certificate(*pair)).url
    assert url.startswith("https://")
    with httpx.Client(base_url=url, verify=ssl._create_unverified_context()) as client:
        for _ in range(2):  # on one connection
            assert client.post(CHAT, json=BODY).json()["usage"]["completion_tokens"] <= 3
        assert client.post(CHAT, json={**BODY, "stream": True}).text.endswith("data: [DONE]\n\n")
        large = {"messages": [{"role": "user", "content": "a" * 200_000}]}
        assert client.post(CHAT, json=large).status_code == 400
        assert client.get("/metrics").status_code == 200
    with pytest.raises(httpx.TransportError):
        httpx.get(url.replace("https", "http") + "/livez")


def test_who_trusts_the_certificate_needs_nothing_else(start: Callable[..., Any], pair: tuple[Path, Path]) -> None:
    url = start(certificate=Certificate(*pair)).url
    trusting = ssl.create_default_context(cafile=pair[0])
    trusting.check_hostname = False
    assert httpx.get(f"{url}/livez", verify=trusting).status_code == 200
    with pytest.raises(httpx.ConnectError, match="CERTIFICATE_VERIFY_FAILED"):
        httpx.get(f"{url}/livez")
    assert httpx.get(f"{url}/livez", verify=trusting).status_code == 200


def test_renewed_files_are_taken_up(
    start: Callable[..., Any], pair: tuple[Path, Path], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """By symbolic link, as Kubernetes does it; and file by file, between which nothing fails."""
    link = tmp_path / "link"
    link.symlink_to(pair[0].parent)
    url = start(certificate=Certificate(link / "tls.crt", link / "tls.key")).url
    verify = ssl._create_unverified_context()
    with httpx.Client(base_url=url, verify=verify) as kept, caplog.at_level(logging.INFO, "nanochat.serving.tls"):
        assert kept.get("/livez").status_code == 200 and shown(url) == "first"
        write_pair(tmp_path / "second", "second")
        (tmp_path / "other").symlink_to(tmp_path / "second")
        (tmp_path / "other").rename(link)
        assert shown(url) == shown(url) == "second"
        assert [record.levelname for record in caplog.records] == ["INFO"]

        certificate, key = write_pair(tmp_path / "third", "third")
        (tmp_path / "second" / "tls.crt").write_bytes(certificate.read_bytes())
        assert shown(url) == shown(url) == "second"
        (tmp_path / "second" / "tls.key").unlink()
        assert shown(url) == "second"
        assert "the key is that of another certificate" in caplog.text and "No such file" in caplog.text
        assert [record.levelname for record in caplog.records] == ["INFO", "WARNING", "WARNING"]  # once each
        (tmp_path / "second" / "tls.key").write_bytes(key.read_bytes())
        assert shown(url) == "third"
        assert kept.get("/livez").status_code == 200  # on the connection of before


def _missing(_certificate: Path, key: Path) -> None:
    key.unlink()


def _other_key(_certificate: Path, key: Path) -> None:
    key.write_bytes(pem(ec.generate_private_key(ec.SECP256R1()), serialization.NoEncryption()))


def _password(_certificate: Path, key: Path) -> None:
    made = ec.generate_private_key(ec.SECP256R1())
    key.write_bytes(pem(made, serialization.BestAvailableEncryption(b"secret")))


def _exchanged(certificate: Path, key: Path) -> None:
    both = certificate.read_bytes(), key.read_bytes()
    key.write_bytes(both[0])
    certificate.write_bytes(both[1])


def _damaged(certificate: Path, _key: Path) -> None:
    certificate.write_text("-----BEGIN CERTIFICATE-----\nMIIB\n-----END CERTIFICATE-----\n")


def _folder(certificate: Path, _key: Path) -> None:
    certificate.unlink()
    certificate.mkdir()


def _large(certificate: Path, _key: Path) -> None:
    certificate.write_bytes(b"a" * (LARGEST_FILE + 1))


@pytest.mark.parametrize(
    "spoil, said",
    [
        (_missing, r"tls.key can't be read \(No such file or directory\); correct its name or its rights\.$"),
        (_other_key, r"tls.crt can't be used with the key .*tls.key: the key is that of another certificate\.$"),
        (_password, r"tls.key is under a password; name one with a key that needs no password\.$"),
        (_exchanged, r"tls.crt has no certificate in PEM; name one that does\.$"),
        (_damaged, r"one of the two is damaged\.$"),
        (_folder, r"tls.crt is no file of at most 1,048,576 bytes"),
        (_large, r"tls.crt is no file of at most 1,048,576 bytes"),
    ],
)
def test_files_that_cannot_be_used_are_one_sentence(
    pair: tuple[Path, Path], spoil: Callable[[Path, Path], None], said: str
) -> None:
    spoil(*pair)
    with pytest.raises(UserError, match=said):
        Certificate(*pair)


def test_both_files_are_named_or_neither(pair: tuple[Path, Path]) -> None:
    named = dict(zip((CERTIFICATE, KEY), map(str, pair), strict=True))
    assert Certificate.of(None, None, {}) is None
    assert Certificate.of(None, None, named) and Certificate.of(*pair, {}) and Certificate.of(pair[0], None, named)
    halves: list[tuple[Path | None, Path | None, Mapping[str, str]]] = [
        (pair[0], None, {}), (None, pair[1], {}), (None, None, {KEY: str(pair[1])}),
    ]  # fmt: skip
    for half in halves:
        with pytest.raises(UserError, match=r"TLS has a (key|certificate) and no (certificate|key); name both files"):
            Certificate.of(*half)


@pytest.mark.parametrize("sent", [b"", b"\x16\x03\x01", b"GET / HTTP/1.1\r\n\r\n"], ids=["nothing", "half", "no TLS"])
def test_connections_that_agree_on_nothing_give_way_and_end(
    start: Callable[..., Any], pair: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch, sent: bytes
) -> None:
    monkeypatch.setattr(server, "most_connections", lambda: 8)
    monkeypatch.setattr(connections, "HEAD_SECONDS", 5.0)
    url = start(certificate=Certificate(*pair)).url
    host, port = url.removeprefix("https://").split(":")
    held = [socket.create_connection((host, int(port)), timeout=30) for _ in range(40)]
    for each in held:
        each.sendall(sent)
    assert httpx.get(f"{url}/livez", verify=ssl._create_unverified_context(), timeout=30).status_code == 200
    for each in held:
        try:
            while each.recv(65_536):
                pass
        except ConnectionError:
            pass
        each.close()
