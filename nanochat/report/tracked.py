"""A run's record as MLflow shows it, and a thread that keeps MLflow up to date while a run is live.

with Tracker(store, artifacts, run=folder, uri=uri):
    ...                          # MLflow is told now, every half minute, and once more at the end
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from itertools import chain, repeat

from nanochat.report.content import headline
from nanochat.report.data import data_of
from nanochat.report.record import RunRecord, StageRecord, gather, stage_settings
from nanochat.spec.errors import NanochatError
from nanochat.spec.pipeline import TRAINING
from nanochat.storage import Artifacts, Store
from nanochat.tracking.background import Ticker
from nanochat.tracking.journal import JournalReader
from nanochat.tracking.mlflow import HIDDEN, LARGEST_FILE, Projection, TrackedRun, TrackedStage

log = logging.getLogger(__name__)

_INTERVAL = 30.0  # seconds
_MOST_FILES = 200  # of a report
_LAST_WORDS = 60.0  # seconds that the end of a run waits for MLflow

_STATUS = {
    "Succeeded": "succeeded", "Cached": "succeeded", "Failed": "failed", "Blocked": "failed", "Cancelled": "stopped",
    "Suspended": "stopped",
}  # fmt: skip


def tracked_run(record: RunRecord, *, files: tuple[str, ...] = ()) -> TrackedRun:
    """The run as MLflow gets it; `files` are the report's paths under the store's root."""
    stages = tuple(_stage(record, stage) for stage in record.stages if stage.attempts)
    results = {
        f"{stage}.{name}": result.value
        for stage in TRAINING
        if stage in record.evaluations
        for name, result in record.evaluations[stage].metrics.items()
    }
    spent, costs = record.spent, {f"{stage.name}.cost": stage.spent.cost for stage in record.stages if stage.made}
    costs |= {"cost": spent.cost, "lost_cost": spent.lost, "waiting_cost": spent.waiting, "gpu_hours": spent.gpu_hours}
    status = _STATUS.get(record.phase, "running")
    return TrackedRun(
        name=f"{record.namespace}.{record.name}-{record.uid[:8]}",
        uid=record.uid,
        status=status,
        started=record.started or 0.0,
        ended=record.ended if status != "running" else None,
        params={"spec": record.spec, "horizon": record.horizon},
        tags={
            "nanochat.folder": record.folder,
            **{f"model.{name}": uri for name, uri in record.models.items()},
            **_system_tags(record, headline(record)),
        },
        results=results | {name: value for name, value in costs.items() if value},
        stages=stages,
        files=files,
    )


def _system_tags(record: RunRecord, description: str) -> dict[str, str]:
    """The tags that MLflow shows in places of their own: user, source, commit, description."""
    commit = str(record.environment.get("commit") or "")
    tags = {
        "mlflow.user": record.user,
        "mlflow.source.type": "LOCAL",
        "mlflow.source.name": f"{record.namespace}/{record.name}",
        "mlflow.source.git.commit": commit.removesuffix("+"),
        "mlflow.source.git.dirty": "true" if commit.endswith("+") else "",
        "mlflow.note.content": description,
    }
    return {name: value for name, value in tags.items() if value}


def _stage(record: RunRecord, stage: StageRecord) -> TrackedStage:
    trained = stage.name.removeprefix("eval-")
    status = _STATUS.get(stage.phase, "running")
    keys = {
        ref: m.key for ref, m in record.manifests.items() if ref in (f"model/{stage.name}", f"evaluation/{trained}")
    }
    return TrackedStage(
        name=stage.name,
        status=status,
        started=stage.attempts[0].started,
        ended=stage.attempts[-1].ended if status != "running" else None,
        params=stage_settings(record.spec, stage.name),
        tags={
            "nanochat.attempts": str(len(stage.attempts)),
            "nanochat.outcomes": " ".join(attempt.reason or "Running" for attempt in stage.attempts)[-2000:],
            f"{HIDDEN}launches": " ".join(attempt.launch for attempt in stage.attempts)[-2000:],
            **{f"{HIDDEN}key.{ref}": key for ref, key in keys.items()},
            **_system_tags(record, f"{stage.name} of {record.namespace}/{record.name}, run {record.uid}"),
        },
        data=data_of(record, stage.name),
    )


class RunTracker:
    """Brings one MLflow up to date with one run, as often as wanted."""

    def __init__(self, store: Store, artifacts: Artifacts, *, run: str, uri: str) -> None:
        self._store = store
        self._artifacts = artifacts
        self._run = run
        self._readers: dict[str, JournalReader] = {}
        self._projection = Projection(store, uri, readers=self._readers)
        self.ended = False  # whether what was told last was a run's end
        self.trouble = ""  # why nothing could be told last

    def sync(self) -> bool:
        """Tell MLflow what is new; False where that could not be done."""
        try:
            record = gather(self._store, self._artifacts, run=self._run, readers=self._readers)
            files = [entry.path for entry in self._store.list(f"{self._run}/report") if entry.size <= LARGEST_FILE]
        except (NanochatError, OSError) as error:
            log.debug("no record for MLflow yet: %s", error)
            self.trouble = str(error)
            return False
        run = tracked_run(record, files=tuple(files[:_MOST_FILES]))
        # Where nothing has run there is nothing to tell.
        told = record.started is None or self._projection.sync(self._run, run)
        self.ended = told and run.status != "running"
        self.trouble = "" if told else f"MLflow did not take it ({self._projection.trouble})"
        return told


class Tracker:
    """Projects a live run into MLflow in the background. Nothing that goes wrong in it reaches the run."""

    def __init__(
        self,
        store: Store,
        artifacts: Artifacts,
        *,
        run: str,
        uri: str,
        interval: float = _INTERVAL,
        moved: Callable[[], bool] = lambda: True,
    ) -> None:
        """`moved` says whether the run has come to anything new since: where it has not, the end waits for nothing more
        than the first look, which may tell what an earlier one missed."""
        tracker = RunTracker(store, artifacts, run=run, uri=uri)
        pauses = chain([0.0], repeat(interval))
        self._ticker = Ticker(
            "mlflow",
            tracker.sync,
            lambda: next(pauses),
            last=lambda: moved() or not (tracker.ended or tracker.trouble),
        )

    def close(self) -> None:
        """Send the rest and stop."""
        if not self._ticker.close(_LAST_WORDS):
            log.warning("MLflow is slow; the rest will be sent when the pipeline is run again")

    def __enter__(self) -> Tracker:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
