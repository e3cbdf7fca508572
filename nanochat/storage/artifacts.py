"""Artifacts of stages, by kind and key, each with a manifest that is created last and only if absent.

    artifacts = Artifacts(store, cache_folder, cache_bytes=20 << 30)
    if artifacts.find("model", key) is None:
        with artifacts.writer("model", key, launch) as writer:
            save(writer.folder)
            manifest = writer.commit(recipe=recipe, inputs=inputs, metadata={})
    folder = artifacts.fetch(manifest)     # every file verified

    artifacts/<kind>/<key>/<launch>/...                     what one launch wrote
    artifacts/<kind>/<key>/manifest.json                    names the launch that won
    artifacts/<kind>/<key>/manifest.json.damaged-<digest>   one that was found damaged and set aside

Of several writers of one key one wins, and `commit` returns its manifest to all; the others remove what they
wrote. A damaged artifact counts as absent, so that the stage that makes it is run again.
"""

from __future__ import annotations

import hashlib
import logging
import time
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import Any

from nanochat.spec.errors import NanochatError, StorageError
from nanochat.storage import files
from nanochat.storage.cache import Cache
from nanochat.storage.explain import Near, nearest
from nanochat.storage.failures import Damaged, is_disk_full, to_user_error, translate_errors
from nanochat.storage.manifest import LARGEST, Manifest, check_name
from nanochat.storage.store import Entry, FileRecord, Store
from nanochat.storage.transfer import check_contents, check_sizes, fetch_files, store_folder

log = logging.getLogger(__name__)

Recent = Callable[[str], Sequence[Manifest]]  # kind -> its newest manifests

ROOT = "artifacts"
MANIFEST = "manifest.json"
RECENT = 100  # manifests that are looked at to explain a miss,
SMALL = 1 << 20  # of at most so many bytes
AT_ONCE = 16  # requests under way at once where many artifacts are looked up


class Artifacts:
    """The artifacts of a store, with the local cache through which remote ones are read."""

    def __init__(self, store: Store, cache_folder: Path, cache_bytes: int = 100 << 30) -> None:
        self.store = store
        self.cache = Cache(cache_folder, cache_bytes)

    def folder(self, kind: str, key: str) -> str:
        """The path of an artifact in the store."""
        return f"{ROOT}/{check_name(kind)}/{check_name(key)}"

    def uri(self, manifest: Manifest) -> str:
        """The address of the winning launch's files."""
        return self.store.uri(f"{self.folder(manifest.kind, manifest.key)}/{manifest.launch}")

    def find(self, kind: str, key: str, *, mend: bool = False) -> Manifest | None:
        """The manifest, if the artifact is whole: all files there in the right sizes. Damage is warned of.

        To `mend` is to read what was written after the manifest too, and to set aside what is damaged.
        """
        try:
            manifest = self._inspect(kind, key)
            if mend and manifest is not None:
                check_contents(self.store, self.folder(kind, key), manifest, {})
            return manifest
        except Damaged as damage:
            done = "set aside" if mend else "passed over"
            log.warning("%s is %s: %s", self.store.uri(self.folder(kind, key)), done, damage)
            if mend:
                self._set_aside(kind, key)
            return None

    def find_all(self, wanted: Iterable[tuple[str, str]]) -> dict[tuple[str, str], Manifest]:
        """The manifests that exist of many (kind, key), looked up side by side."""
        pairs = list(dict.fromkeys(wanted))
        with ThreadPoolExecutor(AT_ONCE) as pool:
            found = pool.map(lambda pair: self.find(*pair), pairs)
            return {pair: manifest for pair, manifest in zip(pairs, found, strict=True) if manifest is not None}

    def survey(self, wanted: Iterable[tuple[str, str]], *, since: float = 0.0) -> Mapping[tuple[str, str], Manifest]:
        """The manifests of those that exist of many (kind, key). What is shared may remember them from after `since`,
        and may leave out of a manifest what a pipeline's status does not tell and no fingerprint counts."""
        return self.find_all(wanted)

    def damaged(self, kind: str, key: str) -> tuple[str, ...]:
        """Damage, found now or before and set aside, one sentence each; () where all is well."""
        base = self.folder(kind, key)
        aside = [name for name in self.store.children(base) if name.startswith(f"{MANIFEST}.damaged-")]
        sentences = [f"{self.store.uri(base)} was damaged and set aside as {name}" for name in aside]
        try:
            self._inspect(kind, key)
        except Damaged as damage:
            sentences.append(f"{self.store.uri(base)} is damaged: {damage}")
        return tuple(sentences)

    def damage(self, wanted: Iterable[tuple[str, str]]) -> dict[tuple[str, str], tuple[str, ...]]:
        """The damage of those of many (kind, key) that have some; only where anything lies it is looked for."""
        pairs = list(dict.fromkeys(wanted))
        keys = {kind: self._keys(kind) for kind in {kind for kind, _ in pairs}}
        lying = [(kind, key) for kind, key in pairs if key in keys[kind]]
        with ThreadPoolExecutor(AT_ONCE) as pool:
            found = zip(lying, pool.map(lambda pair: self.damaged(*pair), lying), strict=True)
            return {pair: sentences for pair, sentences in found if sentences}

    def list(self, kind: str) -> Iterator[Manifest]:
        """All readable manifests of a kind, whatever the state of their files; damaged ones are warned of."""
        for key in self.store.children(f"{ROOT}/{check_name(kind)}"):
            try:
                manifest = self._read(kind, key)[0]
            except Damaged as damage:
                log.warning("%s is passed over: %s", self.store.uri(self.folder(kind, key)), damage)
                continue
            if manifest is not None:
                yield manifest

    def recent(self, kind: str, most: int = RECENT) -> Sequence[Manifest]:
        """The newest readable manifests of a kind; very large ones are left out."""
        entries = [
            entry
            for entry in self.store.list(f"{ROOT}/{check_name(kind)}")
            if entry.path.count("/") == 3 and entry.path.endswith(f"/{MANIFEST}") and entry.size <= SMALL
        ]
        entries.sort(key=lambda entry: entry.modified, reverse=True)

        def read(entry: Entry) -> Manifest | None:
            try:
                return Manifest.from_bytes(self.store.read(entry.path, SMALL))
            except (Damaged, FileNotFoundError):
                return None  # who looks for this very artifact is warned

        with ThreadPoolExecutor(AT_ONCE) as pool:
            return [manifest for manifest in pool.map(read, entries[:most]) if manifest is not None]

    def closest(
        self,
        kind: str,
        recipe: Mapping[str, Any],
        inputs: Mapping[str, str],
        *,
        name: str | None = None,
        recent: Recent | None = None,
    ) -> Near | None:
        """Of the newest artifacts of a kind, and of a `name`, the one most like what is wanted, and how it differs.
        `recent` may be given where it remembers its answers."""
        found = (recent or self.recent)(kind)
        return nearest((m for m in found if name is None or m.recipe.get("name") == name), recipe, inputs)

    def writer(self, kind: str, key: str, launch: str) -> Writer:
        """A context in which one launch writes an artifact; what is not committed is removed at its end."""
        return Writer(self, kind, key, launch)

    def fetch(self, manifest: Manifest, names: Iterable[str] | None = None) -> Path:
        """A local folder that holds the files (all, or those named), each verified.

        A damaged file makes the whole artifact damaged: it is set aside and StorageError says so. Files of a
        remote store stay in the cache until `release` or the end of the process.
        """
        base = f"{self.folder(manifest.kind, manifest.key)}/{manifest.launch}"
        records = _named(manifest, names)
        try:
            return fetch_files(self.store, self.cache, base, records)
        except Damaged as damage:
            self._set_aside(manifest.kind, manifest.key, manifest.to_bytes())
            raise StorageError(
                f"{self.uri(manifest)} is damaged ({damage}): it was set aside, so run again to make it anew"
            ) from damage

    def release(self, manifest: Manifest) -> None:
        """Let the cache drop a fetched artifact when it needs room."""
        base = f"{self.folder(manifest.kind, manifest.key)}/{manifest.launch}"
        if self.store.local_path(base) is None:
            self.cache.release(self.store.uri(base))

    def remove(self, kind: str, key: str) -> None:
        """Delete an artifact: its manifest first, so that no reader meets half of it."""
        base = self.folder(kind, key)
        self.store.delete(f"{base}/{MANIFEST}")
        self.store.delete(base)

    def _keys(self, kind: str, since: float = 0.0) -> frozenset[str]:
        """The keys of a kind that anything lies under; `since` as in `survey`."""
        return frozenset(self.store.children(f"{ROOT}/{check_name(kind)}"))

    def _read(self, kind: str, key: str) -> tuple[Manifest | None, bytes]:
        """The manifest as it lies there, and its bytes."""
        try:
            data = self.store.read(f"{self.folder(kind, key)}/{MANIFEST}", LARGEST)
        except FileNotFoundError:
            return None, b""
        manifest = Manifest.from_bytes(data)
        if (manifest.kind, manifest.key) != (kind, key):
            raise Damaged("it belongs to another artifact")
        return manifest, data

    def _inspect(self, kind: str, key: str) -> Manifest | None:
        """None where there is no manifest, `Damaged` where it or a file's size is not right."""
        manifest, _ = self._read(kind, key)
        if manifest is not None:
            check_sizes(self.store, f"{self.folder(kind, key)}/{manifest.launch}", manifest.files)
        return manifest

    def _set_aside(self, kind: str, key: str, bad: bytes | None = None) -> None:
        """Move a damaged manifest away, if it is still there, so that a new one can be created.

        Given `bad`, only a manifest with that content is moved. Its content is kept under a name made of it.
        Another process may put a good manifest there just before the deletion: that one is then lost and its
        stage runs once more, which costs time and nothing else.
        """
        path = f"{self.folder(kind, key)}/{MANIFEST}"
        try:
            data = self.store.read(path, LARGEST)
        except FileNotFoundError:
            return
        except Damaged as damage:  # larger than a manifest: only that is kept
            data = damage.message.encode()
        if bad is not None and data != bad:
            return
        self.store.create(f"{path}.damaged-{hashlib.sha256(data).hexdigest()[:12]}", data)
        self.store.delete(path)


class Writer:
    """One launch's writing of one artifact. Write below `folder`, then `commit` once."""

    def __init__(self, artifacts: Artifacts, kind: str, key: str, launch: str) -> None:
        self._artifacts, self._store = artifacts, artifacts.store
        self.kind, self.key, self.launch = kind, key, check_name(launch)
        self._base = artifacts.folder(kind, key)
        self._won = False
        self._scratch: Path | None = None

    @property
    def folder(self) -> Path:
        """Where to write: the artifact's own place where the store is a folder, else a temporary one."""
        return self._local() or self._remote_scratch()

    def _local(self) -> Path | None:
        return self._store.local_path(f"{self._base}/{self.launch}")

    def _remote_scratch(self) -> Path:
        if self._scratch is None:
            name = f"{self.kind}-{self.key[:16]}-{self.launch}-{uuid.uuid4().hex[:8]}"
            self._scratch = self._artifacts.cache.scratch(name)
        return self._scratch

    def __enter__(self) -> Writer:
        existing = self._artifacts.find(self.kind, self.key)
        if existing is not None and existing.launch == self.launch:
            # This launch has won before: what it writes now goes elsewhere, and is dropped at commit.
            self.launch = f"{self.launch}-{uuid.uuid4().hex[:8]}"
        self._remove()  # what an earlier process of this launch left half-written
        with translate_errors(doing="writing", where=str(self.folder)):
            self.folder.mkdir(parents=True, exist_ok=True)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        folder = self.folder
        if self._scratch is not None:
            files.remove(self._scratch)
        if not self._won:
            try:
                self._remove()
            except NanochatError as failure:
                # Garbage collection gets it later; the error that ends the stage must not be hidden.
                log.warning("%s was left behind: %s", folder, failure)
        if error is not None and is_disk_full(error):
            raise to_user_error(error, doing="writing", where=str(folder)) from error

    def _remove(self) -> None:
        self._store.delete(f"{self._base}/{self.launch}")

    def commit(
        self,
        *,
        recipe: Mapping[str, Any],
        inputs: Mapping[str, str],
        metadata: Mapping[str, Any] | None = None,
    ) -> Manifest:
        """Make what lies in `folder` the artifact, unless another launch has: the winner's manifest."""
        records = store_folder(self._store, self._artifacts.cache, self.folder, f"{self._base}/{self.launch}")
        data = Manifest(
            kind=self.kind,
            key=self.key,
            launch=self.launch,
            recipe=dict(recipe),
            inputs=dict(inputs),
            files=records,
            metadata=dict(metadata or {}),
            created=time.time(),
        ).to_bytes()
        while True:
            # After a damaged manifest was set aside another writer may be faster: then that one has won.
            if self._store.create(f"{self._base}/{MANIFEST}", data):
                self._won = True
                return Manifest.from_bytes(data)
            try:
                winner = self._artifacts._inspect(self.kind, self.key)
            except Damaged as damage:
                log.warning("%s is replaced: %s", self._store.uri(self._base), damage)
                self._artifacts._set_aside(self.kind, self.key)
                continue
            if winner is not None:
                return winner


def _named(manifest: Manifest, names: Iterable[str] | None) -> tuple[FileRecord, ...]:
    if names is None:
        return manifest.files
    known = {record.path: record for record in manifest.files}
    wanted = list(names)
    unknown = [name for name in wanted if name not in known]
    if unknown:
        raise StorageError(f"the {manifest.kind} artifact {manifest.key[:12]} has no file {unknown[0]!r}")
    return tuple(known[name] for name in wanted)
