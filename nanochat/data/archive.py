"""Unpacking a zip that others made: every member is checked, and what was checked is what is written.

    names = unpack(packed, folder)      # WrongFile or DamagedFile; all is written below `folder`

Bounds are on the number of members, on each one's size, on all together, and on what a member grows to: all by the
zip's own directory, before a byte is unpacked, and a member that holds more than it says there is damaged.
"""

from __future__ import annotations

import shutil
import stat
import zipfile
import zlib
from pathlib import Path

from nanochat.data.verify import DamagedFile, WrongFile
from nanochat.spec.errors import first_line

MEMBERS = 10_000
MEMBER_BYTES = 2 << 30
TOTAL_BYTES = 8 << 30
GROWTH = 200  # times its packed size; what is small may grow more
SMALL = 1 << 20
NAME = 255  # characters of one part of a path
METHODS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)


def unpack(packed: Path, folder: Path) -> list[str]:
    """Write the zip's files below `folder`, and return their paths in it."""
    try:
        with zipfile.ZipFile(packed) as archive:
            members = archive.infolist()
            if problem := _problem(members):
                raise WrongFile(packed, problem)
            files = [member for member in members if not member.is_dir()]
            for member in files:
                target = folder / member.filename
                target.parent.mkdir(parents=True, exist_ok=True)
                with archive.open(member) as source, open(target, "wb") as out:  # by the member, not by its name
                    shutil.copyfileobj(source, out)
            return [member.filename for member in files]
    except (zipfile.BadZipFile, EOFError, zlib.error, NotImplementedError, UnicodeDecodeError) as error:
        raise DamagedFile(f"it is no whole zip file ({first_line(error)})") from error


def _problem(members: list[zipfile.ZipInfo]) -> str | None:
    """The first thing that is wrong with the members of a zip; None where all may be unpacked."""
    if len(members) > MEMBERS:
        return f"it has {len(members):,} members, and at most {MEMBERS:,} are unpacked"
    if sum(member.file_size for member in members) > TOTAL_BYTES:
        return f"its members have more than {TOTAL_BYTES >> 30} GiB in all"
    files = {member.filename for member in members if not member.is_dir()}
    seen: set[str] = set()
    for member in members:
        name = member.filename.rstrip("/")
        shown = f"its member {name[:NAME]!r}"
        kind = stat.S_IFMT(member.external_attr >> 16)
        if problem := path_problem(name):
            return f"{shown} {problem}"
        if kind not in (0, stat.S_IFREG, stat.S_IFDIR):
            return f"{shown} is no regular file but a link or a device"
        if name in seen or (member.is_dir() and name in files) or not files.isdisjoint(_parents(name)):
            return f"{shown} is there twice"
        if member.flag_bits & 1:
            return f"{shown} is encrypted"
        if member.compress_type not in METHODS:
            return f"{shown} is packed by method {member.compress_type}, and only stored and deflated ones are read"
        if member.file_size > MEMBER_BYTES:
            return f"{shown} has more than {MEMBER_BYTES >> 30} GiB"
        if member.file_size > SMALL + GROWTH * member.compress_size:
            return f"{shown} grows to more than {GROWTH} times its size"
        seen.add(name)
    return None


def path_problem(name: str) -> str | None:
    """The reason why a relative path from outside is not opened; None for one that stays in its folder."""
    parts = name.split("/")
    if not name or name.startswith("/") or ".." in parts:
        return "names a file outside of its folder"
    if any(part in ("", ".") or len(part.encode(errors="replace")) > NAME for part in parts):
        return "has a part that is empty, a dot, or too long"
    if not name.isprintable() or any(mark in name for mark in "\\%?#:"):
        return "has a character that paths and addresses read differently"
    return None


def _parents(name: str) -> set[str]:
    parts = name.split("/")
    return {"/".join(parts[:depth]) for depth in range(1, len(parts))}
