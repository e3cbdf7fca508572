"""Manifests, which are created last: the files of an artifact or a checkpoint. A folder without one does not exist."""

from __future__ import annotations

import hashlib
import json
import re
import threading
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from typing import Annotated, Any

from pydantic import AfterValidator

from nanochat.parse.json_text import read_json
from nanochat.storage.failures import Damaged
from nanochat.storage.store import FileRecord, check_path

VERSION = 1
LARGEST = 1 << 20  # bytes; a manifest of 5,000 files is about that

_SMALL = 64 << 10  # bytes; of larger ones a process reads one at a time, for read they take a hundred times as much
_LARGE = threading.Lock()
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,199}")
_DIGEST = re.compile(r"[0-9a-f]{64}")


def check_name(name: str) -> str:
    """A kind, key or launch: one path segment of letters, digits, '.', '_' and '-'."""
    if not _NAME.fullmatch(name):
        raise ValueError(f"not a name that storage can use: {name!r}")
    return name


Name = Annotated[str, AfterValidator(check_name)]


@dataclass(frozen=True, slots=True)
class Manifest:
    """The files of one launch's output with how it was made.

    `recipe` is the key's full recipe, `inputs` the keys of what it was made from by name, `created` seconds
    since 1970. Paths of files are relative to the launch's folder.
    """

    kind: str
    key: str
    launch: str
    recipe: dict[str, Any]
    inputs: dict[str, str]
    files: tuple[FileRecord, ...]
    metadata: dict[str, Any]
    created: float

    @property
    def size(self) -> int:
        """Bytes of all files."""
        return sum(record.size for record in self.files)

    def to_bytes(self) -> bytes:
        """As JSON with a checksum over its own content. ValueError where that cannot be written as JSON."""
        body = {"version": VERSION, **asdict(self)}
        body["checksum"] = _checksum(body)
        return (json.dumps(body, indent=1, sort_keys=True, allow_nan=False) + "\n").encode()

    @classmethod
    def from_bytes(cls, data: bytes) -> Manifest:
        """The manifest in `data`; `Damaged` where it is not exactly what `to_bytes` wrote."""
        with _LARGE if len(data) > _SMALL else nullcontext():
            try:
                return cls._from_bytes(data)
            except Damaged as damage:
                problem = damage.message
        raise Damaged(problem)  # without the frames of the other, which hold all that was read

    @classmethod
    def _from_bytes(cls, data: bytes) -> Manifest:
        try:
            body = read_json(data, limit=LARGEST)
            if not isinstance(body, dict):
                raise Damaged("it is not a JSON object")
            claimed = body.pop("checksum", None)
            if claimed != _checksum(body):
                raise Damaged("its checksum does not match its content")
            if body.pop("version", None) != VERSION:
                raise Damaged("it was written by another version of nanochat")
            manifest = cls(**{**body, "files": tuple(FileRecord(**record) for record in body["files"])})
            manifest._check()
        except (ValueError, TypeError, KeyError) as error:
            raise Damaged("it is not a manifest") from error
        return manifest

    def _check(self) -> None:
        """A checksum guards against accidents; paths that leave the folder are refused whoever wrote them."""
        for name in (self.kind, self.key, self.launch):
            check_name(name)
        for record in self.files:
            check_path(record.path)
            if type(record.size) is not int or record.size < 0 or not _DIGEST.fullmatch(record.sha256):
                raise ValueError(record.path)
        if len({record.path for record in self.files}) != len(self.files):
            raise ValueError("a file is named twice")
        if not all(isinstance(part, dict) for part in (self.recipe, self.inputs, self.metadata)):
            raise TypeError("recipe, inputs and metadata are objects")
        if not all(isinstance(key, str) for key in self.inputs.values()):
            raise TypeError("inputs are keys")
        if type(self.created) not in (int, float):
            raise TypeError("created is a time")


def _checksum(body: dict[str, Any]) -> str:
    text = json.dumps(body, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()
