"""The state of one pipeline's run between two reconciliations: not admitted yet, or ready.

What is here is a memory of the API server and of storage, and may be lost at any instant.
"""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace

from nanochat.pipeline.outputs import Outputs
from nanochat.pipeline.planner import Phase
from nanochat.pipeline.run_status import StatusFile, read_status
from nanochat.pipeline.runs import RunPaths
from nanochat.storage.store import Store
from nanochat.tracking.progress import State, read_progress
from operators.admission import Accepted
from operators.attempts import Attempts, JobAttempt
from operators.elastic import Elastic
from operators.objects import Job
from operators.sentences import Waiting
from operators.status import ATTEMPTS, DONE, to_time
from operators.stores import SharedArtifacts
from operators.waits import Waits


@dataclass(frozen=True, slots=True)
class NotAdmitted:
    """A pipeline whose declaration was refused, or whose records could not be read yet."""

    refused: str = ""
    trouble: str = ""  # why storage cannot be reached


@dataclass(frozen=True, slots=True)
class RunSnapshot:
    """A run after a reconciliation, for the HTTP endpoint, the metrics and MLflow. It is kept while the run is at rest:
    it holds nothing that is the run's alone but a few short texts."""

    namespace: str
    name: str
    uid: str
    artifacts: SharedArtifacts
    tracking: str  # URI of the MLflow server, or ''
    phase: Phase
    report: str  # key of its report, or ''
    began: bool  # it has attempts
    mark: str  # differs between two states that MLflow is told of

    @property
    def store(self) -> Store:
        """The store of the run."""
        return self.artifacts.store

    @property
    def paths(self) -> RunPaths:
        """The run's folder."""
        return RunPaths.of(namespace=self.namespace, name=self.name, uid=self.uid)


def mark_deleted(store: Store, paths: RunPaths) -> None:
    """Say in a run's folder that it goes on no more; StorageError where that cannot be written."""
    told = read_status(store, paths)
    if told is not None and told.phase not in DONE:
        cancelled = replace(told, phase=str(Phase.CANCELLED), message="the pipeline was deleted")
        StatusFile(store, paths).write(cancelled)


def mark_of(phase: str, attempts: Iterable[tuple[str, str | None]], news: object = None) -> str:
    """A digest of phase, job and end of each attempt as the status tells them, and of what else is new."""
    return hashlib.sha256(json.dumps([phase, list(attempts), news], default=str).encode()).hexdigest()[:32]


@dataclass(frozen=True, slots=True)
class Heartbeat:
    """The last news of a launch. When it was heard here counts, not the date in it: clocks may differ."""

    launch: str
    heard: float  # steady seconds
    reported: float = 0.0  # date of the progress
    begun: bool = False  # it has made a step


@dataclass(slots=True)
class Ready:
    """A pipeline that was admitted, with all that is known of its run."""

    uid: str
    accepted: Accepted
    paths: RunPaths
    artifacts: SharedArtifacts
    outputs: Outputs
    attempts: Attempts
    status_file: StatusFile
    waits: Waits
    refusals: dict[str, Waiting] = field(default_factory=dict)  # stage -> why its job could not be created
    phase: Phase = Phase.WAITING
    progress: dict[str, State] = field(default_factory=dict)
    heartbeats: dict[str, Heartbeat] = field(default_factory=dict)  # by job, of the present launch
    stuck: Mapping[str, float] = field(default_factory=dict)  # job -> since when its pods do not get to run
    lacking: dict[str, float] = field(default_factory=dict)  # job -> since when it lacks room for all its pods
    held: dict[str, tuple[int, float]] = field(default_factory=dict)  # job that holds room -> for how many, since when
    looked: float = 0.0  # when all outputs were looked for last; 0 makes the next reconciliation do it

    @classmethod
    def open(cls, uid: str, accepted: Accepted, artifacts: SharedArtifacts) -> Ready:
        """The state of a run as its folder tells it; StorageError where the store cannot be reached."""
        store, meta = artifacts.store, accepted.pipeline.metadata
        paths = RunPaths.of(namespace=meta.namespace, name=meta.name, uid=uid)
        outputs, attempts = Outputs(artifacts, accepted.graph), Attempts(store, paths, pipeline=meta.name, uid=uid)
        status_file, waits = StatusFile(store, paths), Waits(meta.namespace)
        return cls(uid, accepted, paths, artifacts, outputs, attempts.load(), status_file, waits)

    def admit(self, accepted: Accepted) -> None:
        """Go on with a changed declaration: its outputs are looked for, and explained, anew."""
        known = self.outputs
        self.accepted, self.looked = accepted, 0.0
        self.outputs = Outputs(self.artifacts, accepted.graph)
        self.outputs.present, self.outputs.makers = known.present, known.makers
        self.outputs.scores, self.outputs.release = known.scores, known.release

    @property
    def store(self) -> Store:
        """The store of the run."""
        return self.artifacts.store

    def snapshot(self) -> RunSnapshot:
        """The run as others may see it."""
        accepted, meta = self.accepted, self.accepted.pipeline.metadata
        graph = accepted.graph
        attempts = [(record.job, to_time(record.ended)) for record in self.attempts.all()[-ATTEMPTS:]]
        news = [(name, state.launch, state.step) for name, state in self.progress.items()]
        return RunSnapshot(
            namespace=meta.namespace,
            name=meta.name,
            uid=self.uid,
            artifacts=self.artifacts,
            tracking=sys.intern(accepted.profile.tracking or ""),
            phase=self.phase,
            report=graph.node("report").outputs[0].key if "report" in graph.stages else "",
            began=bool(attempts),
            mark=mark_of(self.phase, attempts, None if self.phase in DONE else news),
        )

    def due(self, jobs: Mapping[str, Job]) -> float | None:
        """When the first of the jobs of attempts that are over is to be deleted, in seconds since 1970."""
        left = {name for name, job in jobs.items() if not job.meta.deleting}
        ended = [record.ended or 0.0 for record in self.attempts.all() if record.job in left and not record.cleaned]
        return min(ended) + self.accepted.spec.job_ttl_seconds if ended else None

    # ---- progress -----------------------------------------------------------------------------------------------

    def take_progress(self, record: JobAttempt, steady: float) -> None:
        """The progress of a running attempt's present launch; StorageError where it cannot be read."""
        state = read_progress(self.store, self.paths.progress(record.stage), record.launch) if record.launch else None
        if state is None:
            known = self.progress.get(record.stage)
            if known is not None and known.launch != record.launch:  # what is gone has no step any more
                del self.progress[record.stage]
            return
        self.progress[record.stage] = state
        known = self.heartbeat(record, steady)
        if state.time != known.reported:
            begun = known.begun or state.step > 0
            self.heartbeats[record.job] = replace(known, heard=steady, reported=state.time, begun=begun)

    def excuse_silence(self, record: JobAttempt, steady: float) -> None:
        """News of an attempt cannot reach us: that is no silence, nor is it one when storage is just back."""
        self.heartbeats[record.job] = replace(self.heartbeat(record, steady), heard=steady)

    def elastic(self, record: JobAttempt) -> Elastic | None:
        """The numbers of nodes that an attempt's stage may have; None where there is one alone, or no such stage."""
        known = record.stage in self.accepted.graph.stages
        return Elastic.of(self.accepted.spec, record.stage) if known else None

    def heartbeat(self, record: JobAttempt, steady: float) -> Heartbeat:
        """The last news of an attempt; where there was none of its present launch, that it is there."""
        known = self.heartbeats.get(record.job)
        if known is None or known.launch != record.launch:
            known = self.heartbeats[record.job] = Heartbeat(record.launch, heard=steady)
        return known
