"""Tasks whose rows are in parquet files: read at first use, checked as they are read, shuffled by the seed.

A subclass declares the columns that it needs as a pydantic model, `Row`, and makes an example of one row. What a row
must be is said there, once: the dataset stage checks every row by it, and so does who reads one later.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Mapping
from functools import cached_property
from pathlib import Path
from random import Random
from types import MappingProxyType
from typing import Any, ClassVar, Generic, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from nanochat.parse import first_problem
from tasks.task import DataError, Example, SourceFile, Task

BATCH = 1024  # rows that are checked at a time


class Row(BaseModel):
    """The columns of one row, each of exactly its type: a number is no text, and true no number."""

    model_config = ConfigDict(strict=True, frozen=True)


R = TypeVar("R", bound=Row)


def hub_files(template: str, **splits: str) -> Mapping[str, tuple[SourceFile, ...]]:
    """The files of each split: `template` with {split} replaced by the name that the hub has for it."""
    return MappingProxyType(
        {name.replace("_", "-"): (SourceFile("hub", template.format(split=there)),) for name, there in splits.items()}
    )


class TableTask(Task, Generic[R]):
    """A task over parquet files; subclasses turn one row into an example."""

    row: ClassVar[type[Row]]

    @abstractmethod
    def example(self, row: R) -> Example: ...

    def __len__(self) -> int:
        return len(self._order)

    def __getitem__(self, index: int) -> Example:
        (example,) = self._examples(self._order[index], 1)
        return example

    def check(self) -> int:
        """Read every row; returns how many there are. DataError names the file and the first row that is wrong."""
        for start in range(0, len(self), BATCH):
            for _ in self._examples(start, BATCH):
                pass
        return len(self)

    def _examples(self, start: int, count: int) -> Iterator[Example]:
        """The examples of `count` rows of the files, in their order."""
        columns = self._table.slice(start, count)
        try:
            rows = columns.to_pylist()
        except UnicodeDecodeError:
            rows = [self._cells(columns, start, i) for i in range(columns.num_rows)]
        for number, cells in enumerate(rows, start=start):
            try:
                row: Any = self.row.model_validate(cells)
                yield self.example(row)
            except ValidationError as error:
                raise self._fault(number, first_problem(error)) from None
            except ValueError as error:
                raise self._fault(number, str(error)) from None

    def _cells(self, columns: Any, start: int, i: int) -> dict[str, Any]:
        try:
            return columns.slice(i, 1).to_pylist()[0]
        except UnicodeDecodeError as error:
            raise self._fault(start + i, f"its text is not UTF-8 (byte {error.start})") from None

    def _fault(self, number: int, problem: str) -> DataError:
        """The error of a row, by the file that it is in and its place there, from 0."""
        for path, rows in self._files:
            if number < rows:
                return DataError(path, f"row {number} of task {self.name}: {problem}")
            number -= rows
        raise IndexError(number)

    @cached_property
    def _order(self) -> list[int]:
        order = list(range(self._table.num_rows))
        Random(self.seed).shuffle(order)
        return order

    @cached_property
    def _files(self) -> list[tuple[Path, int]]:
        """The files of the split, each with its number of rows."""
        import pyarrow.parquet

        return [(path, pyarrow.parquet.read_metadata(path).num_rows) for path in self.paths()]

    @cached_property
    def _table(self) -> Any:
        import pyarrow
        import pyarrow.parquet

        columns = [field.alias or name for name, field in self.row.model_fields.items()]
        tables = []
        for path in self.paths():
            try:
                names = pyarrow.parquet.read_schema(path).names
                for name in columns:
                    if names.count(name) != 1:
                        found = "is missing" if name not in names else "is there twice"
                        raise DataError(path, f"the column '{name}' of task {self.name} {found}")
                tables.append(pyarrow.parquet.read_table(path, columns=columns))
            except (pyarrow.ArrowException, OSError) as error:
                raise DataError(path, f"not a readable parquet file of task {self.name}: {error}") from None
            if not tables[-1].num_rows:
                raise DataError(path, f"this file of task {self.name} has no row")
            if tables[-1].schema != tables[0].schema:
                raise DataError(path, f"this file of task {self.name} has other columns than {self.paths()[0].name}")
        return pyarrow.concat_tables(tables).combine_chunks()
