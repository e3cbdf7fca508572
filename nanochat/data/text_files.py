"""The files of one's own text, of this machine or of object storage: one file, a folder's, or those of a pattern.

    for path in local_files(Path("/data/letters/*.jsonl")): ...
    for address in stored_files("s3://bucket/letters", profile): ...

They are read in the order of their names. A folder gives all of the known kinds in it and below it. Hidden files, and
those in hidden folders, count only where they are named: a folder or a pattern does not mean them. Links to folders
below a folder, or below a pattern's `**`, are not followed: they may lead in circles.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path, PurePosixPath
from urllib.parse import urlsplit

from nanochat.parse.address import FILE
from nanochat.spec.addresses import given_address
from nanochat.spec.errors import StorageError, UserError
from nanochat.storage.backends import find_backend
from nanochat.storage.failures import to_user_error, transient
from nanochat.storage.store import Profile

SETTING = "sources.text.files"
LINES, PLAIN, COLUMNS = (".jsonl", ".ndjson"), (".txt", ".md", ".text"), (".parquet",)
KINDS = (*LINES, *PLAIN, *COLUMNS, *(f"{kind}.gz" for kind in (*LINES, *PLAIN)))
MOST = 100_000  # files


def kind_of(name: str) -> str:
    """The ending that says what a file is, without .gz; '' where it is none of KINDS."""
    lower = name.lower()
    found = next((kind for kind in KINDS if lower.endswith(kind)), "")
    return found.removesuffix(".gz")


def is_pattern(place: str) -> bool:
    """Whether an address means all files that match it."""
    return any(mark in place for mark in "*?[")


def local_files(place: Path) -> list[Path]:
    """The files that a path, a folder or a pattern means; UserError where there is none, or one cannot be used."""
    if place.is_file():
        found = [place]
    elif place.is_dir():
        found = [path for path in place.rglob("*") if kind_of(path.name) and path.is_file()]
    elif is_pattern(str(place)):
        found = list(_matching(place))
    else:
        raise UserError(f"there is no file {place}: correct {SETTING}")
    names = _checked(_visible(map(str, found), str(place)), str(place))
    return [Path(name) for name in names]


def stored_files(address: str, profile: Profile) -> list[str]:
    """The same of object storage; StorageError where that is out of reach."""
    scheme = urlsplit(address).scheme
    backend, place = find_backend(scheme), profile.towards(address)
    try:
        fs, path = backend.connect(place, None), address.partition("://")[2].rstrip("/")
        if fs.isfile(path):
            found = [path]
        elif is_pattern(path):
            found = [name for name, info in fs.glob(path, detail=True).items() if info["type"] == "file"]
        else:
            found = [name for name in fs.find(path) if kind_of(name)]
    except Exception as error:
        if transient(error, backend.errors):
            raise StorageError(f"{address} could not be listed ({type(error).__name__}): try again") from error
        if isinstance(error, backend.errors.base):
            raise to_user_error(error, doing="listing", where=address, errors=backend.errors) from error
        raise
    names = _checked(_visible(found, path), address)
    return [given_address(f"{scheme}://{name}", FILE, f"rename {name} in {address}").text for name in names]


def _matching(pattern: Path) -> Iterator[Path]:
    """The files that match a pattern of this machine."""
    root = Path(pattern.anchor)
    parts = pattern.relative_to(root).parts
    if wrong := next((part for part in parts if "**" in part and part != "**"), ""):
        raise UserError(f"{pattern}: '{wrong}' is no pattern, for ** stands alone between slashes: correct {SETTING}")
    return (path for path in root.glob(str(Path(*parts))) if path.is_file())


def _visible(names: Iterable[str], place: str) -> list[str]:
    """The files of a folder or a pattern, but those of which a part is hidden that the place itself does not name."""
    return [name for name in names if _hidden(name) <= _hidden(place)]


def _hidden(path: str) -> int:
    return sum(part.startswith(".") for part in path.split("/"))


def _checked(names: Iterable[str], place: str) -> list[str]:
    found = sorted(names)
    if not found:
        bracket = "; in a pattern [[] means the sign [" if "[" in place else ""
        raise UserError(f"{place} has no file that ends in {', '.join(KINDS)}: correct {SETTING}{bracket}")
    if len(found) > MOST:
        raise UserError(f"{place} has {len(found):,} files, and {MOST:,} are the most: put them together")
    for name in found:
        if not kind_of(name):
            what = PurePosixPath(name).name
            raise UserError(f"{place}: {what} is none of {', '.join(KINDS)}: correct {SETTING}")
    return found
