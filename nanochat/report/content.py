"""The content of a run's report: `describe(record)` makes the document, which the writers write down."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

from nanochat.pipeline.explain import NEW
from nanochat.pipeline.ref import ArtifactRef
from nanochat.report.curves import training_plots
from nanochat.report.document import Block, Bullets, Document, Facts, Paragraph, Section, Table
from nanochat.report.headline import sentence
from nanochat.report.metrics import label
from nanochat.report.record import RunRecord, StageRecord
from nanochat.report.samples import exchanges
from nanochat.report.scores import stage_table
from nanochat.report.settings import settings_of
from nanochat.spec.pipeline import TRAINING
from nanochat.tracking.quantities import count, date, duration, money, number, scientific, size

_CLOSING = ("report", "release")
_PEERS = {"ours": "Ours", "gpt2": "GPT-2", "gpt4": "GPT-4"}


def describe(record: RunRecord, *, now: float | None = None) -> Document:
    """The report's document. Sections without anything to say are left out."""
    sections = (
        Section("Results", _results(record)),
        Section("Training", _training(record)),
        Section("CORE by task", _tasks(record)),
        Section("Samples", tuple(exchanges(record))),
        Section("Tokenizer", _compression(record)),
        Section("Time and cost", _time(record)),
        Section("Not run", _not_run(record)),
        Section("Settings", settings_of(record)),
        Section("Environment", _environment(record)),
        Section("Lineage", _lineage(record)),
    )
    written = date(time.time() if now is None else now)
    return Document(
        title=f"{record.name}: report",
        subtitle=f"{record.namespace}/{record.name}, run {record.uid}, written {written}",
        sections=tuple(section for section in sections if section.blocks),
    )


def headline(record: RunRecord) -> str:
    """The report in a sentence."""
    return sentence(record, cost=_total_cost(record))


def _results(record: RunRecord) -> tuple[Block, ...]:
    blocks: list[Block] = [Paragraph(headline(record))]
    facts = []
    if record.horizon.get("parameters"):
        facts.append(("Parameters", count(record.horizon["parameters"])))
    if record.pretrained:
        facts.append(
            ("Pretraining", f"{count(record.horizon['tokens'])} tokens, {count(record.horizon['steps'])} steps")
        )
    if record.pretrained and record.horizon.get("flops"):
        facts.append(("Pretraining FLOPs", scientific(record.horizon["flops"])))
    if record.started is not None and record.ended is not None:
        facts.append(("Wall-clock", duration(record.ended - record.started)))
    facts.append(("Cost", _total_cost(record)))
    blocks.append(Facts(tuple(facts)))
    table = stage_table(record)
    if table is None:
        blocks.append(Paragraph("No model has been evaluated."))
    else:
        blocks += [table, Paragraph("Values are means with their standard error; '-' was not measured there.")]
    if record.release:
        blocks.append(Paragraph(_release(record.release)))
    return tuple(blocks)


def _training(record: RunRecord) -> tuple[Block, ...]:
    blocks: list[Block] = []
    rows: list[tuple[str, ...]] = []
    notes: list[str] = []
    for name in TRAINING:
        stage, manifest = record.stage(name), record.manifests.get(ArtifactRef.of("model", name))
        if manifest is not None:
            rows.append(_trained(name, manifest.metadata))
            notes += _remarks(name, manifest.metadata)
        if stage is not None and stage.history is not None:
            blocks += training_plots(name, stage.history)
    table: list[Block] = []
    if rows:
        head = ("Stage", "Steps", "Tokens", "Loss", "Bits per byte", "Tokens per second", "On")
        table.append(Table(head, tuple(rows), numeric=frozenset({1, 2, 3, 4, 5})))
        table.append(Paragraph("Loss and bits per byte are those of each stage's own data, so stages do not compare."))
    if notes:
        table.append(Bullets(tuple(notes)))
    return (*table, *blocks)


def _trained(name: str, data: Mapping[str, Any]) -> tuple[str, ...]:
    """A row of what a model's manifest says of its training."""
    tokens, seconds = data.get("tokens"), data.get("seconds")
    processes = f"{data['processes']} processes" if data.get("processes", 1) > 1 else ""
    return (
        name.upper(),
        count(data.get("steps")),
        count(tokens),
        "-" if name == "rl" else _loss(data.get("loss")),  # the policy's loss says nothing of progress
        number((data.get("metrics") or {}).get("val/bpb")),
        count(tokens / seconds) if tokens and seconds else "-",
        ", ".join(filter(None, (data.get("device"), data.get("precision"), processes))) or "-",
    )


def _loss(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"


def _remarks(name: str, data: Mapping[str, Any]) -> list[str]:
    """Remarks on a training, each a sentence."""
    out = []
    if data.get("cutConversations"):
        rest = data.get("untrainedConversations")
        nothing = f"; {count(rest)} of them have no answer left to train on" if rest else ""
        out.append(
            f"{count(data['cutConversations'])} conversations were longer than the context and were cut{nothing}"
        )
    if data.get("emptySteps"):
        out.append(f"{count(data['emptySteps'])} steps had nothing to train on and were passed over")
    for first, end in data.get("skippedData") or ():
        out.append(f"the data of steps {first} to {end - 1} was skipped after a divergence")
    if counts := data.get("counts"):
        out.append(_sampled(counts) if counts.get("samples") else _listed(counts))
    return [f"{name.upper()}: {sentence}" for sentence in out]


def _sampled(counts: Mapping[str, float]) -> str:
    """The samples of reinforcement learning, in a sentence."""
    flat, unfinished = counts.get("groups_without_advantage", 0), counts.get("unfinished", 0)
    return (
        f"{count(counts['samples'])} samples of {count(counts.get('prompts'))} prompts, "
        f"{count(counts.get('sampled_tokens'))} tokens, with a mean reward of "
        f"{counts.get('reward', 0.0) / counts['samples']:.3f}; in {count(flat)} groups all samples scored the same, "
        f"so there was nothing to learn; {count(unfinished)} samples came to no end"
    )


def _listed(counts: Mapping[str, float]) -> str:
    return ", ".join(f"{label(key).lower()} {count(value)}" for key, value in counts.items())


def _tasks(record: RunRecord) -> tuple[Block, ...]:
    """The tables of single tasks that an evaluation gives beside its metrics."""
    blocks: list[Block] = []
    for stage in TRAINING:
        evaluation = record.evaluations.get(stage)
        tasks = evaluation.tasks if evaluation else {}
        tasks = {name: values for name, values in tasks.items() if isinstance(values, Mapping)}
        columns = list(dict.fromkeys(key for values in tasks.values() for key, v in values.items() if _is_number(v)))
        if stage != "base" or not columns:
            continue
        rows = tuple((name, *(_plain(values.get(column)) for column in columns)) for name, values in tasks.items())
        head = ("Task", *(label(column) for column in columns))
        blocks.append(Table(head, rows, numeric=frozenset(range(1, len(head)))))
    return tuple(blocks)


def _compression(record: RunRecord) -> tuple[Block, ...]:
    """Bytes per token on each text; more is better."""
    data = record.compression
    sizes: Mapping[str, int] = data.get("vocabSize", {})
    blocks: list[Block] = []
    if data.get("texts"):
        head = ("Text", "Bytes", *(f"{_PEERS.get(peer, peer)}\n{count(n)} tokens" for peer, n in sizes.items()))
        rows = tuple(
            (text["name"], count(text["bytes"]), *(_bytes_per_token(text, peer) for peer in sizes))
            for text in data["texts"]
        )
        blocks.append(Paragraph("Bytes per token; below a peer's figure, how much more text our tokens hold."))
        blocks.append(Table(head, rows, numeric=frozenset(range(1, len(head)))))
    missing = tuple(f"{_PEERS.get(peer, peer)}: {why}" for peer, why in data.get("missing", {}).items())
    return (*blocks, Bullets(missing)) if missing else tuple(blocks)


def _bytes_per_token(text: Mapping[str, Any], peer: str) -> str:
    tokens: Mapping[str, int] = text["tokens"]
    if not tokens.get(peer):
        return "-"
    figure = f"{text['bytes'] / tokens[peer]:.2f}"
    if peer == "ours" or not tokens.get("ours"):
        return figure
    return f"{figure}\n{100 * (tokens[peer] / tokens['ours'] - 1):+.1f} %"


def _time(record: RunRecord) -> tuple[Block, ...]:
    rows, troubles = [], []
    gpus = any(stage.gpus or stage.spent.cost for stage in record.stages)
    for stage in record.stages:
        if stage.name in _CLOSING or not (stage.attempts or stage.made or stage.reused):
            continue
        paid = (str(stage.gpus or "-"), money(stage.spent.cost) if stage.spent.cost else "-") if gpus else ()
        rows.append((stage.name, _made(stage), duration(stage.seconds), str(len(stage.attempts) or "-"), *paid))
        troubles += [
            f"{stage.name}, attempt {attempt.number}: {attempt.reason}"
            + (f" ({attempt.message})" if attempt.message else "")
            + f" after {duration(attempt.duration)}"
            for attempt in stage.attempts
            if attempt.reason not in ("", "Succeeded")
        ]
        events = stage.history.events if stage.history else ()
        troubles += [
            f"{stage.name}, step {event.step}: {event.kind}, {event.message}"
            for event in events
            if event.kind == "divergence"
        ]
    if not rows:
        return ()
    head = ("Stage", "Output", "Time", "Attempts", *(("GPUs", "Cost") if gpus else ()))
    blocks: list[Block] = [Table(head, tuple(rows), numeric=frozenset(range(2, len(head))))]
    if any(stage.reused for stage in record.stages):
        blocks.append(Paragraph("The time and cost of what was reused were spent by an earlier run."))
    if troubles:
        blocks += [Paragraph("Attempts that did not succeed at once:"), Bullets(tuple(troubles))]
    return tuple(blocks)


def _made(stage: StageRecord) -> str:
    if stage.made and stage.reused:
        return f"{count(stage.made)} made, {count(stage.reused)} reused"
    if stage.made:
        why = f"\n{stage.explanation}" if stage.explanation and not stage.explanation.endswith(NEW) else ""
        return f"made{why}"
    return "reused" if stage.reused else stage.phase.lower() or "-"


def _total_cost(record: RunRecord) -> str:
    spent = record.spent
    if not spent.cost:
        return "$0 (no GPUs)" if not spent.gpu_hours else "$0"
    hours = f" for {spent.gpu_hours:,.1f} GPU hours" if spent.gpu_hours else ""
    wasted = [f"{money(lost)} of it {why}" for lost, why in ((spent.lost, "lost"), (spent.waiting, "waiting")) if lost]
    return ", ".join([f"{money(spent.cost)}{hours}", *wasted])


def _not_run(record: RunRecord) -> tuple[Block, ...]:
    items = []
    missing: dict[str, dict[str, list[str]]] = {}  # why -> metric -> stages
    for section, settings in record.spec.get("stages", {}).items():
        if isinstance(settings, Mapping) and settings.get("enabled") is False:
            items.append(f"{section}: disabled in the pipeline")
    for stage in record.stages:
        if stage.phase in ("Failed", "Blocked", "Cancelled", "Unselected"):
            items.append(f"{stage.name}: {stage.phase.lower()}" + (f", {stage.message}" if stage.message else ""))
    for stage in TRAINING:
        evaluation = record.evaluations.get(stage)
        for name, why in (evaluation.not_run if evaluation else {}).items():
            missing.setdefault(why, {}).setdefault(label(name), []).append(stage.upper())
    for why, metrics in missing.items():
        together: dict[str, list[str]] = {}  # stages -> metrics
        for metric, stages in metrics.items():
            together.setdefault(", ".join(stages), []).append(metric)
        items += [f"{', '.join(names)} ({stages}): {why}" for stages, names in together.items()]
    return (Bullets(tuple(items)),) if items else ()


def _environment(record: RunRecord) -> tuple[Block, ...]:
    data = record.environment
    gpus: dict[str, int] = {}
    for gpu in data.get("gpus") or ():
        name = f"{gpu['name']} ({size(gpu['memory'])})"
        gpus[name] = gpus.get(name, 0) + 1
    items = [
        ("Platform", data.get("platform")),
        ("CPUs", f"{data['cpus']} x {data.get('cpu')}" if data.get("cpus") else None),
        ("Memory", size(data["memory"]) if data.get("memory") else None),
        ("GPUs", ", ".join(f"{n} x {name}" for name, n in gpus.items()) or "none"),
        ("Python", data.get("python")),
        ("PyTorch", data.get("torch")),
        ("nanochat", data.get("nanochat")),
        ("Commit", data.get("commit")),
    ]
    return (Facts(tuple((name, str(value)) for name, value in items if value)),)


def _lineage(record: RunRecord) -> tuple[Block, ...]:
    shown = [ref for ref in record.manifests if ref.kind in ("tokenizer", "model", "evaluation")]
    rows = tuple(
        (ref, record.manifests[ref].key, record.manifests[ref].launch, date(record.manifests[ref].created))
        for ref in shown
    )
    if not rows:
        return ()
    others: dict[str, int] = {}
    for ref in record.manifests:
        if ref not in shown:
            others[ref.kind] = others.get(ref.kind, 0) + 1
    blocks: list[Block] = [Table(("Artifact", "Key", "Launch", "Made"), rows)]
    if others:
        blocks.append(
            Paragraph("Besides these: " + ", ".join(f"{n} of {kind}" for kind, n in sorted(others.items())) + ".")
        )
    return tuple(blocks)


def _release(release: Mapping[str, Any]) -> str:
    if not release.get("registered"):
        return f"Release: {release.get('reason', 'not registered')}."
    alias = release.get("alias") or {}
    moved = "became" if alias.get("moved") else "did not become"
    return (
        f"Release: version {release.get('version')} of {release.get('model')} {moved} champion ({alias.get('reason')})."
    )


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _plain(value: Any) -> str:
    if isinstance(value, bool) or not _is_number(value):
        return "-" if value is None else str(value)
    return count(value) if isinstance(value, int) else f"{value:.4f}" if abs(value) < 10 else number(value)
