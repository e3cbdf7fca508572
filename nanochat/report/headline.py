"""The first sentence of a report: what was trained, how good it is, what it cost."""

from __future__ import annotations

from nanochat.report.metrics import answered
from nanochat.report.record import Result, RunRecord
from nanochat.report.scores import total
from nanochat.tracking.quantities import count, duration

# CORE as measured and published by karpathy/nanochat: GPT-2 with 1.6 billion parameters, and its own model of depth 20.
GPT2_CORE, D20_CORE = 0.2565, 0.2219


def sentence(record: RunRecord, *, cost: str) -> str:
    """The training, its worth beside GPT-2 and the reference's published model, the time that it took and what it
    cost; of a run that is under way, as far as it is known."""
    return f"{record.name} {_trained(record)}; {'; '.join(_worth(record))}; {_price(record, cost)}."


def _trained(record: RunRecord) -> str:
    stages = record.trained
    size = f" of {count(record.horizon['parameters'])} parameters" if record.horizon.get("parameters") else ""
    if not stages:
        return f"is to be a model{size}, of which nothing is trained yet"
    kind = "a base model" if stages == ("base",) else "a chat model"
    text = f" on {count(record.horizon['tokens'])} tokens of text" if record.pretrained else ""
    *most, last = (stage.upper() for stage in stages)
    return f"is {kind}{size}, trained{text} by {', '.join(most)}{' and ' if most else ''}{last}"


def _worth(record: RunRecord) -> list[str]:
    """The scores; those of a chat model are the last stage's."""
    evaluation = record.evaluations.get(record.last_trained or "")
    parts = []
    if evaluation is not None and (found := total(evaluation)) is not None and found.n:
        parts.append(f"it answers {answered(found)} held-out questions right")
    peers = f"GPT-2 with 1.6 billion parameters has {GPT2_CORE}, the reference's published d20 {D20_CORE}"
    core = _core(record)
    if core is None:
        return [*parts, f"its CORE was not measured ({peers})"]
    error = f" ± {core.stderr:.4f}" if core.stderr else ""
    return [*parts, f"its base model's CORE is {core.value:.4f}{error} ({peers})"]


def _core(record: RunRecord) -> Result | None:
    base = record.evaluations.get("base")
    return base.metrics.get("core") if base else None


def _price(record: RunRecord, cost: str) -> str:
    if record.started is None or record.ended is None:
        return f"it cost {cost} so far"
    return f"it took {duration(record.ended - record.started)} and cost {cost}"
