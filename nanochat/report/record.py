"""Everything that is known of a run, gathered from storage, so that a report can be made again at any time.

    record = gather(store, artifacts, run="runs/default.demo/1f0c...")

What is missing is left out, never guessed: a run that is under way, or that failed, has a record too.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from nanochat.parse.json_text import read_json
from nanochat.pipeline.attempts import AttemptRecord, read_attempts
from nanochat.pipeline.graph import TOKENIZER
from nanochat.pipeline.ref import ArtifactRef
from nanochat.pipeline.run_status import RunStatus, StageRunStatus, read_declaration, read_status
from nanochat.pipeline.runs import RunPaths
from nanochat.pipeline.spending import NOTHING, Spending
from nanochat.spec.chatpipeline import USER
from nanochat.spec.errors import StorageError
from nanochat.spec.pipeline import TRAINING
from nanochat.spec.pods import hide_values
from nanochat.storage import Artifacts, Manifest, Store
from nanochat.tracking.environment import environment as this_environment
from nanochat.tracking.journal import History, JournalReader

log = logging.getLogger(__name__)

LARGEST_RESULTS = 64 << 20  # bytes of an artifact's results


@dataclass(frozen=True, slots=True)
class Result:
    """A measured figure: a mean over `n`, with its standard error where it has one."""

    value: float
    n: int | None = None
    stderr: float | None = None


@dataclass(frozen=True, slots=True)
class Part:
    """A stretch of a completion: "text", "python" (a call of the tool) or "python_output"."""

    kind: str
    text: str


@dataclass(frozen=True, slots=True)
class Sample:
    """A text and a model's continuation of it."""

    prompt: str  # '' where the text is part of the completion
    completion: tuple[Part, ...]


@dataclass(frozen=True, slots=True)
class Evaluation:
    """Contents of an evaluation's results.json."""

    metrics: Mapping[str, Result]
    not_run: Mapping[str, str] = field(default_factory=dict)  # name -> why
    tasks: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    samples: tuple[Sample, ...] = ()


@dataclass(frozen=True, slots=True)
class StageRecord:
    """One stage of the run."""

    name: str
    phase: str  # as in status
    message: str  # why, where status says so
    explanation: str  # why its output had to be made
    attempts: tuple[AttemptRecord, ...] = ()  # this run's
    made: int = 0  # outputs that this run made
    reused: int = 0  # outputs that were there
    seconds: float | None = None  # of work, also where another run did it
    gpus: int = 0  # as declared
    spent: Spending = NOTHING  # for that work: attempts may have had fewer nodes
    history: History | None = None


@dataclass(frozen=True, slots=True)
class RunRecord:
    """One run of a pipeline."""

    name: str
    namespace: str
    folder: str
    phase: str
    spec: Mapping[str, Any]  # the pipeline's spec, with YAML's names
    horizon: Mapping[str, Any]  # parameters, steps, tokens, shards, flops
    environment: Mapping[str, Any]
    stages: tuple[StageRecord, ...]
    evaluations: Mapping[str, Evaluation]  # by the stage that trained the model
    compression: Mapping[str, Any]
    manifests: Mapping[ArtifactRef, Manifest]
    models: Mapping[str, str]  # stage -> address of its weights
    release: Mapping[str, Any]  # release.json, where there is one
    user: str = ""  # who began it, where that is known

    @property
    def uid(self) -> str:
        """The run's id."""
        return self.folder.rsplit("/", 1)[-1]

    @property
    def spent(self) -> Spending:
        """The price of this run's attempts, as far as they have ended."""
        return spent_on((a for stage in self.stages for a in stage.attempts), self.spec)

    @property
    def started(self) -> float | None:
        """When its first attempt began."""
        return min((a.started for stage in self.stages for a in stage.attempts), default=None)

    @property
    def ended(self) -> float | None:
        """When its last attempt ended."""
        return max((a.ended for stage in self.stages for a in stage.attempts if a.ended is not None), default=None)

    @property
    def pretrained(self) -> bool:
        """Whether pretraining is done: until then the horizon is a plan."""
        return "base" in self.models and bool(self.horizon.get("tokens"))

    @property
    def trained(self) -> tuple[str, ...]:
        """The stages with weights, in their order."""
        return tuple(stage for stage in TRAINING if stage in self.models)

    @property
    def last_trained(self) -> str | None:
        """The last stage with weights: whose model is released."""
        return self.trained[-1] if self.trained else None

    def stage(self, name: str) -> StageRecord | None:
        """A stage by its name."""
        return next((stage for stage in self.stages if stage.name == name), None)


def gather(
    store: Store, artifacts: Artifacts, *, run: str, readers: dict[str, JournalReader] | None = None
) -> RunRecord:
    """Collect a run's record; `run` is its folder, runs/<namespace>.<name>/<uid>. StorageError where there is none.

    With `readers` (by run) kept from one call to the next, only what is new in the journals is read.
    """
    paths = RunPaths(run)
    pipeline = hide_values(read_declaration(store, paths))  # an earlier version stored the values
    metadata = pipeline.get("metadata", {})
    status = read_status(store, paths) or RunStatus(metadata.get("name", ""), metadata.get("namespace", ""))
    keys = status.keys()
    found = artifacts.find_all((ref.kind, key) for ref, key in keys.items())
    manifests = {ref: found[pair] for ref, key in keys.items() if (pair := (ref.kind, key)) in found}
    readers = {} if readers is None else readers
    stages = tuple(
        _stage(store, readers, paths, item, spec=pipeline["spec"], manifests=manifests) for item in status.stages
    )
    return RunRecord(
        name=metadata.get("name", ""),
        namespace=metadata.get("namespace", ""),
        folder=run,
        phase=status.phase,
        spec=pipeline["spec"],
        horizon=status.horizon,
        environment=(environment := _environment(stages)),
        stages=stages,
        evaluations={
            ref.name: evaluation
            for ref, manifest in manifests.items()
            if ref.kind == "evaluation" and (evaluation := _evaluation(artifacts, manifest)) is not None
        },
        compression=_artifact_json(artifacts, manifests.get(TOKENIZER), "compression.json") or {},
        manifests=manifests,
        models={ref.name: artifacts.uri(manifest) for ref, manifest in manifests.items() if ref.kind == "model"},
        release=_artifact_json(artifacts, manifests.get(ArtifactRef.of("release", "release")), "release.json") or {},
        user=str((metadata.get("annotations") or {}).get(USER) or environment.get("user") or ""),
    )


def evaluation_from(data: Mapping[str, Any]) -> Evaluation:
    """The content of results.json."""
    metrics = {}
    for name, value in data.get("metrics", {}).items():
        value = value if isinstance(value, Mapping) else {"value": value}
        if value.get("value") is not None:
            n, stderr = value.get("n"), value.get("stderr")
            metrics[name] = Result(
                float(value["value"]), None if n is None else int(n), None if stderr is None else float(stderr)
            )
    return Evaluation(
        metrics=metrics,
        not_run=dict(data.get("notRun") or {}),
        tasks=dict(data.get("tasks") or {}),
        samples=tuple(Sample(item["prompt"], _parts(item["completion"])) for item in data.get("samples") or ()),
    )


def _parts(content: str | list[dict[str, str]]) -> tuple[Part, ...]:
    """A completion has the shape of a message's content: text, or parts where the tool was used."""
    if isinstance(content, str):
        return (Part("text", content),)
    return tuple(Part(part["type"], part["text"]) for part in content)


def _stage(
    store: Store,
    readers: dict[str, JournalReader],
    paths: RunPaths,
    status: StageRunStatus,
    *,
    spec: Mapping[str, Any],
    manifests: Mapping[ArtifactRef, Manifest],
) -> StageRecord:
    name = status.stage
    attempts = tuple(read_attempts(store, paths, name))
    launches = {attempt.launch for attempt in attempts}
    outputs = [manifests[ref] for ref in status.keys if ref in manifests]
    made = sum(manifest.launch in launches for manifest in outputs)
    # Work that was reused is described by the run that did it.
    source = paths if made or not outputs else RunPaths(str(outputs[-1].metadata.get("run") or paths.root))
    reader = readers.setdefault(source.root, JournalReader(store, source.root))
    history = reader.history(name)
    worked = attempts if source == paths else read_attempts(store, source, name)
    seconds = sum(attempt.duration for attempt in worked) or history.seconds
    return StageRecord(
        name=name,
        phase=status.phase,
        message=status.message,
        explanation=status.why,
        attempts=attempts,
        made=made,
        reused=len(outputs) - made,
        seconds=seconds or None,
        gpus=_gpus(spec, name),
        spent=spent_on(worked or [AttemptRecord(stage=name, number=1, used=history.seconds)], spec),
        history=history if history.metrics or history.events else None,
    )


def stage_settings(spec: Mapping[str, Any], stage: str) -> Mapping[str, Any]:
    """A stage's settings in a spec with YAML's names; {} where it has none."""
    section = "evalBase" if stage == "eval-base" else "evalChat" if stage.startswith("eval-") else stage
    return spec.get("stages", {}).get(section, {})


def _gpus(spec: Mapping[str, Any], stage: str) -> int:
    settings = stage_settings(spec, stage)
    return int(settings.get("gpusPerNode", 0)) * int(settings.get("nodes", 1))


def spent_on(attempts: Iterable[AttemptRecord], spec: Mapping[str, Any]) -> Spending:
    """The price of attempts as far as they have ended. Records of before 0.3 do not say how many GPUs they had."""

    def known(attempt: AttemptRecord) -> AttemptRecord:
        if attempt.gpus or attempt.hourly is not None:
            return attempt
        settings = stage_settings(spec, attempt.stage)
        nodes = attempt.nodes or int(settings.get("nodes", 1))
        return replace(attempt, gpus=nodes * int(settings.get("gpusPerNode", 0)))

    return Spending.of(map(known, attempts), (spec.get("cost") or {}).get("gpuHour"), now=0.0)


def _environment(stages: tuple[StageRecord, ...]) -> Mapping[str, Any]:
    """The environment that the first training stage stored, for the work is done there; else this machine's."""
    for stage in sorted(stages, key=lambda stage: stage.name not in TRAINING):
        for event in reversed(stage.history.events if stage.history else ()):
            if event.kind == "environment":
                return event.data
    return this_environment()


def _evaluation(artifacts: Artifacts, manifest: Manifest) -> Evaluation | None:
    data = _artifact_json(artifacts, manifest, "results.json")
    return None if data is None else evaluation_from(data)


def _artifact_json(artifacts: Artifacts, manifest: Manifest | None, name: str) -> Any:
    if manifest is None or not any(record.path == name for record in manifest.files):
        return None
    try:
        return read_json((artifacts.fetch(manifest, [name]) / name).read_bytes(), limit=LARGEST_RESULTS)
    except (StorageError, ValueError) as error:
        log.warning("the report is made without %s: %s", name, error)
        return None
