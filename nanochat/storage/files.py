"""Local files: temporary names, hashing, and writes that are whole or absent even after a power cut."""

from __future__ import annotations

import errno
import hashlib
import os
import shutil
import uuid
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

TEMPORARY = ".tmp-"
CHUNK = 1 << 20  # bytes held in memory at once while hashing or copying


def temporary(beside: Path) -> Path:
    """A new name in the same folder, for an atomic rename to `beside`; listings leave such names out."""
    return beside.parent / f"{TEMPORARY}{os.getpid()}-{uuid.uuid4().hex[:12]}"


def is_temporary(path: str) -> bool:
    """Whether any part of the path is a temporary name."""
    return any(part.startswith(TEMPORARY) for part in path.split("/"))


def sha256(path: Path) -> str:
    """SHA-256 of a file as 64 hexadecimal digits, read in chunks."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sync(path: Path) -> None:
    """Force a file or a folder's entries to disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def make_folder(folder: Path) -> None:
    """Make a folder and those above it. FileNotFoundError where another process removes one of them just now."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except FileExistsError:
        if folder.exists():
            raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), str(folder)) from None
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(folder)) from None


def _sync_folder(path: Path) -> None:
    """Force a file's name to disk, unless another process has removed its folder since."""
    with suppress(FileNotFoundError):
        sync(path.parent)


def write_new(path: Path, data: bytes) -> None:
    """Write a file that nobody else knows of, and force it to disk; nothing is left of it on failure."""
    try:
        with path.open("xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
    except OSError:
        path.unlink(missing_ok=True)
        raise


def write(path: Path, data: bytes) -> None:
    """Write or replace a file atomically."""
    make_folder(path.parent)
    scratch = temporary(path)
    write_new(scratch, data)
    os.replace(scratch, path)
    _sync_folder(path)


def create(path: Path, data: bytes) -> bool:
    """Write a file only if none is there: True if this call made it."""
    make_folder(path.parent)
    scratch = temporary(path)
    write_new(scratch, data)
    try:
        os.link(scratch, path)
    except FileExistsError:
        # On network file systems the answer to a link that succeeded can get lost: the count of links tells.
        if os.stat(scratch).st_nlink != 2:
            return False
    finally:
        scratch.unlink(missing_ok=True)
    _sync_folder(path)
    return True


def copy(source: Path, target: Path) -> str:
    """Copy a file atomically in chunks; returns the SHA-256 of what was copied."""
    make_folder(target.parent)
    scratch = temporary(target)
    digest = hashlib.sha256()
    try:
        with source.open("rb") as read, scratch.open("xb") as out:
            while chunk := read.read(CHUNK):
                digest.update(chunk)
                out.write(chunk)
            out.flush()
            os.fsync(out.fileno())
        os.replace(scratch, target)
    finally:
        scratch.unlink(missing_ok=True)
    _sync_folder(target)
    return digest.hexdigest()


def move(source: Path, target: Path) -> None:
    """Move a file atomically, by a copy where the target lies on another disk."""
    make_folder(target.parent)
    if source.stat().st_dev == target.parent.stat().st_dev:
        os.replace(source, target)
    else:
        copy(source, target)
        source.unlink()


def walk(folder: Path) -> Iterator[tuple[str, Path]]:
    """All files below a folder but temporary ones, by name: (path relative to the folder with '/', path)."""
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if path.is_file() and not is_temporary(name):
            yield name, path


def remove(path: Path) -> None:
    """Remove a file or a folder with all it holds, if it is there."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        with suppress(IsADirectoryError):  # nothing was there, and somebody has made a folder since
            path.unlink(missing_ok=True)
