"""Whole folders between this machine and a store, verified; artifacts and checkpoints are made of this."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from nanochat.storage import files
from nanochat.storage.cache import Cache
from nanochat.storage.failures import Damaged, translate_errors
from nanochat.storage.manifest import Manifest
from nanochat.storage.store import Entry, FileRecord, Store

SLACK = 2.0  # seconds by which a store's times of files may differ
UPLOADS_AT_ONCE = 4  # each in parts of its own, see backends


def check_sizes(store: Store, base: str, records: Sequence[FileRecord]) -> None:
    """`Damaged` where one of the files below `base` is missing or has another size."""
    if store.local_path(base) is not None:
        sizes = {record.path: store.size(f"{base}/{record.path}") for record in records}
    else:
        sizes = {entry.path[len(base) + 1 :]: entry.size for entry in store.list(base)}
    for record in records:
        size = sizes.get(record.path)
        if size is None:
            raise Damaged(f"{record.path} is missing")
        if size != record.size:
            raise Damaged(f"{record.path} has {size:,} bytes instead of {record.size:,}")


def check_contents(store: Store, base: str, manifest: Manifest, hashed: dict[Entry, str]) -> None:
    """`Damaged` where a file of the artifact at `base` was written after its manifest, and is not what that says.

    Only such files are read, each once for as long as `hashed` is kept.
    """
    entries = {entry.path.removeprefix(f"{base}/"): entry for entry in store.list(base)}
    written = entries["manifest.json"].modified if "manifest.json" in entries else 0.0
    for record in manifest.files:
        entry = entries.get(f"{manifest.launch}/{record.path}")
        if entry is None:
            raise Damaged(f"{record.path} is missing")
        if entry.modified <= written + SLACK:
            continue
        if entry not in hashed:
            hashed[entry] = store.sha256(entry.path)
        if hashed[entry] != record.sha256:
            raise Damaged(f"{record.path} has another content than was written")


def store_folder(
    store: Store, cache: Cache, folder: Path, base: str, names: Collection[str] | None = None
) -> tuple[FileRecord, ...]:
    """Bring files of a local folder (all, or `names`) below `base`, hashed and on disk; they may lie there already."""
    found = list(files.walk(folder)) if names is None else [(name, folder / name) for name in names]
    local = store.local_path(base)

    def bring(item: tuple[str, Path]) -> FileRecord:
        name, path = item
        if local is None:
            record = store.upload(path, f"{base}/{name}")
            return FileRecord(path=name, size=record.size, sha256=record.sha256)
        target = local / name
        if target != path:
            files.move(path, target)
        info = target.stat()
        files.sync(target)
        digest = files.sha256(target)
        cache.remember(target, digest, info)
        return FileRecord(path=name, size=info.st_size, sha256=digest)

    with translate_errors(doing="writing", where=store.uri(base)):
        with ThreadPoolExecutor(UPLOADS_AT_ONCE) as pool:
            records = tuple(pool.map(bring, found))
        if local is not None:
            local.mkdir(parents=True, exist_ok=True)
            for path in (local, *(path for path in local.rglob("*") if path.is_dir()), local.parent):
                files.sync(path)
    return records


def fetch_files(store: Store, cache: Cache, base: str, records: Sequence[FileRecord]) -> Path:
    """A local folder with the files below `base`, each verified; `Damaged` where one is not right."""
    local = store.local_path(base)
    address = store.uri(base)
    if local is not None:
        with translate_errors(doing="reading", where=str(local)), cache.once(address):
            for record in records:
                cache.verify(local / record.path, record)
        return local

    def download(record: FileRecord, target: Path) -> None:
        try:
            store.download(FileRecord(f"{base}/{record.path}", record.size, record.sha256), target)
        except FileNotFoundError:
            raise Damaged(f"{record.path} is missing") from None

    return cache.fetch(address, records, download)
