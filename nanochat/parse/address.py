"""Addresses of files, stores and servers, resolved in one place.

    resolve("file:///my%20data/me.jsonl", FILE).path      # PosixPath("/my data/me.jsonl")
    resolve("127.0.0.1:9000", SERVER)                     # Malformed: it has no scheme: write http://127.0.0.1:9000

What an address may be depends on its use, its `Kind`, whose pattern is also in the chart's schema and in the definition
of ChatPipelines. Messages never repeat a user name or password.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import SplitResult, unquote_to_bytes, urlsplit, urlunsplit

from nanochat.parse import Malformed

LONGEST = 1024  # characters

_HOST = r"(?:\[[0-9A-Fa-f:.]+\]|[^\s/?#@:\[\]\\]+)(?::[0-9]{1,5})?"
_WEB = rf"https?://{_HOST}(?:/[^\s?#]*)?"
_BUCKET = r"(?:s3|gs|abfs)://[A-Za-z0-9][A-Za-z0-9._-]*"
_ESCAPED = "%[0-9A-Fa-f]{2}"
_PATHS = (
    rf"file:(?://(?:localhost)?)?/(?:(?:[^/?#%]|{_ESCAPED})(?:[^?#%]|{_ESCAPED})*)?"
    r"|[^\s:/\\][^:/\\]*(?:/.*)?|/.*"
)


@dataclass(frozen=True, slots=True)
class Kind:
    """A use of addresses; `words` follow "must be" in messages, `patterns` are what a whole address may match."""

    words: str
    schemes: tuple[str, ...]
    patterns: tuple[str, ...]
    paths: bool = True  # a path of this machine is one, too

    @property
    def pattern(self) -> str:
        """The pattern, for Python, Go and JavaScript alike."""
        return f"^(?:{'|'.join(self.patterns)})$"


_FILES = "a path, or file:///, https://HOST/, s3://BUCKET/, gs:// or abfs://, without a user"
FILE = Kind(
    _FILES, ("https", "http", "s3", "gs", "abfs", "file"), (rf"{_WEB}(?:\?[^\s#]*)?", rf"{_BUCKET}/[^?#]+", _PATHS)
)
BASE = Kind(
    "a folder, or file:///, https://HOST, s3://BUCKET, gs:// or abfs://, without a user",
    FILE.schemes,
    (_WEB, rf"{_BUCKET}(?:/[^?#]*)?", _PATHS),
)
IDENTITY = Kind(
    f"{_FILES}, or configmap://NAME/KEY",
    (*FILE.schemes, "configmap"),
    (*FILE.patterns, r"configmap://[a-z0-9][-.a-z0-9]*/[-._a-zA-Z0-9]+"),
)
_ANY = Kind(IDENTITY.words, IDENTITY.schemes, (*IDENTITY.patterns, *BASE.patterns))
STORE = Kind(
    "a folder, s3://bucket/prefix, gs://bucket/prefix or abfs://container/prefix",
    ("s3", "gs", "abfs", "file"),
    (rf"{_BUCKET}(?:/[^?#]*)?", _PATHS),
)
SERVER = Kind("http://host:port or https://host", ("https", "http"), (_WEB,), paths=False)
TRACKING = Kind(
    "http://host:port, https://host or sqlite:///path", ("https", "http", "sqlite"), (_WEB, r"sqlite:///.+"), False
)

_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*):")
_OTHER_NAMES = {
    **dict.fromkeys(("s3a", "s3n"), "s3"),
    **dict.fromkeys(("gcs",), "gs"),
    **dict.fromkeys(("abfss", "az", "azure", "adl", "wasb", "wasbs"), "abfs"),
}
_OBJECTS = ("s3", "gs", "abfs")


@dataclass(frozen=True, slots=True)
class Address:
    """A resolved address; `path` is the file where it is one of this machine, and None elsewhere."""

    text: str  # as it is used: its scheme in lower case
    scheme: str  # "" of a path
    path: Path | None = None

    def absolute(self) -> str:
        """The address such that it means the same from any folder."""
        return self.text if self.path is None else str(self.path.absolute())


def resolve(text: str, kind: Kind) -> Address:
    """The address in `text`; Malformed, in a sentence that says what to write, where it is none of the kind."""
    if not text:
        raise Malformed(f"it is empty, and must be {kind.words}")
    if len(text) > LONGEST:
        raise Malformed(f"it is longer than {LONGEST:,} characters")
    if text != text.strip() or any(ord(char) < 32 or ord(char) == 127 for char in text):
        raise Malformed("it holds a control character, or begins or ends with a blank")
    found = _SCHEME.match(text)
    if (found and text[found.end() :].startswith("//")) or text.lower().startswith("file:/"):
        address = _with_scheme(found[1].lower() if found else "", text, kind)
    else:
        address = _path(text, kind)
    if not re.fullmatch(kind.pattern, address.text):
        raise Malformed(f"it must be {kind.words}")
    return address


def local_path(text: str) -> Path | None:
    """The file of this machine that an address means; None for one that is elsewhere."""
    return resolve(text, _ANY).path


def absolute(text: str) -> str:
    """A path as an absolute one; addresses of other machines stay as they are."""
    return resolve(text, _ANY).absolute()


def shown(text: str) -> str:
    """An address for messages: without credentials and query."""
    try:
        parts = urlsplit(text)
    except ValueError:
        return "the address"
    if not parts.scheme or not parts.netloc:
        return text
    return urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], parts.path, "", ""))


def _path(text: str, kind: Kind) -> Address:
    """A path, or what lacks its scheme."""
    first = re.split(r"[/?#]", text, maxsplit=1)[0]
    scheme = first.partition(":")[0].lower()
    if re.match(r"[A-Za-z]:[\\/]|\\", text) and kind.paths:
        raise Malformed("it is a path of Windows: write one with /, of the system that nanochat runs on")
    if first != text and first.endswith(":") and scheme in kind.schemes:
        raise Malformed(f"it lacks a slash: it begins with {scheme}://")
    if not kind.paths or ":" in first:
        if "@" in text:
            raise Malformed(f"it has no scheme: it must be {kind.words}")
        if not re.fullmatch(r"\w[\w.-]*(?::[0-9]+)?", first):
            raise Malformed(f"it must be {kind.words}")
        other = f", or ./{text} for a file of that name" if kind.paths else ""
        raise Malformed(f"it has no scheme: write http://{text}{other}")
    try:
        return Address(text, "", Path(text).expanduser())
    except RuntimeError:
        raise Malformed("the home folder that ~ means is not known: write the whole path") from None


def _with_scheme(scheme: str, text: str, kind: Kind) -> Address:
    text = scheme + text[len(scheme) :]
    if scheme not in kind.schemes:
        proper = _OTHER_NAMES.get(scheme)
        raise Malformed(
            f"{scheme}:// is not known here: write {proper}://"
            if proper in kind.schemes
            else f"it must be {kind.words}"
        )
    try:
        parts = urlsplit(text)
        port = parts.port if scheme in ("http", "https") else None
    except ValueError:
        raise Malformed("its host or port is none: a port is a number up to 65535") from None
    if scheme == "abfs" and re.fullmatch(r"[^:@]+@[^:@]+", parts.netloc):
        account = parts.netloc.partition("@")[2]
        raise Malformed(f"write abfs://container/prefix, and the account as endpoint, https://{account}")
    if "@" in parts.netloc:
        raise Malformed("it holds a user name or password, which belong into environment variables or a Secret")
    if scheme == "file":
        return Address(text, scheme, _file(parts))
    if scheme in ("http", "https"):
        if not parts.hostname or port == 0:
            raise Malformed("its host or port is none: a port is a number up to 65535")
        if re.search(r"\s", text):
            raise Malformed("it holds a blank: write %20")
    if scheme in _OBJECTS:
        _check_object(parts, kind)
    return Address(text, scheme)


def _file(parts: SplitResult) -> Path:
    """The path of file:///path, whose escapes are resolved."""
    if parts.netloc not in ("", "localhost"):
        raise Malformed("file:// needs a whole path after it: file:///folder/file")
    if parts.query or parts.fragment or re.search(r"%(?![0-9A-Fa-f]{2})|%00", parts.path):
        raise Malformed("in a file:// address ? is written %3F, # is %23 and % is %25")
    return Path(os.fsdecode(unquote_to_bytes(parts.path)))


def _check_object(parts: SplitResult, kind: Kind) -> None:
    scheme = f"{parts.scheme}://"
    if ":" in parts.netloc:
        raise Malformed(f"{scheme} is followed by a bucket; the address of its server is the profile's endpoint")
    if parts.query or parts.fragment:
        raise Malformed(f"after {scheme} there is no ? and no #")
    key = parts.path.removeprefix("/").removesuffix("/")
    if key and any(part in ("", ".", "..") for part in key.split("/")):
        raise Malformed("its path holds an empty part, . or ..")
    if not re.fullmatch(_BUCKET, f"{scheme}{parts.netloc}"):
        raise Malformed(f"{scheme} must be followed by the name of a bucket, of letters, digits, '.', '_' and '-'")
