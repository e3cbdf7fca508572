"""Checks that a file is whole. Each raises DamagedFile, which a transfer answers by fetching again."""

from __future__ import annotations

import zipfile
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from nanochat.spec.errors import UserError

TEXT_COLUMN = "text"


class DamagedFile(Exception):
    """A file is cut off or not of the format that it should have."""


@dataclass(frozen=True, slots=True)
class TextStatistics:
    """Contents of a text shard."""

    documents: int
    characters: int


def check_parquet(path: Path) -> int:
    """Read the whole file; returns its number of rows."""
    try:
        with pq.ParquetFile(path) as file:
            rows = sum(batch.num_rows for batch in file.iter_batches(batch_size=1024))
            if rows != file.metadata.num_rows:
                raise DamagedFile(f"it has {rows} rows and says {file.metadata.num_rows}")
            return rows
    except (pa.ArrowException, OSError) as error:
        raise DamagedFile(f"it is no whole parquet file ({_first_line(error)})") from error


def check_text_shard(path: Path) -> TextStatistics:
    """Read the whole text shard; returns what is in it. UserError where it has no string column `text`."""
    try:
        with pq.ParquetFile(path) as file:
            names = file.schema_arrow.names
            kind = file.schema_arrow.field(TEXT_COLUMN).type if TEXT_COLUMN in names else None
            if kind is None or not (pa.types.is_string(kind) or pa.types.is_large_string(kind)):
                raise UserError(
                    f"{path.name.removesuffix('.part')} has no string column '{TEXT_COLUMN}' (it has "
                    f"{', '.join(names) or 'none'}): sources.text must name parquet files with that column"
                )
            documents = characters = 0
            for batch in file.iter_batches(batch_size=1024, columns=[TEXT_COLUMN]):
                documents += batch.num_rows - batch.column(0).null_count
                lengths = pc.call_function("utf8_length", [batch.column(0)])
                characters += pc.call_function("sum", [lengths]).as_py() or 0
            return TextStatistics(documents=documents, characters=characters)
    except (pa.ArrowException, OSError) as error:
        raise DamagedFile(f"it is no whole parquet file ({_first_line(error)})") from error


def check_zip(path: Path) -> None:
    """Read every member against its checksum."""
    try:
        with zipfile.ZipFile(path) as archive:
            bad = archive.testzip()
    except (zipfile.BadZipFile, EOFError, OSError) as error:
        raise DamagedFile(f"it is no whole zip file ({_first_line(error)})") from error
    if bad is not None:
        raise DamagedFile(f"the checksum of {bad} in it is wrong")


def _first_line(error: Exception) -> str:
    return str(error).splitlines()[0] if str(error) else type(error).__name__
