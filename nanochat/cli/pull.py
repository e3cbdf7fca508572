"""`nanochat pull MODEL FOLDER`: a model's files, copied out of the store whole or not at all.

Files come into a hidden folder beside the one that is asked for, each held to its SHA-256, and that folder takes the
name once all are there. Stopped, the same command goes on with the files that are missing.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn

from nanochat.cli import models
from nanochat.cli.options import Stage, Store, argument
from nanochat.spec.bounds import PATH, path, text
from nanochat.spec.errors import StorageError, UserError
from nanochat.storage import files
from nanochat.storage.failures import Damaged, translate_errors
from nanochat.storage.store import FileRecord


def pull(
    model: Annotated[
        str, argument(text(PATH), help="Run, its id, champion, NAME:VERSION, or URI of a model artifact.")
    ],
    folder: Annotated[Path, argument(path, help="Folder to write, new or empty.")],
    stage: Stage = None,
    store: Store = "default",
) -> None:
    """Copy a model out of the store, whole or not at all; stopped, it goes on where it was."""
    found = models.locate(model, stage=stage, store=store)
    copy(found, folder)
    print(f"The model is in {folder}: chat, serve and eval take this folder.")


def copy(found: models.Found, folder: Path) -> None:
    """Make `folder` hold the model; UserError where it holds something else, StorageError where a file is damaged."""
    records, folder = found.manifest.files, Path(os.path.abspath(folder))
    with translate_errors(doing="writing", where=str(folder)):
        if folder.exists():
            if _holds(folder, records):
                return
            if not folder.is_dir() or any(folder.iterdir()):
                raise UserError(f"{folder} is not empty: name a folder that is new, or empty it")
        partial = folder.parent / f".{folder.name}.{found.manifest.key[:12]}.partial"
        partial.mkdir(parents=True, exist_ok=True)
        _fetch(found, partial)
        for left in set(files.walk(partial)) - {(record.path, partial / record.path) for record in records}:
            files.remove(left[1])  # of a try that was killed
        if folder.exists():
            folder.rmdir()
        os.replace(partial, folder)
        files.sync(folder.parent)


def _fetch(found: models.Found, partial: Path) -> None:
    """Bring all files that are missing there."""
    bar = Progress(
        TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TimeRemainingColumn(),
        console=Console(stderr=True),
    )  # fmt: skip
    with bar:
        task = bar.add_task(found.manifest.key[:12], total=found.manifest.size)
        for record in found.manifest.files:
            target = partial / record.path
            bar.update(task, description=record.path)
            if not _is(target, record):
                try:
                    target.parent.mkdir(parents=True, exist_ok=True)
                    found.store.download(FileRecord(f"{found.base}/{record.path}", record.size, record.sha256), target)
                except (Damaged, FileNotFoundError) as damage:
                    why = damage.message if isinstance(damage, Damaged) else f"{record.path} is missing"
                    raise StorageError(f"{found.what} is damaged in the store: {why}; nothing was written") from None
            bar.advance(task, record.size)


def _holds(folder: Path, records: Sequence[FileRecord]) -> bool:
    return folder.is_dir() and all(_is(folder / record.path, record) for record in records)


def _is(path: Path, record: FileRecord) -> bool:
    return path.is_file() and path.stat().st_size == record.size and files.sha256(path) == record.sha256
