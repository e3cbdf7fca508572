"""Text shards: parquet files with one column `text` of strings, however they are encoded."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from nanochat.data.verify import DamagedFile, WrongFile
from nanochat.spec.errors import first_line

TEXT_COLUMN = "text"
ROW_GROUP = 1024  # documents


@dataclass(frozen=True, slots=True)
class TextStatistics:
    """Contents of a text shard."""

    documents: int
    characters: int


def read_text(path: Path, column: str = TEXT_COLUMN) -> Iterator[list[str]]:
    """The documents of a file's column in order, up to 1,024 at a time; rows that are null are left out.

    Raises WrongFile where the column is not what it should be, or a row of it not UTF-8.
    """
    row = 0
    with pq.ParquetFile(path) as file:
        _check_column(file.schema_arrow, path, column)
        for batch in file.iter_batches(batch_size=ROW_GROUP, columns=[column]):
            values = batch.column(0)
            try:
                texts = values.to_pylist()
            except UnicodeDecodeError:  # in one of the rows, or in a part of a dictionary that no row of these uses
                texts = [_text(scalar, row + i, path) for i, scalar in enumerate(values)]
            yield [text for text in texts if text is not None]
            row += len(values)


def check_text_shard(path: Path) -> TextStatistics:
    """Read the whole shard as training will; DamagedFile where it is cut off, WrongFile as `read_text`."""
    documents = characters = 0
    try:
        for texts in read_text(path):
            documents += len(texts)
            characters += sum(map(len, texts))
    except (pa.ArrowException, OSError) as error:
        raise DamagedFile(f"it is no whole parquet file ({first_line(error)})") from error
    return TextStatistics(documents=documents, characters=characters)


def _check_column(schema: pa.Schema, path: Path, column: str) -> None:
    count = schema.names.count(column)
    if count > 1:
        raise WrongFile(path, f"it has {count} columns '{column}', and must have one")
    kind = schema.field(column).type if count else pa.null()
    value = kind.value_type if isinstance(kind, pa.DictionaryType) else kind
    if value not in (pa.string(), pa.large_string(), pa.string_view()):
        names = ", ".join(f"{field.name} ({str(field.type)[:40]})" for field in islice(schema, 20))
        raise WrongFile(path, f"it has no string column '{column}' (it has {names or 'none'})")


def _text(scalar: pa.Scalar, row: int, path: Path) -> str | None:
    try:
        return scalar.as_py()
    except UnicodeDecodeError as error:
        problem = f"row {row} (the first is 0) is not UTF-8 at its byte {error.start}"
        raise WrongFile(path, problem) from None


def write_text_shard(path: Path, documents: Iterable[str]) -> None:
    """Write documents as a shard, in row groups of 1,024."""
    schema = pa.schema([(TEXT_COLUMN, pa.string())])
    source = iter(documents)
    with pq.ParquetWriter(path, schema, compression="zstd", use_dictionary=False, write_statistics=False) as writer:
        while group := list(islice(source, ROW_GROUP)):
            writer.write_table(pa.table({TEXT_COLUMN: group}, schema=schema))


def until(documents: Iterable[str], characters: int) -> Iterator[str]:
    """Documents until they have this many characters in all."""
    given = 0
    for text in documents:
        if given >= characters:
            return
        yield text
        given += len(text)
