"""One's own text as documents, and their division into shards: JSON lines, plain text and parquet files.

    documents = read_documents([Path("letters.jsonl"), Path("book.txt")], column="text")
    write_text_shard(target, dealt(documents, part=Part(number=0, of=2)))

A row or line is a document. A plain text is cut where a paragraph ends, so that a part of it can be held out. Every
twentieth document is kept for validation, the first among them, until these have ten million characters; the others go
to the training shards in turn.
"""

from __future__ import annotations

import codecs
import gzip
import zlib
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import pyarrow as pa

from nanochat.data.text import read_text
from nanochat.data.text_files import COLUMNS, LINES, kind_of
from nanochat.data.verify import WrongFile
from nanochat.parse import Malformed
from nanochat.parse.json_text import read_json
from nanochat.spec.errors import first_line

EVERY = 20  # documents of which one is held out
HELD_OUT = 10_000_000  # characters after which no more are
PIECE = 4_000  # characters, at least, of the documents that a plain text is cut into,
LONG_PIECE = 40_000  # and where no empty line comes; bytes of a line that are taken at once, too
LONGEST = 64 << 20  # bytes of a line of JSON


@dataclass(frozen=True, slots=True)
class Part:
    """One shard's part: the held out documents, or those of the training shard `number` of `of`."""

    number: int = 0
    of: int = 1
    held_out: bool = False


def dealt(documents: Iterable[str], part: Part) -> Iterator[str]:
    """The documents of one part, in their order."""
    held = trained = 0
    for index, text in enumerate(documents):
        if index % EVERY == 0 and held < HELD_OUT:
            held += len(text)
            if part.held_out:
                yield text
            continue
        if not part.held_out and trained % part.of == part.number:
            yield text
        trained += 1


def read_documents(paths: Sequence[Path], *, column: str) -> Iterator[str]:
    """The texts of files that are not blank, in order; WrongFile where one cannot be read."""
    for path in paths:
        kind = kind_of(path.name)
        if kind in COLUMNS:
            found: Iterable[str] = _rows(path, column)
        else:
            found = _lines(path, column) if kind in LINES else _pieces(path)
        yield from (text for text in found if text.strip())


def _rows(path: Path, column: str) -> Iterator[str]:
    """The column of a parquet file."""
    try:
        for texts in read_text(path, column=column):
            yield from texts
    except (pa.ArrowException, OSError) as error:
        if isinstance(error, OSError) and error.strerror:  # of the file system, not of what the file holds
            raise
        raise WrongFile(path, f"it is no whole parquet file ({first_line(error)})") from None


def _lines(path: Path, column: str) -> Iterator[str]:
    """The field `column` of each line's object; null and lines that are blank are left out."""
    with _opened(path) as file:
        number = 0
        while line := file.readline(LONGEST + 1):
            number += 1
            if len(line) > LONGEST:
                raise WrongFile(path, f"line {number} has more than {LONGEST >> 20} MiB")
            if number == 1:
                line = line.removeprefix(b"\xef\xbb\xbf")
            if not line.strip():
                continue
            try:
                found = read_json(line, limit=LONGEST)
            except Malformed as error:
                raise WrongFile(path, f"line {number} is {error}") from None
            if not isinstance(found, dict) or column not in found:
                raise WrongFile(path, f"line {number} has no text '{column}' ({_has(found)})")
            if not isinstance(found[column], str | None):
                raise WrongFile(path, f"line {number} has in '{column}' another thing than text")
            if found[column]:
                yield found[column]


def _has(found: Any) -> str:
    if not isinstance(found, dict):
        return "it is no object with fields"
    return f"it has {', '.join(sorted(map(str, found))[:20])[:200] or 'no fields'}"


def _pieces(path: Path) -> Iterator[str]:
    """A plain text, cut at the first empty line after each PIECE characters; at the next line, or in one that is very
    long, where there was none for LONG_PIECE characters."""
    held: list[str] = []
    size = 0
    for text in _decoded(path):
        held.append(text)
        size += len(text)
        if size >= (LONG_PIECE if text.strip() else PIECE):
            yield "".join(held)
            held, size = [], 0
    yield "".join(held)


def _decoded(path: Path) -> Iterator[str]:
    """The lines of a plain text; one that is very long comes in parts."""
    decoder = codecs.getincrementaldecoder("utf-8-sig")()
    number, begin = 1, 0  # of the line, and of what is decoded in it
    with _opened(path) as file:
        while True:
            line = file.readline(LONG_PIECE)
            ends = not line or line.endswith(b"\n")
            try:
                yield decoder.decode(line, final=ends)
            except UnicodeDecodeError as error:
                raise WrongFile(path, f"line {number} is not UTF-8 at its byte {begin + error.start}") from None
            if not line:
                return
            begin = 0 if ends else begin + len(line) - len(decoder.getstate()[0])
            number += ends


@contextmanager
def _opened(path: Path) -> Iterator[IO[bytes]]:
    """The bytes of a file, unpacked."""
    try:
        with gzip.open(path, "rb") if path.name.lower().endswith(".gz") else path.open("rb") as file:
            yield file  # type: ignore[misc]
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise WrongFile(path, f"it is no whole gzip file ({first_line(error)})") from None
