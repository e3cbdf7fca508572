"""Tables of measurements, in a terminal or as Markdown; figures are medians with the least and the greatest."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rich.console import Console
from rich.table import Table as RichTable

GIB = 1 << 30
COSTS_SHOWN = 3


@dataclass(frozen=True, slots=True)
class Table:
    """Rows of text; the first column says of what."""

    title: str
    head: Sequence[str]
    rows: Sequence[Sequence[str]]

    def markdown(self) -> str:
        lines = [self.head, ["---"] * len(self.head), *self.rows]
        return f"{self.title}\n\n" + "".join(f"| {' | '.join(line)} |\n" for line in lines)

    def rich(self) -> RichTable:
        table = RichTable(title=self.title, title_justify="left", box=None)
        for name in self.head:
            table.add_column(name, overflow="fold")
        for row in self.rows:
            table.add_row(*row)
        return table


def print_tables(tables: Sequence[Table], *, markdown: bool) -> None:
    """Print them, one after the other."""
    console = Console(highlight=False)
    for table in tables:
        if markdown:
            print(table.markdown())
        else:
            console.print(table.rich())
            console.print()


def seconds(spread: Mapping[str, Any], *, each: float = 1.0) -> str:
    """Seconds, or milliseconds where they are few; `each` is by how many they are divided."""
    scale, unit = (1e3, "ms") if spread["median"] / each < 1 else (1.0, "s")
    return _show(spread, scale / each, unit)


def number(spread: Mapping[str, Any]) -> str:
    return _show(spread, 1.0, "")


def percent(spread: Mapping[str, Any]) -> str:
    return _show(spread, 100.0, "%")


def times(spread: Mapping[str, Any]) -> str:
    return _show(spread, 1.0, "x")


def bytes_(spread: Mapping[str, Any]) -> str:
    """The greatest, in GiB."""
    return f"{spread['high'] / GIB:.2f} GiB"


def costs(items: Sequence[Mapping[str, Any]]) -> str:
    """The three largest."""
    return ", ".join(f"{item['kind']} {100 * item['share']:.0f} %" for item in items[:COSTS_SHOWN])


def _show(spread: Mapping[str, Any], scale: float, unit: str) -> str:
    median, low, high = (short(spread[name] * scale) for name in ("median", "low", "high"))
    return f"{median} {unit} ({low} to {high})".replace("  ", " ")


def short(value: float) -> str:
    """A number with three digits that count."""
    if abs(value) >= 100:
        return f"{value:,.0f}"
    return f"{value:.1f}" if abs(value) >= 10 else f"{value:.2f}"
