"""The journal's projection into MLflow: one parent run a pipeline, one nested run a stage.

    projection = Projection(store, uri)
    projection.sync(run_folder, TrackedRun(...))     # as often as wanted, and once at the end; True when all is there

It is idempotent: runs are found by their tags (`nanochat.run`, `nanochat.stage`), what was sent is known by reading it
back, and a point that is there is not sent again. It may be killed at any moment and be called by another process
later. An unreachable server costs two seconds and one warning, and what was missed is sent by the next `sync`.
A step that was run again with another value (after a divergence) appears in MLflow with both; the journal has the
final lineage alone. Large files stay in storage; MLflow gets reports and plots.
"""

from __future__ import annotations

import hashlib
import json
import logging
import math
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nanochat.storage import Store
from nanochat.storage.failures import Damaged
from nanochat.storage.records import read_object
from nanochat.tracking.client import connect, experiment_id
from nanochat.tracking.journal import SYSTEM, JournalReader, system_metrics

if TYPE_CHECKING:
    from mlflow.entities import DatasetInput, Run
    from mlflow.tracking import MlflowClient

log = logging.getLogger(__name__)

EXPERIMENT = "nanochat"
RUN_TAG, STAGE_TAG = "nanochat.run", "nanochat.stage"
HIDDEN = "mlflow.nanochat."  # begins the tags that are for programs: MLflow's pages show none that begin with "mlflow."
LARGEST_FILE = 16 << 20  # bytes of a report or a plot
# MLflow's limits.
_VALUE_LENGTH, _TAG_LENGTH, _BATCH_METRICS, _BATCH_OTHERS = 6000, 5000, 1000, 100
_DATA_LENGTH, _DIGEST_LENGTH = 500, 36
_STATUS = {"running": "RUNNING", "succeeded": "FINISHED", "failed": "FAILED", "stopped": "KILLED"}


@dataclass(frozen=True, slots=True)
class TrackedData:
    """A data set that a stage read, as MLflow lists it among the run's inputs."""

    name: str
    digest: str  # of its content; the first 36 characters are kept
    context: str  # training, validation or evaluation
    source_type: str
    source: Mapping[str, Any]
    profile: Mapping[str, Any] = field(default_factory=dict)  # what is counted of it


@dataclass(frozen=True, slots=True)
class TrackedStage:
    """One stage as MLflow shows it. Its metrics over steps, and those of its machines, come from the journals."""

    name: str
    status: str  # running, succeeded, failed or stopped
    started: float  # seconds since the epoch
    ended: float | None = None
    params: Mapping[str, Any] = field(default_factory=dict)
    tags: Mapping[str, str] = field(default_factory=dict)
    data: tuple[TrackedData, ...] = ()


@dataclass(frozen=True, slots=True)
class TrackedRun:
    """One run of a pipeline as MLflow shows it."""

    name: str  # tells it from the pipeline's other runs
    uid: str
    status: str
    started: float
    ended: float | None = None
    params: Mapping[str, Any] = field(default_factory=dict)
    tags: Mapping[str, str] = field(default_factory=dict)
    results: Mapping[str, float] = field(default_factory=dict)  # by <stage>.<metric>; costs in USD
    stages: tuple[TrackedStage, ...] = ()
    files: tuple[str, ...] = ()  # paths under the store's root of what is shown: the report, its plots


class Projection:
    """Sends runs to one tracking server. It keeps what it has read and sent, so a long-lived one does little work."""

    def __init__(
        self,
        store: Store,
        uri: str,
        *,
        experiment: str = EXPERIMENT,
        readers: dict[str, JournalReader] | None = None,
    ) -> None:
        """`readers`, by the run's folder, may be shared with others who read journals."""
        self._store = store
        self._uri = uri
        self._experiment = experiment
        self._client: MlflowClient | None = None
        self._readers: dict[str, JournalReader] = {} if readers is None else readers
        self._machines: dict[str, JournalReader] = {}  # of the journals of machines, by the run's folder
        self._sent: dict[str, dict[str, set[tuple[int, float | str]]]] = {}  # run id -> metric -> (step, value)
        self._refused = False  # a name, which was said
        self._warned = False
        self.trouble = ""  # why the last could not be sent

    def sync(self, folder: str, run: TrackedRun) -> bool:
        """Bring MLflow up to date with a run; False (and one warning) where it could not be done now."""
        try:
            return self._sync(folder, run)
        except Exception as error:  # whatever MLflow, its database or its server raise: none of it may stop a run
            self._client = None
            self._sent.clear()
            self.trouble = str(error) or type(error).__name__
            if not self._warned:
                log.warning("%s could not be sent to MLflow; it will be tried again: %s", run.name, error)
                self._warned = True
            return False

    def _sync(self, folder: str, run: TrackedRun) -> bool:
        reader = self._readers.setdefault(folder, JournalReader(self._store, folder))
        machines = self._machines.setdefault(folder, JournalReader(self._store, folder, kind=SYSTEM))
        digest = _digest([self._uri, self._experiment, asdict(run), reader.pieces(), machines.pieces()])
        if _field(self._store, marker(folder), "digest") == digest:
            return True  # nothing is new: MLflow is not even imported
        client = self._client = self._client or connect(self._uri)
        experiment = experiment_id(client, self._uri, self._experiment)
        parent = self._find_or_create(folder, experiment, run, None)
        self._update(parent, run.params, run.tags)
        self._send(parent, [(name, 0, value, run.ended or run.started) for name, value in run.results.items()])
        for stage in run.stages:
            nested = self._find_or_create(folder, experiment, run, stage)
            self._update(nested, stage.params, {**stage.tags, "mlflow.parentRunId": parent.info.run_id})
            self._send_data(nested, stage.data)
            measured = {**reader.history(stage.name).metrics, **system_metrics(machines, stage.name, stage.started)}
            points = [
                (name, point.step, point.value, point.time) for name, series in measured.items() for point in series
            ]
            self._send(nested, points)
            self._end(nested, stage.status, stage.ended)
        self._send_files(parent, run.files)
        self._end(parent, run.status, run.ended)
        told = {"digest": digest, "experiment": experiment, "run": parent.info.run_id}
        self._store.write_json(marker(folder), told)
        self._warned = False
        return True

    def ensure(self, folder: str, run: TrackedRun) -> str:
        """The id of the MLflow run of a pipeline's run, which is made where there is none yet."""
        client = self._client = self._client or connect(self._uri)
        experiment = experiment_id(client, self._uri, self._experiment)
        return self._find_or_create(folder, experiment, run, None).info.run_id

    def _find_or_create(self, folder: str, experiment: str, run: TrackedRun, stage: TrackedStage | None) -> Run:
        assert self._client is not None
        tags = {RUN_TAG: run.uid, STAGE_TAG: stage.name if stage else ""}
        path = f"{folder}/mlflow/{_digest([self._uri, experiment, tags])[:16]}.json"
        found = find_run(self._client, experiment, run.uid, stage.name if stage else "")
        if found is not None:
            return self._agree(path, found, tags)
        name = f"{stage.name} of {run.name}" if stage else run.name  # pages cut long names
        started = stage.started if stage else run.started
        made = self._client.create_run(experiment, start_time=_milliseconds(started), run_name=name, tags=tags)
        agreed = self._agree(path, made, tags)
        if agreed.info.run_id != made.info.run_id:
            self._client.delete_run(made.info.run_id)
        return agreed

    def _agree(self, path: str, run: Run, tags: Mapping[str, str]) -> Run:
        """The run that counts: that of the first to say so in the store.

        A run that was found is asked about too: it may be one of several that processes made at once, about to be
        deleted by whoever made it.
        """
        assert self._client is not None
        known = _field(self._store, path, "run")
        if known is None and self._store.create(path, json.dumps({"run": run.info.run_id}).encode()):
            return run
        known = known or _field(self._store, path, "run")
        if known == run.info.run_id:
            return run
        try:
            first = self._client.get_run(str(known))
        except Exception:  # the file tells of a run that is gone, or of nothing
            first = None
        # The file may name a run of others: a run that has not our tags is none of ours.
        ours = first is not None and all(first.data.tags.get(name) == value for name, value in tags.items())
        if first is None or not ours or first.info.lifecycle_stage != "active":
            self._store.write_json(path, {"run": run.info.run_id})
            return run
        return first

    def _update(self, run: Run, params: Mapping[str, Any], tags: Mapping[str, str]) -> None:
        from mlflow.entities import Param, RunTag

        assert self._client is not None
        wanted = {name: value[:_VALUE_LENGTH] for name, value in flatten(params).items() if self._takes(name)}
        changes = {name: str(value)[:_TAG_LENGTH] for name, value in tags.items() if self._takes(name)}
        for name, value in wanted.items():  # MLflow's params never change: an edited pipeline's new value is a tag
            if run.data.params.get(name, value) != value:
                changes[f"changed.{name}"] = value[:_TAG_LENGTH]
        new = [Param(name, value) for name, value in wanted.items() if name not in run.data.params]
        for batch in _batches(new, _BATCH_OTHERS):
            self._client.log_batch(run.info.run_id, params=batch)
        changed = [RunTag(name, value) for name, value in changes.items() if run.data.tags.get(name) != value]
        for batch in _batches(changed, _BATCH_OTHERS):
            self._client.log_batch(run.info.run_id, tags=batch)

    def _send(self, run: Run, points: Sequence[tuple[str, int, float, float]]) -> None:
        from mlflow.entities import Metric

        assert self._client is not None
        taken = {name for name in {point[0] for point in points} if self._takes(name)}
        points = [point for point in points if point[0] in taken]
        if not points:
            return
        run_id = run.info.run_id
        if run_id not in self._sent:
            self._sent[run_id] = {
                name: {(point.step, _identity(point.value)) for point in self._client.get_metric_history(run_id, name)}
                for name in run.data.metrics
            }
        sent = self._sent[run_id]
        new = [point for point in points if (point[1], _identity(point[2])) not in sent.setdefault(point[0], set())]
        for batch in _batches(new, _BATCH_METRICS):
            metrics = [Metric(name, value, _milliseconds(time), step) for name, step, value, time in batch]
            self._client.log_batch(run_id, metrics=metrics)
            for name, step, value, _ in batch:
                sent[name].add((step, _identity(value)))

    def _send_data(self, run: Run, data: Sequence[TrackedData]) -> None:
        from mlflow.entities import InputTag
        from mlflow.entities.dataset import Dataset
        from mlflow.entities.dataset_input import DatasetInput
        from mlflow.utils.mlflow_tags import MLFLOW_DATASET_CONTEXT

        assert self._client is not None
        known = {(each.dataset.name, each.dataset.digest) for each in _inputs(run)}
        for each in data:
            name, digest = each.name[:_DATA_LENGTH], each.digest[:_DIGEST_LENGTH]
            if (name, digest) in known:
                continue
            known.add((name, digest))
            dataset = Dataset(
                name, digest, each.source_type, json.dumps(each.source), profile=json.dumps(each.profile) or None
            )
            tags = [InputTag(MLFLOW_DATASET_CONTEXT, each.context)]
            self._client.log_inputs(run.info.run_id, [DatasetInput(dataset, tags)])

    def _send_files(self, run: Run, files: Sequence[str]) -> None:
        assert self._client is not None
        for path in files:
            name = path.rsplit("/", 1)[-1]
            tag = f"{HIDDEN}file.{name}"
            if not self._takes(tag):
                continue
            content = self._store.read(path, LARGEST_FILE)
            digest = hashlib.sha256(content).hexdigest()
            if run.data.tags.get(tag) == digest:
                continue
            with tempfile.TemporaryDirectory() as folder:
                (Path(folder) / name).write_bytes(content)
                self._client.log_artifact(run.info.run_id, str(Path(folder) / name), "report")
            self._client.set_tag(run.info.run_id, tag, digest)

    def _takes(self, name: str) -> bool:
        """Whether MLflow takes the name of a metric, a param or a tag; the first that it does not take is told of."""
        from mlflow.utils.validation import (
            MAX_ENTITY_KEY_LENGTH,
            path_not_unique,
            validate_param_and_metric_name,
        )

        if len(name) <= MAX_ENTITY_KEY_LENGTH and validate_param_and_metric_name(name) and not path_not_unique(name):
            return True
        if not self._refused:
            self._refused = True
            log.warning("%.300r is no name that MLflow takes: it, and others like it, are not sent there", name)
        return False

    def _end(self, run: Run, status: str, ended: float | None) -> None:
        assert self._client is not None
        wanted = _STATUS[status]
        if run.info.status == wanted:
            return
        if wanted == "RUNNING":
            self._client.update_run(run.info.run_id, status=wanted)
        else:
            end = None if ended is None else _milliseconds(ended)
            self._client.set_terminated(run.info.run_id, wanted, end_time=end)


def sync(store: Store, folder: str, run: TrackedRun, *, uri: str) -> bool:
    """Bring MLflow up to date with one run, once; see `Projection.sync`."""
    return Projection(store, uri).sync(folder, run)


def find_run(client: MlflowClient, experiment: str, uid: str, stage: str = "") -> Run | None:
    """The MLflow run of a pipeline's run ('' as stage) or of one of its stages; the oldest, should two have raced."""
    query = f"tags.`{RUN_TAG}` = '{uid}' and tags.`{STAGE_TAG}` = '{stage}'"
    found = client.search_runs([experiment], query, order_by=["attributes.start_time ASC"], max_results=1)
    return found[0] if found else None


def marker(folder: str) -> str:
    """The path of what MLflow was told last of a run: a digest, and its experiment and run there."""
    return f"{folder}/mlflow.json"


def _inputs(run: Run) -> Sequence[DatasetInput]:
    """The data sets that a run in MLflow has."""
    return run.inputs.dataset_inputs if run.inputs else ()


def _field(store: Store, path: str, name: str) -> Any:
    """A field of a small file of ours; None where that is missing or makes no sense, and is written anew."""
    try:
        return (read_object(store, path) or {}).get(name)
    except Damaged:
        return None


def flatten(values: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """Nested settings as flat names with dots and printed values; what is not set is left out."""
    out: dict[str, str] = {}
    for name, value in values.items():
        path = f"{prefix}{name}"
        if isinstance(value, Mapping):
            out.update(flatten(value, f"{path}."))
        elif value is not None:
            out[path] = value if isinstance(value, str) else json.dumps(value, default=str)
    return out


def _identity(value: float) -> float | str:
    """A value by which MLflow's are told apart: it stores infinities as the largest numbers, and NaN equals itself."""
    if math.isnan(value):
        return "nan"
    return max(-sys.float_info.max, min(sys.float_info.max, value))


def _milliseconds(seconds: float) -> int:
    return int(seconds * 1000)


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=str).encode()).hexdigest()


def _batches(items: Sequence[Any], size: int) -> Iterator[list[Any]]:
    iterator = iter(items)
    while batch := list(islice(iterator, size)):
        yield batch
