"""Writes a run's report into a folder."""

from __future__ import annotations

from pathlib import Path

from nanochat.report.card import render_card
from nanochat.report.content import describe
from nanochat.report.markdown import render_markdown
from nanochat.report.page import render_page
from nanochat.report.record import RunRecord, gather
from nanochat.storage import Artifacts, Store


def build(store: Store, artifacts: Artifacts, run: str, folder: Path) -> list[str]:
    """Gather a run's record and write its report into a local folder; `run` is the run's folder in the store."""
    return write_report(gather(store, artifacts, run=run), folder)


def write_report(record: RunRecord, folder: Path, *, now: float | None = None) -> list[str]:
    """Write report.md, report.html, model-card.md and the plots as *.svg; returns the names of the files."""
    document = describe(record, now=now)
    files = {
        "report.md": render_markdown(document),
        "report.html": render_page(document),
        "model-card.md": render_card(record),
        **{f"{plot.name}.svg": plot.svg + "\n" for plot in document.plots},
    }
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        (folder / name).write_text(text, encoding="utf-8")
    return list(files)
