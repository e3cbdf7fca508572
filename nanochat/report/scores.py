"""Scores of each stage's model: the rows of the stage table, and how many questions it got right in all."""

from __future__ import annotations

import math
from dataclasses import dataclass

from nanochat.report.document import Table
from nanochat.report.metrics import CHATCORE, canonical, cell, is_proportion, label, ordered
from nanochat.report.record import TRAINING, Evaluation, Result, RunRecord


@dataclass(frozen=True, slots=True)
class Row:
    """One metric: a result for each stage, None where it was not measured."""

    name: str
    label: str
    results: tuple[Result | None, ...]


def stages(record: RunRecord) -> tuple[str, ...]:
    """The stages whose models were measured."""
    return tuple(stage for stage in TRAINING if stage in record.evaluations)


def rows(record: RunRecord) -> list[Row]:
    """All metrics, and all questions together where no ChatCORE sums up."""
    found = [record.evaluations[stage] for stage in stages(record)]
    metrics = ordered(name for evaluation in found for name in evaluation.metrics)
    out = [Row(m.name, m.label, tuple(evaluation.metrics.get(m.name) for evaluation in found)) for m in metrics]
    totals = tuple(total(evaluation) for evaluation in found)
    if any(totals) and not any(canonical(metric.name) == CHATCORE for metric in metrics):
        out.append(Row("all-questions", label("all-questions"), totals))
    return out


def total(evaluation: Evaluation) -> Result | None:
    """The proportion of right answers to the questions of all chat tasks; None where there are fewer than two tasks.

    Each question counts the same: p = sum(n_i p_i) / N, and its error is sqrt(sum((n_i e_i)^2)) / N.
    """
    parts = [
        (result.value, result.n, result.stderr or 0.0)
        for name, result in evaluation.metrics.items()
        if name in evaluation.tasks and result.n and is_proportion(name, result.value)
    ]
    if len(parts) < 2:
        return None
    count = sum(n for _, n, _ in parts)
    error = math.sqrt(sum((n * stderr) ** 2 for _, n, stderr in parts))
    return Result(sum(value * n for value, n, _ in parts) / count, count, error / count)


def stage_table(record: RunRecord) -> Table | None:
    """The metrics of each stage's model; None where nothing was measured."""
    found = rows(record)
    if not found:
        return None
    head = ("Metric", *(stage.upper() for stage in stages(record)))
    cells = tuple(
        (row.label, *("-" if result is None else cell(row.name, result) for result in row.results)) for row in found
    )
    return Table(head, cells, numeric=frozenset(range(1, len(head))))
