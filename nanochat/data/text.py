"""Text shards: parquet files with one string column `text`."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from nanochat.data.verify import TEXT_COLUMN

ROW_GROUP = 1024  # documents


def read_text(path: Path) -> Iterator[list[str]]:
    """The documents of a shard in order, up to 1,024 at a time."""
    with pq.ParquetFile(path) as file:
        for batch in file.iter_batches(batch_size=ROW_GROUP, columns=[TEXT_COLUMN]):
            yield [text for text in batch.column(0).to_pylist() if text is not None]


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
