"""status.json in a run's folder: where the run stands, for the command line, the report, MLflow and gc.

status = RunStatus.of(pipeline, graph, planned, outputs.explanations, progress, attempts)
StatusFile(store, paths).write(status)           # where it changed
read_status(store, paths)
"""

from __future__ import annotations

import json
import socket
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Annotated, Any

from pydantic import PlainValidator

from nanochat.pipeline.attempts import AttemptRecord
from nanochat.pipeline.graph import Graph
from nanochat.pipeline.planner import Status
from nanochat.pipeline.ref import ArtifactRef
from nanochat.pipeline.runs import RunPaths
from nanochat.spec.errors import StorageError
from nanochat.spec.pipeline import Pipeline
from nanochat.storage.failures import Damaged
from nanochat.storage.manifest import Name
from nanochat.storage.records import Count, Seconds, checked, read_object
from nanochat.storage.store import Store
from nanochat.tracking.progress import State

LARGEST = 16 << 20  # bytes; one of 100,000 shards is about that
DECLARATION = 4 << 20
Ref = Annotated[ArtifactRef, PlainValidator(ArtifactRef.parse)]


@dataclass(frozen=True, slots=True)
class StageRunStatus:
    """Where one stage stands. Times are in seconds since 1970."""

    stage: str
    phase: str = ""
    message: str = ""
    attempts: Count = 0
    why: str = ""  # its outputs had to be made
    warnings: tuple[str, ...] = ()
    keys: Mapping[Ref, Name] = field(default_factory=dict)
    started: Seconds | None = None  # its first attempt
    ended: Seconds | None = None  # its last attempt


@dataclass(frozen=True, slots=True)
class RunStatus:
    """Where a run stands; `horizon` is what people are told of its size."""

    name: str = ""
    namespace: str = ""
    phase: str = ""
    message: str = ""
    horizon: Mapping[str, Any] = field(default_factory=dict)
    stages: tuple[StageRunStatus, ...] = ()
    home: str = ""  # whose runner it is (`ResolvedProfile.identity`); '' on a cluster
    host: str = ""  # its name, for people
    turn: Count = 0  # of the runs of a pipeline the one that was begun last has the highest, whatever the clock says

    @classmethod
    def of(
        cls,
        pipeline: Pipeline,
        graph: Graph,
        planned: Status,
        explanations: Mapping[str, str],
        progress: Mapping[str, State],
        attempts: Sequence[AttemptRecord],
        *,
        home: str = "",
        turn: int = 0,
    ) -> RunStatus:
        """The status of what the planner said, with what was observed; `home` and `turn` are those of a runner."""
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
        host = socket.gethostname() if home else ""
        return cls(meta.name, meta.namespace, planned.phase, planned.message, summary, tuple(stages), home, host, turn)

    def keys(self) -> dict[ArtifactRef, str]:
        """The keys of all outputs."""
        return {ref: key for item in self.stages for ref, key in item.keys.items()}

    def of_stage(self, stage: str) -> StageRunStatus | None:
        """The status of one stage."""
        return next((item for item in self.stages if item.stage == stage), None)


def read_declaration(store: Store, paths: RunPaths) -> dict[str, Any]:
    """The pipeline as it was run, as YAML has it, {"metadata": {...}, "spec": {...}}; StorageError where it is gone."""
    found = read_object(store, paths.pipeline, DECLARATION)
    if found is None:
        raise StorageError(f"there is no run in {store.uri(paths.root)} any more: `nanochat run FILE` begins anew")
    if not (isinstance(found.get("metadata"), dict) and isinstance(found.get("spec"), dict)):
        raise StorageError(
            f"{store.uri(paths.pipeline)} is no declaration of a pipeline: `nanochat run FILE` begins anew"
        )
    return found


def read_status(store: Store, paths: RunPaths) -> RunStatus | None:
    """The status in storage; None where there is none yet. `Damaged` where it makes no sense."""
    try:
        found = read_object(store, paths.status, LARGEST)
        return None if found is None else checked(RunStatus, found)
    except ValueError:
        raise Damaged(f"{store.uri(paths.status)} is no status of a run: remove it, then run again") from None


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
