"""The summary that `nanochat report` prints: scores, the last model's answers, and how many of them are right."""

from __future__ import annotations

from rich.console import Console
from rich.table import Table
from rich.text import Text

from nanochat.report.document import Exchange
from nanochat.report.metrics import answered, brief
from nanochat.report.record import RunRecord
from nanochat.report.samples import answers_of
from nanochat.report.scores import Row, rows, stages, total
from nanochat.tracking.quantities import count, duration


def summarize(record: RunRecord, console: Console) -> None:
    """Print the summary; it fits a terminal of 80 columns."""
    console.print(_headline(record), markup=False)
    found = rows(record)
    if found:
        console.print()
        wide = _table(record, found, below=False)
        fits = console.measure(wide, options=console.options.update(max_width=1000)).maximum <= console.width
        console.print(wide if fits else _table(record, found, below=True))
    stage = record.last_trained or ""
    for exchange in answers_of(record, stage):
        console.print()
        console.print(_exchange(exchange))
    evaluation = record.evaluations.get(stage)
    whole = total(evaluation) if evaluation else None
    if whole is not None and whole.n:
        right, share = answered(whole), f"{100 * whole.value:.1f} %"
        again = "" if share in right else f" ({share})"
        console.print(f"\nThe {stage.upper()} model answers {right} held-out questions right{again}.", markup=False)


def _headline(record: RunRecord) -> str:
    parts = []
    if record.horizon.get("parameters"):
        parts.append(f"{count(record.horizon['parameters'])} parameters")
    if record.pretrained:
        parts.append(f"{count(record.horizon['tokens'])} tokens of text")
    if record.started is not None and record.ended is not None:
        parts.append(duration(record.ended - record.started))
    return f"{record.name}: {', '.join(parts)}"


def _table(record: RunRecord, found: list[Row], *, below: bool) -> Table:
    """The scores; how many of how many stands beside a share, or below it where there is no room."""
    table = Table(box=None, pad_edge=False, show_edge=False)
    table.add_column("", max_width=20)
    for stage in stages(record):
        table.add_column(stage.upper(), justify="right")
    for row in found:
        cells = []
        for result in row.results:
            value, of = brief(row.name, result) if result else ("-", "")
            cells.append(Text.assemble(value, ("\n" if below else " ") * bool(of), (of, "dim")))
        table.add_row(row.label, *cells)
    return table


def _exchange(exchange: Exchange) -> Text:
    text = Text(f"> {exchange.prompt}", style="bold") if exchange.prompt else Text()
    for line in exchange.answers[0].lines:
        text.append("\n" if text else "")
        text.append(line.text, style="not bold dim" if line.tool else "not bold")
    return text
