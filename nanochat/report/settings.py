"""Settings of a run for its report and its model card: seed, revisions of the data, learning rates; all in a fold."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from nanochat.report.data import text_name
from nanochat.report.document import Block, Facts, Fold, Table
from nanochat.report.record import RunRecord
from nanochat.tracking.mlflow import flatten

_RATES = (
    ("embeddingLr", "Embedding"), ("unembeddingLr", "Head"), ("matrixLr", "Matrices"), ("initLrFraction", "Begins at"),
    ("finalLrFraction", "Ends at"),
)  # fmt: skip


def settings_of(record: RunRecord) -> tuple[Block, ...]:
    """The settings that a repetition needs and, folded, all others."""
    rates = rates_of(record)
    everything = tuple(flatten(record.spec).items())
    return (Facts(tuple(provenance(record))), *([rates] if rates else []), Fold("All settings", (Facts(everything),)))


def provenance(record: RunRecord) -> list[tuple[str, str]]:
    """The seed, and each source of data with its revision."""
    sources = record.spec.get("sources", {})
    text = sources.get("text", {})
    shown = [("Seed", record.spec.get("seed")), ("Pretraining text", f"{text_name(text)}{_revision(text)}")]
    if sources.get("hubRevision"):
        shown.append(("Task data", f"revision {sources['hubRevision']}"))
    if any(ref.kind == "eval-bundle" for ref in record.manifests):
        shown.append(("CORE's bundle", f"revision {sources.get('evalBundle', {}).get('revision')}"))
    return [(name, str(value)) for name, value in shown if value is not None]


def _revision(source: Mapping[str, Any]) -> str:
    return f", revision {source['revision']}" if source.get("kind") != "world" and source.get("revision") else ""


def rates_of(record: RunRecord) -> Table | None:
    """The learning rates of the stages that trained; None where none are known."""
    rows = []
    for stage in record.trained:
        settings = record.spec.get("stages", {}).get(stage, {})
        if any(name in settings for name, _ in _RATES):
            rows.append((stage.upper(), *(_share(name, settings) for name, _ in _RATES)))
    head = ("Learning rate", *(title for _, title in _RATES))
    return Table(head, tuple(rows), numeric=frozenset(range(1, len(head)))) if rows else None


def _share(name: str, settings: Mapping[str, Any]) -> str:
    """A rate, or the fraction of it that training begins or ends with: base begins with the whole one."""
    value = settings.get(name, 1.0 if name == "initLrFraction" else None)
    return "-" if value is None else f"{value:g}"
