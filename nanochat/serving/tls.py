"""The server's certificate and its key, in two files in PEM.

    certificate = Certificate.of(None, None, os.environ)    # None where none is named; UserError: can't be used
    context = certificate.current()                         # for one more connection

Files that were renewed are taken up by the connections that come after. While they can't be used, as between the
writing of the one and that of the other, the pair before goes on to be used, and the log says so once.
"""

from __future__ import annotations

import logging
import ssl
import stat
from collections.abc import Mapping
from pathlib import Path

from nanochat.spec.errors import UserError

_log = logging.getLogger(__name__)

CERTIFICATE, KEY = "NANOCHAT_TLS_CERT", "NANOCHAT_TLS_KEY"
LARGEST_FILE = 1 << 20  # bytes


class Certificate:
    """A pair of files; see the module's docstring."""

    def __init__(self, certificate: Path, key: Path) -> None:
        self._certificate, self._key = certificate, key
        self._seen = self._look()
        self._context = self._load()

    @classmethod
    def of(cls, certificate: Path | None, key: Path | None, environment: Mapping[str, str]) -> Certificate | None:
        """The given pair, or else that of NANOCHAT_TLS_CERT and NANOCHAT_TLS_KEY; None where none is named."""
        certificate, key = (
            given or (Path(environment[name]) if environment.get(name) else None)
            for given, name in ((certificate, CERTIFICATE), (key, KEY))
        )
        if certificate and key:
            return cls(certificate, key)
        if certificate or key:
            has, lacks = ("certificate", "key") if certificate else ("key", "certificate")
            raise UserError(f"TLS has a {has} and no {lacks}; name both files (--tls-cert, --tls-key) or neither.")
        return None

    def current(self) -> ssl.SSLContext:
        """The context for one more connection, made of the files as they are now."""
        if (seen := self._look()) != self._seen:
            self._seen = seen
            try:
                self._context = self._load()
                _log.info("the certificate %s was renewed", self._certificate)
            except UserError as error:
                _log.warning("%s Until then the one before is used.", error.message)
        return self._context

    def _look(self) -> list[tuple[int, int, int] | None]:
        """Inode, size and time of change of each file; None of one that is not there."""
        found = []
        for path in (self._certificate, self._key):
            try:
                status = path.stat()
                found.append((status.st_ino, status.st_size, status.st_mtime_ns))
            except OSError:
                found.append(None)
        return found

    def _load(self) -> ssl.SSLContext:
        certificate, key = self._certificate, self._key
        if "-----BEGIN CERTIFICATE-----" not in _read(certificate):
            raise UserError(f"The file {certificate} has no certificate in PEM; name one that does.")
        text = _read(key)
        if "PRIVATE KEY-----" not in text or "ENCRYPTED" in text:
            kind = "is under a password" if "ENCRYPTED" in text else "has no private key in PEM"
            raise UserError(f"The file {key} {kind}; name one with a key that needs no password.")
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        try:
            context.load_cert_chain(certificate, key, password="")
        except (ssl.SSLError, OSError) as error:
            apart = isinstance(error, ssl.SSLError) and error.reason == "KEY_VALUES_MISMATCH"
            why = "the key is that of another certificate" if apart else "one of the two is damaged"
            raise UserError(f"The certificate {certificate} can't be used with the key {key}: {why}.") from None
        return context


def _read(path: Path) -> str:
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode) or status.st_size > LARGEST_FILE:
            most = f"{LARGEST_FILE:,} bytes"
            raise UserError(f"{path} is no file of at most {most}, as certificates and keys are; correct its name.")
        return path.read_text(encoding="latin-1")
    except OSError as error:
        raise UserError(f"The file {path} can't be read ({error.strerror}); correct its name or its rights.") from None
