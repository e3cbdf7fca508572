"""status.json in a run's folder: where the run stands, for the command line, the report, MLflow and gc.

status = RunStatus.of(pipeline, graph, planned, outputs.explanations, progress, attempts)
StatusFile(store, paths).write(status)           # where it changed
read_status(store, paths)
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from typing import Any

from nanochat.pipeline.attempts import AttemptRecord
from nanochat.pipeline.graph import Graph
from nanochat.pipeline.planner import Status
from nanochat.pipeline.ref import ArtifactRef
from nanochat.pipeline.runs import RunPaths
from nanochat.spec.errors import StorageError
from nanochat.spec.pipeline import Pipeline
from nanochat.storage.store import Store
from nanochat.tracking.progress import State


@dataclass(frozen=True, slots=True)
class StageRunStatus:
    """Where one stage stands. Times are in seconds since 1970."""

    stage: str
    phase: str = ""
    message: str = ""
    attempts: int = 0
    why: str = ""  # its outputs had to be made
    warnings: tuple[str, ...] = ()
    keys: Mapping[ArtifactRef, str] = field(default_factory=dict)
    started: float | None = None  # its first attempt
    ended: float | None = None  # its last attempt

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> StageRunStatus:
        """The status of JSON values."""
        known = {f.name: data[f.name] for f in fields(cls) if f.name in data}
        known["warnings"] = tuple(known.get("warnings", ()))
        known["keys"] = {ArtifactRef.parse(ref): key for ref, key in known.get("keys", {}).items()}
        return cls(**known)


@dataclass(frozen=True, slots=True)
class RunStatus:
    """Where a run stands; `horizon` is what people are told of its size."""

    name: str = ""
    namespace: str = ""
    phase: str = ""
    message: str = ""
    horizon: Mapping[str, Any] = field(default_factory=dict)
    stages: tuple[StageRunStatus, ...] = ()

    @classmethod
    def of(
        cls,
        pipeline: Pipeline,
        graph: Graph,
        planned: Status,
        explanations: Mapping[str, str],
        progress: Mapping[str, State],
        attempts: Sequence[AttemptRecord],
    ) -> RunStatus:
        """The status of what the planner said, with what was observed."""
        stages = []
        for item in planned.stages:
            own = sorted((r for r in attempts if r.stage == item.stage), key=lambda r: r.number)
            state = progress.get(item.stage)
            stages.append(
                StageRunStatus(
                    stage=item.stage,
                    phase=item.phase,
                    message=item.message,
                    attempts=item.attempts,
                    why=explanations.get(item.stage, ""),
                    warnings=state.warnings if state else (),
                    keys={out.ref: out.key for out in graph.node(item.stage).outputs},
                    started=own[0].started if own else None,
                    ended=own[-1].ended if own else None,
                )
            )
        meta = pipeline.metadata
        summary = graph.horizon.summary()
        return cls(meta.name, meta.namespace, planned.phase, planned.message, summary, tuple(stages))

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> RunStatus:
        """The status of JSON values."""
        names = {f.name for f in fields(cls)}
        known = {name: value for name, value in data.items() if name in names}
        known["stages"] = tuple(StageRunStatus.from_dict(item) for item in known.get("stages", ()))
        return cls(**known)

    def keys(self) -> dict[ArtifactRef, str]:
        """The keys of all outputs."""
        return {ref: key for item in self.stages for ref, key in item.keys.items()}

    def of_stage(self, stage: str) -> StageRunStatus | None:
        """The status of one stage."""
        return next((item for item in self.stages if item.stage == stage), None)


def read_status(store: Store, paths: RunPaths) -> RunStatus | None:
    """The status in storage; None where there is none yet. StorageError where it cannot be read."""
    try:
        return RunStatus.from_dict(store.read_json(paths.status))
    except FileNotFoundError:
        return None
    except (TypeError, ValueError, AttributeError):
        raise StorageError(f"{store.uri(paths.status)} is no status of a run: remove it, then run again") from None


class StatusFile:
    """The stored status of one run, as this process wrote it last."""

    def __init__(self, store: Store, paths: RunPaths) -> None:
        self._store, self._path = store, paths.status
        self._written = b""

    def differs(self, status: RunStatus) -> bool:
        """Whether a status is not the one that is stored."""
        return _text(status) != self._written

    def write(self, status: RunStatus) -> None:
        """Store a status where it differs."""
        if self.differs(status):
            text = _text(status)
            self._store.write(self._path, text)
            self._written = text


def _text(status: RunStatus) -> bytes:
    return json.dumps(asdict(status)).encode()
