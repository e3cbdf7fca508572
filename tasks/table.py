"""Tasks whose rows are in parquet files: read at first use, in an order shuffled by the seed."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from functools import cached_property
from random import Random
from types import MappingProxyType
from typing import Any

from tasks.task import DataError, Example, SourceFile, Task

Row = Mapping[str, Any]


def hub_files(template: str, **splits: str) -> Mapping[str, tuple[SourceFile, ...]]:
    """The files of each split: `template` with {split} replaced by the name that the hub has for it."""
    return MappingProxyType(
        {name.replace("_", "-"): (SourceFile("hub", template.format(split=there)),) for name, there in splits.items()}
    )


class TableTask(Task):
    """A task over parquet files; subclasses turn one row into an example."""

    columns: tuple[str, ...]

    @abstractmethod
    def example(self, row: Row) -> Example: ...

    def __len__(self) -> int:
        return len(self._order)

    def __getitem__(self, index: int) -> Example:
        row = self._order[index]
        return self.example({name: self._table.column(name)[row].as_py() for name in self.columns})

    @cached_property
    def _order(self) -> list[int]:
        order = list(range(self._table.num_rows))
        Random(self.seed).shuffle(order)
        return order

    @cached_property
    def _table(self) -> Any:
        import pyarrow
        import pyarrow.parquet

        tables = []
        for path in self.paths():
            try:
                tables.append(pyarrow.parquet.read_table(path, columns=list(self.columns)))
            except (pyarrow.ArrowException, OSError) as error:
                raise DataError(path, f"not a readable parquet file of task {self.name}: {error}") from None
            missing = [name for name in self.columns if name not in tables[-1].column_names]
            if missing:
                raise DataError(path, f"the column '{missing[0]}' of task {self.name} is missing")
        return pyarrow.concat_tables(tables).combine_chunks()
