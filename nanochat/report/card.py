"""The model card: what a released model is, what it scored and what it must not be trusted with."""

from __future__ import annotations

from nanochat.data.questions import read_questions
from nanochat.pipeline.ref import ArtifactRef
from nanochat.report.document import Block, Bullets, Document, Facts, Paragraph, Section
from nanochat.report.markdown import render_markdown
from nanochat.report.record import RunRecord
from nanochat.report.scores import stage_table
from nanochat.report.settings import provenance, rates_of
from nanochat.tracking.quantities import count


def render_card(record: RunRecord) -> str:
    """The card as Markdown."""
    stage = record.last_trained or "none"
    model, environment = record.spec.get("model", {}), record.environment
    shape = [
        ("Parameters", count(record.horizon.get("parameters"))),
        ("Blocks", str(model.get("depth", "-"))),
        ("Context", f"{count(model.get('sequenceLength'))} tokens"),
        ("Vocabulary", count(record.spec.get("stages", {}).get("tokenizer", {}).get("vocabSize"))),
        ("Last training stage", stage.upper()),
        ("Weights", record.models.get(stage, "-")),
        ("Code", f"nanochat {environment.get('nanochat') or '-'}, commit {environment.get('commit') or 'unknown'}"),
        ("Licence of the code", "Apache-2.0; the training data has licences of its own"),
    ]
    table = stage_table(record)
    results: tuple[Block, ...] = (table,) if table else (Paragraph("Not evaluated."),)
    document = Document(
        title=f"Model card: {record.name}",
        subtitle=f"A chat model that the pipeline {record.namespace}/{record.name} trained (run {record.uid}).",
        sections=(
            Section("Model", (Facts(tuple(shape)),)),
            Section("Data", (Facts((*provenance(record), *_mixtures(record))),)),
            *([Section("Training", (rates,))] if (rates := rates_of(record)) else []),
            Section("Results", results),
            *_questions(record, stage),
            Section("Use and limits", (Paragraph(
                "A small model for study and experiments. It states false things with confidence, knows nothing "
                "after its training text, mostly understands English, and was not made safe for unattended use. "
                "Check what matters."
            ),)),
        ),
    )  # fmt: skip
    return render_markdown(document)


def _questions(record: RunRecord, stage: str) -> list[Section]:
    """Examples, where the model was trained to answer questions."""
    manifest = record.manifests.get(ArtifactRef.of("model", stage))
    questions = read_questions(manifest.metadata) if manifest else ()
    return [Section("Questions to ask it", (Bullets(questions),))] if questions else []


def _mixtures(record: RunRecord) -> list[tuple[str, str]]:
    out = []
    for stage, name in (("mid", "mixture"), ("sft", "mixture"), ("rl", "tasks")):
        settings = record.spec.get("stages", {}).get(stage, {})
        if stage in record.models and settings.get(name):
            out.append((stage.upper(), ", ".join(dict.fromkeys(part["task"] for part in settings[name]))))
    return out
