"""A model artifact as the registry names it: its address, its manifest, and the fingerprint of what is served.

address = ModelAddress.parse("s3://bucket/nanochat/artifacts/model/4f0c.../01-ab12cd34")
manifest = read_manifest(open_store(Profile(root=address.root)), address)
fingerprint(manifest)        # "90ce5fcc1fdd0a4b"
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nanochat.model.sizes import ModelConfig
from nanochat.spec.errors import StorageError, UserError
from nanochat.storage.artifacts import MANIFEST, ROOT
from nanochat.storage.failures import Damaged
from nanochat.storage.manifest import LARGEST, Manifest, check_name
from nanochat.storage.store import Entry, Store
from nanochat.storage.transfer import check_contents, check_sizes

KIND = "model"
WEIGHTS = "model.safetensors"
CONFIG = "config.json"
TOKENIZER = "tokenizer.json"
IMPORTED = "imported"  # stands for the stage of a model that no stage made
MADE_OF = "models"  # metadata of what was made of models: the fingerprint of each, by its reference
SERVED = (CONFIG, WEIGHTS, TOKENIZER)  # the files that decide what the model says


@dataclass(frozen=True, slots=True)
class ModelAddress:
    """Where a model artifact is: its store's root, its key, and the launch that made it ('': whichever did)."""

    root: str
    key: str
    launch: str = ""

    @classmethod
    def parse(cls, uri: str) -> ModelAddress:
        """From the address of the artifact's folder or of a launch in it; UserError where it is neither."""
        root, mark, rest = uri.rpartition(f"/{ROOT}/{KIND}/")
        key, _, launch = rest.partition("/")
        try:
            if not mark or not root:
                raise ValueError(uri)
            return cls(root, check_name(key), check_name(launch) if launch else "")
        except ValueError:
            raise UserError(f"'{uri}' is not a model's address: it ends in {ROOT}/{KIND}/<key>[/<launch>]") from None


def read_config(folder: Path) -> ModelConfig:
    """The shape of the model in a folder."""
    try:
        return ModelConfig.from_dict(read_values(folder))
    except (ValueError, TypeError) as error:
        raise StorageError(f"{folder / CONFIG} cannot be read: {error}") from None


def read_values(folder: Path) -> dict[str, Any]:
    """All that the configuration in a folder says: the shape, and what the stage that made the model adds."""
    try:
        return json.loads((folder / CONFIG).read_text())
    except (OSError, ValueError) as error:
        raise StorageError(f"{folder / CONFIG} cannot be read: {error}") from None


def read_manifest(
    store: Store, address: ModelAddress, *, wanted: str = "", hashed: dict[Entry, str] | None = None
) -> Manifest:
    """The manifest of a model whose files are all there in their sizes; `Damaged` says what is wrong.

    With the fingerprint `wanted` it is that model, whichever launch made it. Without one nothing tells whether another
    launch than the address names made the same. Given `hashed`, which keeps what was found, files that were written
    after the manifest are read.
    """
    base = f"{ROOT}/{KIND}/{address.key}"
    try:
        manifest = Manifest.from_bytes(store.read(f"{base}/{MANIFEST}", LARGEST))
    except FileNotFoundError:
        raise Damaged(f"there is no model at {store.uri(base)}: it has no {MANIFEST}") from None
    except Damaged as damage:
        raise Damaged(f"the manifest of {store.uri(base)} is damaged: {damage}") from None
    if (manifest.kind, manifest.key) != (KIND, address.key):
        raise Damaged(f"the manifest of {store.uri(base)} belongs to another artifact")
    if missing := set(SERVED) - {record.path for record in manifest.files}:
        raise Damaged(f"{store.uri(base)} holds no {', '.join(sorted(missing))}")
    if not wanted and address.launch not in ("", manifest.launch):
        raise Damaged(
            f"the model at {store.uri(base)} was made anew, by {manifest.launch} after {address.launch}, "
            "and nothing tells whether it is the same"
        )
    if wanted and (found := fingerprint(manifest)) != wanted:
        raise Damaged(f"{store.uri(base)} holds another model now: its fingerprint is {found} instead of {wanted}")
    try:
        check_sizes(store, f"{base}/{manifest.launch}", manifest.files)
        if hashed is not None:
            check_contents(store, base, manifest, hashed)
    except Damaged as damage:
        raise Damaged(f"the model at {store.uri(base)} is damaged: {damage}") from None
    return manifest


def fingerprint(manifest: Manifest) -> str:
    """Sixteen hexadecimal digits that name what a model says: weights, configuration and tokenizer."""
    return combined({record.path: record.sha256 for record in manifest.files})


def combined(digests: Mapping[str, str]) -> str:
    """The fingerprint of a model whose files have these SHA-256 sums; one that lacks a file has another than all."""
    lines = "".join(f"{digests.get(name, '')}  {name}\n" for name in SERVED)  # as sha256sum writes them
    return hashlib.sha256(lines.encode()).hexdigest()[:16]


def missing_weights(uri: str, open_root: Callable[[str], Store], *, wanted: str = "") -> str:
    """Why the model at an address, with the fingerprint `wanted`, cannot be used, '' where it can; `open_root` opens
    the store with that root."""
    try:
        address = ModelAddress.parse(uri)
        read_manifest(open_root(address.root), address, wanted=wanted, hashed={})
    except (UserError, Damaged) as error:
        return error.message
    return ""
