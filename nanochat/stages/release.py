"""The release stage: registers a model version in MLflow, and makes it `champion` where the gates hold.

What happened is in release.json: version, gates with the values they saw, whether the alias moved and why. Where MLflow
cannot be reached, release.json in the run's folder says 'not registered' and the stage fails as infrastructure does:
it is tried again, and a version that was registered is found, not registered twice.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from nanochat.model.artifact import fingerprint
from nanochat.parse.address import shown
from nanochat.parse.json_text import read_json
from nanochat.pipeline.release_record import ReleaseRecord
from nanochat.pipeline.runs import RunPaths
from nanochat.pipeline.task_selection import known_metrics
from nanochat.report.card import render_card
from nanochat.report.record import LARGEST_RESULTS, Evaluation, evaluation_from, gather
from nanochat.report.tracked import tracked_run
from nanochat.spec.errors import NanochatError, StorageError
from nanochat.spec.gates import Gate, parse
from nanochat.spec.pipeline import TRAINING
from nanochat.stages.context import StageContext
from nanochat.storage.records import read_object
from nanochat.tracking.mlflow import Projection
from nanochat.tracking.registry import ALIAS, FOLDER_TAG, PIPELINE_TAG, Candidate, Registry, Version


@dataclass(frozen=True, slots=True)
class Results:
    """The figures that gates look at: by metric (the last stage's), and by `<stage>.<metric>`."""

    metrics: Mapping[str, float]
    not_run: Mapping[str, str]

    @classmethod
    def of(cls, evaluations: Mapping[str, Evaluation]) -> Results:
        """Merge the evaluations of the stages in the order of training."""
        metrics: dict[str, float] = {}
        not_run: dict[str, str] = {}
        for stage in (stage for stage in TRAINING if stage in evaluations):
            for name, result in evaluations[stage].metrics.items():
                metrics[name] = metrics[f"{stage}.{name}"] = result.value
            for name, why in evaluations[stage].not_run.items():
                not_run[name] = not_run[f"{stage}.{name}"] = why
        return cls(metrics, {name: why for name, why in not_run.items() if name not in metrics})


def run(context: StageContext) -> None:
    """Register, judge, and perhaps promote."""
    if not context.is_main:
        return
    context.progress.update(phase="registering")
    gates = [parse(text) for text in context.settings.gates]
    output, path = context.outputs[0], RunPaths(context.plan.run).release
    model = context.settings.model
    try:
        release = _release(context, gates, model)
    except StorageError as error:
        context.store.write_json(path, _not_registered(context, model, f"{error.message}; it is tried again"))
        raise
    context.store.write_json(path, release)
    record = ReleaseRecord(
        model=model,
        version=release["version"] or "",
        promoted=release["alias"]["moved"],
        reason=release["alias"]["reason"],
        registry=shown(context.plan.tracking or ""),
    )
    with context.writer(output) as writer:
        (writer.folder / "release.json").write_text(json.dumps(release, indent=1) + "\n", encoding="utf-8")
        context.commit(writer, output, metadata=record.metadata())
    print(f"Release: {record.sentence}. Details: {context.store.uri(path)}")


def _release(context: StageContext, gates: list[Gate], model: str) -> dict[str, Any]:
    if context.plan.tracking is None:
        return _not_registered(context, model, "the store profile names no tracking server")
    registry = Registry(context.plan.tracking)
    results = Results.of(_evaluations(context))
    candidate = _candidate(context, results)
    champion = registry.champion(model)
    if champion is not None and champion.is_of(candidate):  # an earlier attempt got this far
        return _record(context, model, champion, _earlier_gates(context), moved=True, reason="all gates hold")
    outcomes = [
        gate.evaluate(
            results.metrics,
            champion.metrics if champion else None,
            not_run=results.not_run,
            of_champion=known_metrics(),
        ).to_dict()
        for gate in gates
    ]
    version = registry.register(model, candidate)
    failed = [outcome["expression"] for outcome in outcomes if not outcome["holds"]]
    if failed:
        reason = f"these gates do not hold: {'; '.join(failed)}"
        return _record(context, model, version, outcomes, moved=False, reason=reason, previous=champion)
    reason = "all gates hold" if gates else "there are no gates"
    release = _record(context, model, version, outcomes, moved=True, reason=reason, previous=champion)
    context.store.write_json(RunPaths(context.plan.run).release, release | {"registered": False})
    registry.promote(model, version.version)
    return release


def _candidate(context: StageContext, results: Results) -> Candidate:
    manifest = context.manifest(context.refs("model")[0])
    return Candidate(
        source=context.artifacts.uri(manifest),
        key=context.outputs[0].key,
        fingerprint=fingerprint(manifest),
        run_id=_mlflow_run(context),
        metrics=results.metrics,
        tags={
            PIPELINE_TAG: f"{context.plan.namespace}.{context.plan.name}",
            FOLDER_TAG: context.plan.run,
            **{f"key.{ref}": key for ref, key in context.plan.inputs.items()},
            **{f"key.{ref}": key for ref, key in manifest.inputs.items() if ref.startswith("model/")},
        },
        card=_card(context),
    )


def _mlflow_run(context: StageContext) -> str:
    """The id of this run in MLflow. It is made here where those who tell MLflow of runs have not come to it yet."""
    uri = context.plan.tracking or ""
    record = gather(context.store, context.artifacts, run=context.plan.run)
    try:
        return Projection(context.store, uri).ensure(context.plan.run, tracked_run(record))
    except NanochatError:
        raise
    except Exception as error:  # MLflow, its database and its HTTP client raise families of their own
        raise StorageError(f"the tracking server {shown(uri)} did not take the run: {error}") from error


def _evaluations(context: StageContext) -> dict[str, Evaluation]:
    out = {}
    for ref in context.refs("evaluation"):
        path = context.fetch(ref, ["results.json"]) / "results.json"
        out[ref.name] = evaluation_from(read_json(path.read_bytes(), limit=LARGEST_RESULTS))
    return out


def _card(context: StageContext) -> str:
    if context.has("report/report"):
        path = context.fetch("report/report", ["model-card.md"]) / "model-card.md"
        return path.read_text(encoding="utf-8")
    return render_card(gather(context.store, context.artifacts, run=context.plan.run))


def _earlier_gates(context: StageContext) -> list[dict[str, Any]]:
    found = read_object(context.store, RunPaths(context.plan.run).release) or {}
    return found.get("gates", [])


def _record(
    context: StageContext,
    model: str,
    version: Version,
    gates: list[dict[str, Any]],
    *,
    moved: bool,
    reason: str,
    previous: Version | None = None,
) -> dict[str, Any]:
    return {
        "registered": True,
        "model": model,
        "version": version.version,
        "source": version.source,
        "key": context.outputs[0].key,
        "gates": gates,
        "alias": {
            "name": ALIAS, "moved": moved, "reason": reason, "previous": previous.version if previous else None,
        },
    }  # fmt: skip


def _not_registered(context: StageContext, model: str, reason: str) -> dict[str, Any]:
    return {
        "registered": False, "reason": f"not registered: {reason}", "model": model, "version": None,
        "key": context.outputs[0].key, "gates": [],
        "alias": {"name": ALIAS, "moved": False, "reason": reason},
    }  # fmt: skip
