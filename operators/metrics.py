"""The controller's Prometheus metrics."""

from __future__ import annotations

from collections.abc import Mapping

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from nanochat.pipeline.outcomes import Outcome
from operators.attempts import JobAttempt

REGISTRY = CollectorRegistry()
reconciles = Counter("nanochat_reconciles", "Reconciliations of pipelines.", ["result"], registry=REGISTRY)
reconcile_seconds = Histogram("nanochat_reconcile_seconds", "Seconds that a reconciliation takes.", registry=REGISTRY)
errors = Counter("nanochat_errors", "Errors of reconciliations by what failed.", ["kind"], registry=REGISTRY)
api_seconds = Histogram("nanochat_api_seconds", "Requests to the API server.", ["verb"], registry=REGISTRY)
attempts = Counter("nanochat_attempts", "Attempts that ended.", ["stage", "outcome"], registry=REGISTRY)
gpu_seconds = Counter(
    "nanochat_gpu_seconds", "GPU time of attempts: productive, lost, or waiting.", ["stage", "kind"],
    registry=REGISTRY,
)  # fmt: skip
slow = Gauge(
    "nanochat_reconciles_slow",
    "Reconciliations that have lasted for 15 s or longer, or wait for such.",
    registry=REGISTRY,
)
pipelines = Gauge("nanochat_pipelines", "Pipelines by phase.", ["phase"], registry=REGISTRY)
serving_version = Gauge("nanochat_serving_version", "The version that is to be served.", ["version"], registry=REGISTRY)
serving_rejected = Counter("nanochat_serving_rejected", "Versions that did not become ready.", registry=REGISTRY)
node_suspicion = Gauge(
    "nanochat_node_suspicion", "How much speaks against nodes that attempts stalled on.", ["node"], registry=REGISTRY
)
tracked = Counter("nanochat_tracked", "Runs that MLflow was told of, or was not.", ["result"], registry=REGISTRY)


def attempt_ended(record: JobAttempt, outcome: Outcome) -> None:
    """Count an attempt and the time of its GPUs."""
    attempts.labels(stage=record.stage, outcome=str(outcome.reason)).inc()
    gpu_seconds.labels(stage=record.stage, kind="lost").inc(record.gpus * record.lost)
    gpu_seconds.labels(stage=record.stage, kind="waiting").inc(record.gpus * record.held)
    gpu_seconds.labels(stage=record.stage, kind="productive").inc(record.gpus * (record.used - record.lost))


def set_pipelines(phases: Mapping[str, int]) -> None:
    """The number of pipelines in each phase. No scrape meets fewer phases than there are."""
    for sample in next(iter(pipelines.collect())).samples:
        if sample.labels["phase"] not in phases:
            pipelines.remove(sample.labels["phase"])
    for phase, count in phases.items():
        pipelines.labels(phase=phase).set(count)


def set_suspicion(scores: Mapping[str, float]) -> None:
    """The nodes that are suspected."""
    node_suspicion.clear()
    for node, score in scores.items():
        node_suspicion.labels(node=node).set(score)


def set_serving(version: str) -> None:
    """The version that the inference server is told to serve; '' is none."""
    serving_version.clear()
    if version:
        serving_version.labels(version=version).set(1)
