"""Resumable states of one stage, by step; the newest whole one is where a launch goes on.

checkpoints = Checkpoints(store, "base", key, cache_folder)
folder = checkpoints.folder(step, launch)                    # write files here
records = checkpoints.store(step, launch, folder, names)     # each of several processes its own
checkpoints.commit(step, launch, records, metadata)          # one of them, for all: whole or absent, whoever is killed
newest = checkpoints.newest()
if newest is not None:
    resume(checkpoints.fetch(newest))

checkpoints/<stage>/<key>/step-0001200-<launch>/...    files, then manifest.json
"""

from __future__ import annotations

import logging
import re
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nanochat.spec.errors import NanochatError
from nanochat.storage import files
from nanochat.storage.artifacts import MANIFEST
from nanochat.storage.cache import Cache
from nanochat.storage.failures import Damaged, translate_errors
from nanochat.storage.manifest import LARGEST, Manifest, check_name
from nanochat.storage.store import FileRecord, Store
from nanochat.storage.transfer import check_sizes, fetch_files, store_folder

log = logging.getLogger(__name__)

ROOT = "checkpoints"
_FOLDER = re.compile(r"step-([0-9]{7,15})-(.+)")


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A checkpoint that has a manifest. `path` is its folder in the store."""

    step: int
    launch: str
    path: str
    manifest: Manifest

    @property
    def metadata(self) -> dict[str, Any]:
        """The metadata that was saved with it."""
        return self.manifest.metadata


class Checkpoints:
    """The checkpoints of one stage and key. `warnings` names the damaged ones that were passed over."""

    def __init__(self, store: Store, stage: str, key: str, cache_folder: Path, cache_bytes: int = 100 << 30) -> None:
        self.store, self.stage, self.key = store, check_name(stage), check_name(key)
        self.cache = Cache(cache_folder, cache_bytes)
        self.warnings: list[str] = []
        self._base = f"{ROOT}/{stage}/{key}"
        self._launches: set[str] = set()

    def folder(self, step: int, launch: str) -> Path:
        """A folder to write files into, in a folder store the checkpoint's own place already.

        Several processes may write one checkpoint, each the files that are its own.
        """
        name = self._name(step, launch)
        folder = self.store.local_path(f"{self._base}/{name}")
        if folder is None:
            return self.cache.scratch(f"{self.stage}-{self.key[:16]}-{name}")
        if self._read(name) is not None:
            folder = folder.parent / f"{files.TEMPORARY}{name}"
        with translate_errors(doing="writing", where=str(folder)):
            folder.mkdir(parents=True, exist_ok=True)
        return folder

    def store_files(self, step: int, launch: str, folder: Path, names: Collection[str]) -> tuple[FileRecord, ...]:
        """Store the files `names` of `folder`, which are used up; none where the checkpoint is whole already."""
        name = self._name(step, launch)
        base = f"{self._base}/{name}"
        self._launches.add(launch)
        known = self._read(name) is not None
        records = () if known else store_folder(self.store, self.cache, folder, base, names)
        if folder != self.store.local_path(base):
            files.remove(folder)
        return records

    def commit(self, step: int, launch: str, records: Sequence[FileRecord], metadata: Mapping[str, Any]) -> None:
        """Make the stored files the checkpoint of a step; what this launch has saved before at this step stays.

        `Damaged` where one of them is not in the store.
        """
        name = self._name(step, launch)
        base = f"{self._base}/{name}"
        if self._read(name) is not None:
            return
        manifest = Manifest(
            kind=self.stage,
            key=self.key,
            launch=launch,
            recipe={},
            inputs={},
            files=tuple(records),
            metadata=dict(metadata),
            created=time.time(),
        )
        check_sizes(self.store, base, manifest.files)
        self.store.write(f"{base}/{MANIFEST}", manifest.to_bytes())

    def abandon(self, step: int, launch: str, folder: Path | None) -> None:
        """Remove what was written of a checkpoint that could not be saved: the disk may be full of it.

        One that is whole stays, though its save has failed afterwards.
        """
        name = self._name(step, launch)
        if folder is not None and folder != self.store.local_path(f"{self._base}/{name}"):
            files.remove(folder)
        with suppress(NanochatError, OSError):  # the store may be what failed
            if self._read(name) is None:
                self.store.delete(f"{self._base}/{name}")

    def newest(self, *, before: int | None = None) -> Checkpoint | None:
        """The newest checkpoint (of a step below `before`), all verified; damaged ones are passed over."""
        for name in self._names():
            if before is not None and _step(name) >= before:
                continue
            try:
                checkpoint = self.find(name)
                if checkpoint is None:
                    continue
                fetch_files(self.store, self.cache, checkpoint.path, checkpoint.manifest.files)
            except Damaged as damage:
                self._pass_over(name, damage)
                continue
            return checkpoint
        return None

    def find(self, name: str) -> Checkpoint | None:
        """The checkpoint in the folder `name`; None where it has no manifest, `Damaged` where it is not whole."""
        data = self._read(name)
        if data is None:
            return None
        manifest, path = Manifest.from_bytes(data), f"{self._base}/{name}"
        if (manifest.kind, manifest.key, manifest.launch) != (self.stage, self.key, _launch(name)):
            raise Damaged("its manifest belongs to another checkpoint")
        check_sizes(self.store, path, manifest.files)
        return Checkpoint(step=_step(name), launch=manifest.launch, path=path, manifest=manifest)

    def all(self) -> tuple[Checkpoint, ...]:
        """All whole checkpoints, newest first, by the sizes of their files."""
        return tuple(self._whole())

    def fetch(self, checkpoint: Checkpoint) -> Path:
        """A local folder with a checkpoint's files, each verified; `Damaged` where it has become so."""
        return fetch_files(self.store, self.cache, checkpoint.path, checkpoint.manifest.files)

    def prune(self, keep: int = 2) -> None:
        """Remove all but the newest `keep`, the damaged ones, and what former launches left half-written."""
        kept = {Path(checkpoint.path).name for checkpoint in self.all()[:keep]}
        for name in self._names():
            unfinished = self._read(name) is None and _launch(name) in self._launches
            if name not in kept and not unfinished:
                self._remove(name)

    def discard(self, *, after: int) -> None:
        """Remove the checkpoints of steps above `after`: a launch that goes back must not meet them again."""
        for name in self._names():
            if _step(name) > after:
                self._remove(name)

    def _name(self, step: int, launch: str) -> str:
        return f"step-{step:07d}-{check_name(launch)}"

    def _names(self) -> list[str]:
        """Folders of checkpoints, whole or not, newest step first."""
        names = [name for name in self.store.children(self._base) if _FOLDER.fullmatch(name)]
        return sorted(names, key=_step, reverse=True)

    def _read(self, name: str) -> bytes | None:
        try:
            return self.store.read(f"{self._base}/{name}/{MANIFEST}", LARGEST)
        except FileNotFoundError:
            return None
        except Damaged:  # larger than a manifest, and no manifest is b""
            return b""

    def _whole(self) -> Iterator[Checkpoint]:
        for name in self._names():
            try:
                checkpoint = self.find(name)
            except Damaged as damage:
                self._pass_over(name, damage)
                continue
            if checkpoint is not None:
                yield checkpoint

    def _pass_over(self, name: str, damage: Damaged) -> None:
        sentence = f"checkpoint {self.store.uri(f'{self._base}/{name}')} is damaged and passed over: {damage}"
        if sentence not in self.warnings:
            self.warnings.append(sentence)
            log.warning("%s", sentence)

    def _remove(self, name: str) -> None:
        self.store.delete(f"{self._base}/{name}/{MANIFEST}")
        self.store.delete(f"{self._base}/{name}")


def newest_step(store: Store, stage: str, key: str) -> int:
    """The step of the newest checkpoint that has a manifest, whatever the state of its files; 0 where there is none."""
    base = f"{ROOT}/{stage}/{key}"
    names = [name for name in store.children(base) if _FOLDER.fullmatch(name)]
    return max((_step(name) for name in names if store.exists(f"{base}/{name}/{MANIFEST}")), default=0)


def _step(name: str) -> int:
    match = _FOLDER.fullmatch(name)
    assert match is not None
    return int(match[1])


def _launch(name: str) -> str:
    match = _FOLDER.fullmatch(name)
    assert match is not None
    return match[2]
