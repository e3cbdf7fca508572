"""Checks of files that were fetched: DamagedFile where fetching again may help, WrongFile where it cannot."""

from __future__ import annotations

from pathlib import Path

from nanochat.spec.errors import UserError, first_line


class DamagedFile(Exception):
    """A file is cut off or not of the format that it should have."""


class WrongFile(UserError):
    """A file is whole and holds what its reader cannot use: fetching it again changes nothing."""

    def __init__(self, path: Path, problem: str) -> None:
        super().__init__(f"{path.name.removesuffix('.part')}: {problem}")
        self.problem = problem


def check_parquet(path: Path) -> int:
    """Read the whole file; returns its number of rows."""
    import pyarrow as pa  # here, for it begins a thread, and most of those who import this module have no such file
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(path) as file:
            rows = sum(batch.num_rows for batch in file.iter_batches(batch_size=1024))
            if rows != file.metadata.num_rows:
                raise DamagedFile(f"it has {rows} rows and says {file.metadata.num_rows}")
            return rows
    except (pa.ArrowException, OSError) as error:
        raise DamagedFile(f"it is no whole parquet file ({first_line(error)})") from error
