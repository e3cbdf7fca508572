"""The state of one pipeline's run between two reconciliations: not admitted yet, or ready.

What is here is a memory of the API server and of storage, and may be lost at any instant.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path

from nanochat.pipeline.outputs import Outputs
from nanochat.pipeline.planner import Observed, Phase, Status, required_outputs
from nanochat.pipeline.run_status import StatusFile, read_status
from nanochat.pipeline.runs import RunPaths
from nanochat.storage.artifacts import Artifacts
from nanochat.storage.store import Store
from nanochat.tracking.progress import State, read_progress
from operators.admission import Accepted
from operators.attempts import Attempts, JobAttempt

ACTIVE = (Phase.RUNNING, Phase.PENDING, Phase.STOPPING, Phase.RETRYING, Phase.WAITING, Phase.QUEUED)


@dataclass(frozen=True, slots=True)
class NotAdmitted:
    """A pipeline whose declaration was refused, or whose records could not be read yet."""

    refused: str = ""
    trouble: str = ""  # why storage cannot be reached


@dataclass(frozen=True, slots=True)
class RunSnapshot:
    """A run after a reconciliation, for the HTTP endpoint, the metrics and MLflow."""

    uid: str
    accepted: Accepted
    artifacts: Artifacts
    paths: RunPaths
    phase: Phase
    attempts: tuple[tuple[str, float | None], ...] = ()  # job and end of each

    @property
    def store(self) -> Store:
        """The store of the run."""
        return self.artifacts.store


@dataclass(slots=True)
class Ready:
    """A pipeline that was admitted, with all that is known of its run."""

    uid: str
    accepted: Accepted
    paths: RunPaths
    outputs: Outputs
    attempts: Attempts
    status_file: StatusFile
    phase: Phase = Phase.WAITING
    progress: dict[str, State] = field(default_factory=dict)
    heartbeats: dict[str, tuple[float, float]] = field(default_factory=dict)  # job -> (its date, when heard)
    looked: float = 0.0  # when all outputs were looked for last; 0 makes the next reconciliation do it

    @classmethod
    def open(cls, uid: str, accepted: Accepted, cache: Path) -> Ready:
        """The state of a run as its folder tells it; StorageError where the store cannot be reached."""
        store = accepted.profile.open()
        meta = accepted.pipeline.metadata
        paths = RunPaths.of(namespace=meta.namespace, name=meta.name, uid=uid)
        outputs = Outputs(Artifacts(store, cache), accepted.graph)
        attempts = Attempts(store, paths, pipeline=meta.name, uid=uid).load()
        return cls(uid, accepted, paths, outputs, attempts, StatusFile(store, paths))

    def admit(self, accepted: Accepted, cache: Path) -> None:
        """Go on with a changed declaration: its outputs are looked for, and explained, anew."""
        known = self.outputs
        self.accepted, self.looked = accepted, 0.0
        self.outputs = Outputs(Artifacts(accepted.profile.open(), cache), accepted.graph)
        self.outputs.present, self.outputs.scores, self.outputs.release = known.present, known.scores, known.release

    @property
    def store(self) -> Store:
        """The store of the run."""
        return self.outputs.artifacts.store

    def mark_deleted(self) -> None:
        """Say in the run's folder that it goes on no more; StorageError where that cannot be written."""
        told = read_status(self.store, self.paths)
        if told is not None and told.phase not in (Phase.SUCCEEDED, Phase.FAILED, Phase.CANCELLED):
            message = "the pipeline was deleted"
            self.status_file.write(replace(told, phase=str(Phase.CANCELLED), message=message))

    def snapshot(self) -> RunSnapshot:
        """The run as others may see it."""
        attempts = tuple((record.job, record.ended) for record in self.attempts.all())
        return RunSnapshot(self.uid, self.accepted, self.outputs.artifacts, self.paths, self.phase, attempts)

    def claim(self, planned: Status) -> frozenset[str]:
        """Keys that this pipeline makes or is about to make, for the others to wait for."""
        active = {item.stage for item in planned.stages if item.phase in ACTIVE}
        needed = required_outputs(self.accepted.graph, Observed(present=frozenset(self.outputs.present)))
        return frozenset(out.key for stage, outs in needed.items() if stage in active for out in outs)

    # ---- progress -----------------------------------------------------------------------------------------------

    def take_progress(self, record: JobAttempt, steady: float) -> None:
        """The progress of a running attempt. Its heartbeat is when the news was heard here: clocks may differ."""
        state = read_progress(self.store, self.paths.progress(record.stage))
        if state is None or state.launch not in record.launches:
            return
        reported, _ = self.heartbeats.get(record.job, (0.0, 0.0))
        if state.time != reported:
            self.heartbeats[record.job] = (state.time, steady)
        self.progress[record.stage] = state

    def excuse_silence(self, record: JobAttempt, steady: float) -> None:
        """News of an attempt cannot reach us: that is no silence, nor is it one when storage is just back."""
        self.heartbeats[record.job] = (self.heartbeats.get(record.job, (0.0, 0.0))[0], steady)

    def silence(self, record: JobAttempt, steady: float) -> float:
        """Seconds since the last news of an attempt, or since it was seen first."""
        return steady - self.heartbeats.setdefault(record.job, (0.0, steady))[1]
