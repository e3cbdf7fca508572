"""Brings the wanted model into a server that runs already: fetched, verified, loaded, and tried again until it is.

    wanted = Wanted.from_environment(os.environ)
    host = ModelHolder(wanted.reason)
    Loader(host, wanted, slots=8).start()

The controller writes the variables into the pod's template; while nothing was released, NANOCHAT_MODEL_URI is missing.
"""

from __future__ import annotations

import hashlib
import logging
import os
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

from nanochat.data.questions import read_questions
from nanochat.inference import Engine
from nanochat.model.artifact import KIND, ModelAddress, fingerprint, read_manifest
from nanochat.serving.holder import Model, ModelHolder, Served
from nanochat.serving.loading import load
from nanochat.serving.service import EngineService
from nanochat.spec.errors import NanochatError
from nanochat.storage import files
from nanochat.storage.artifacts import ROOT
from nanochat.storage.cache import Cache
from nanochat.storage.failures import Damaged
from nanochat.storage.manifest import Manifest
from nanochat.storage.opening import open_store
from nanochat.storage.store import FileRecord, Profile
from nanochat.storage.transfer import fetch_files

log = logging.getLogger(__name__)

DELAYS = (1.0, 2.0, 5.0, 10.0, 20.0, 30.0)  # seconds before each further try; the last one again and again
CACHE_BYTES = 100 << 30
NO_MODEL = (
    "no model is named to this server yet: the controller names the registry's champion within a minute of an "
    "installation, or of the release that makes a version champion"
)


@dataclass(frozen=True, slots=True)
class Wanted:
    """The model that a server is to serve."""

    uri: str
    version: str
    fingerprint: str
    name: str
    endpoint: str | None
    cache: Path

    @classmethod
    def from_environment(cls, environment: Mapping[str, str]) -> Wanted:
        """From the variables NANOCHAT_MODEL_URI, _VERSION, _FINGERPRINT and _NAME, _ENDPOINT and _CACHE."""
        return cls(
            uri=environment.get("NANOCHAT_MODEL_URI", ""),
            version=environment.get("NANOCHAT_MODEL_VERSION", ""),
            fingerprint=environment.get("NANOCHAT_MODEL_FINGERPRINT", ""),
            name=environment.get("NANOCHAT_MODEL_NAME") or "nanochat",
            endpoint=environment.get("NANOCHAT_ENDPOINT") or None,
            cache=Path(environment.get("NANOCHAT_CACHE") or "/tmp/nanochat"),
        )

    @property
    def title(self) -> str:
        """As sentences name it."""
        return f"version {self.version} of {self.name}" if self.version else self.name

    @property
    def reason(self) -> str:
        """Why it is not served when the process begins."""
        return f"loading {self.title}" if self.uri else NO_MODEL


class Loader:
    """A thread that ends when the model is served."""

    def __init__(self, host: ModelHolder, wanted: Wanted, *, slots: int, delays: Sequence[float] = DELAYS) -> None:
        self._host, self._wanted, self._slots, self._delays = host, wanted, slots, delays
        self._thread = threading.Thread(target=self._run, name="loader", daemon=True)
        self._stopping = threading.Event()

    def start(self) -> None:
        """Begin, if a model is wanted."""
        if self._wanted.uri:
            self._thread.start()

    def stop(self) -> None:
        """Try no further."""
        self._stopping.set()

    def _run(self) -> None:
        failures = 0
        while not self._stopping.is_set():
            try:
                self._host.open(self._load())
                log.info("serving %s (%s)", self._wanted.title, self._wanted.uri)
                return
            except NanochatError as error:
                why = error.message
            except Exception as error:  # a file that torch cannot take, memory that is not there: it must be told
                log.exception("loading failed")
                why = f"{type(error).__name__}: {error}"
            self._host.reason = f"{self._wanted.title} cannot be served: {why}; it is tried again"
            log.warning("%s", self._host.reason)
            self._stopping.wait(self._delays[min(failures, len(self._delays) - 1)])
            failures += 1

    def _load(self) -> Model:
        folder, found = fetch(self._wanted)
        model, tokenizer, extra = load(folder)
        service = EngineService(Engine(model, tokenizer, slots=self._slots), metrics=self._host.metrics)
        served = Served(self._wanted.name, found, self._wanted.version, read_questions(extra))
        return Model(served, service, tokenizer)


def fetch(wanted: Wanted) -> tuple[Path, str]:
    """A local folder with the model's verified files, and its fingerprint; `Damaged` or StorageError say what is wrong.

    What lies whole in the cache, with its manifest, is taken from there: the store is not asked, and need not be there.
    """
    address = ModelAddress.parse(wanted.uri)
    store = open_store(Profile(root=address.root, endpoint=wanted.endpoint), patient=False)
    cache = Cache(wanted.cache, CACHE_BYTES)
    kept = cache.folder / "manifests" / f"{hashlib.sha256(wanted.uri.encode()).hexdigest()[:32]}.json"

    def base(manifest: Manifest) -> str:
        return f"{ROOT}/{KIND}/{address.key}/{manifest.launch}"

    try:
        manifest = Manifest.from_bytes(kept.read_bytes())
        if wanted.fingerprint not in ("", fingerprint(manifest)):
            raise Damaged("the cache has another model of this address")
        return cache.fetch(store.uri(base(manifest)), manifest.files, _missing), fingerprint(manifest)
    except (OSError, Damaged):
        manifest = read_manifest(store, address, wanted=wanted.fingerprint)
    folder = fetch_files(store, cache, base(manifest), manifest.files)
    if store.local_path(base(manifest)) is None:
        kept.parent.mkdir(parents=True, exist_ok=True)
        scratch = files.temporary(kept)
        scratch.write_bytes(manifest.to_bytes())
        os.replace(scratch, kept)
    return folder, fingerprint(manifest)


def _missing(record: FileRecord, _target: Path) -> NoReturn:
    raise Damaged(f"{record.path} is not in the cache")
