"""The attempts of a run: one record each, in the run's folder, so that they outlive the controller and the jobs.

attempts = Attempts.load(store, paths, stages)
attempts.adopt(job, uid)                  # a job that has no record yet
attempts.put(replace(record, ...)); attempts.save()
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any

from nanochat.pipeline.outcomes import Outcome
from nanochat.pipeline.runs import RunPaths
from nanochat.storage.store import Store
from operators.objects import Job


@dataclass(frozen=True, slots=True)
class Record:
    """One attempt. Times are in seconds since 1970."""

    stage: str
    number: int
    job: str
    keys: tuple[str, ...]  # of the outputs that it has to make
    device_batch_size: int
    started: float  # when the job was created
    memory: float = 1.0  # factor on the host memory request
    nodes: int = 1
    processes: int = 1  # of one node
    gpus: int = 0  # of all nodes
    generation: int = 0  # of the job as it was created: a higher one is somebody else's change
    pods: Mapping[str, str] = field(default_factory=dict)  # replica index -> uid, of the present launch
    job_started: str = ""  # the job's startTime that they belong to: Kueue may stop a job and start it again
    launches: tuple[str, ...] = ()  # ids of all pods that ran
    launch: str = ""  # that of rank 0 in the present launch
    hosts: tuple[str, ...] = ()
    running_since: float | None = None
    used: float = 0.0  # seconds that launches before ran
    stopping: str = ""  # why we stopped it
    decided: Outcome | None = None  # how it will have ended, once nothing of it runs any more
    ended: float | None = None
    outcome: Outcome | None = None
    reached: int = 0  # newest checkpoint's step, or outputs made
    cleaned: bool = False  # its job and plan are deleted

    def seconds(self, now: float) -> float:
        """How long its pods ran."""
        return self.used + (now - self.running_since if self.running_since is not None else 0.0)

    def launch_of(self, pod_uid: str) -> str:
        """The id of the launch in a pod."""
        return f"{self.number:02d}-{pod_uid[:8]}"

    def to_dict(self) -> dict[str, Any]:
        return json.loads(json.dumps(asdict(self)))

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Record:
        known = {f.name: data[f.name] for f in fields(cls) if f.name in data}
        for name in ("keys", "launches", "hosts"):
            known[name] = tuple(known.get(name, ()))
        for name in ("decided", "outcome"):
            known[name] = Outcome.from_dict(known[name]) if known.get(name) else None
        return cls(**known)


class Attempts:
    """The records of one run, in memory and in storage."""

    def __init__(self, store: Store, paths: RunPaths) -> None:
        self._store, self._paths = store, paths
        self._records: dict[str, Record] = {}  # by job
        self._stored: dict[str, Record] = {}

    @classmethod
    def load(cls, store: Store, paths: RunPaths) -> Attempts:
        """All records in storage; StorageError where it cannot be reached."""
        attempts = cls(store, paths)
        folder = f"{paths.root}/attempts"
        for stage in store.children(folder):
            for name in store.children(f"{folder}/{stage}"):
                record = Record.from_dict(store.read_json(f"{folder}/{stage}/{name}"))
                attempts._records[record.job] = attempts._stored[record.job] = record
        return attempts

    def all(self) -> Sequence[Record]:
        return sorted(self._records.values(), key=lambda r: (r.started, r.stage, r.number))

    def open(self) -> Sequence[Record]:
        """Those that have not ended."""
        return [record for record in self.all() if record.outcome is None]

    def of(self, stage: str) -> Sequence[Record]:
        return sorted((r for r in self._records.values() if r.stage == stage), key=lambda r: r.number)

    def put(self, record: Record) -> Record:
        """Take in a record; `save` stores it."""
        self._records[record.job] = record
        return record

    def adopt(self, job: Job, uid: str) -> None:
        """Make a record for a job of the pipeline `uid` that has none."""
        if job.meta.name in self._records or uid not in job.owners or not job.attempt:
            return
        record = Record.from_dict(json.loads(job.attempt) | {"job": job.meta.name})
        before = max((r.reached for r in self.of(record.stage)), default=0)
        self.put(replace(record, generation=job.meta.generation, reached=before))

    def end(self, record: Record, outcome: Outcome, *, reached: int, now: float) -> Record:
        """The record with how the attempt ended."""
        return self.put(
            replace(
                record,
                outcome=outcome,
                reached=reached,
                ended=now,
                used=record.seconds(now),
                running_since=None,
            )
        )

    def save(self) -> None:
        """Store what changed; StorageError where that fails, and then the next call does it."""
        for record in self.all():
            if self._stored.get(record.job) != record:
                self._store.write_json(self._paths.attempt(record.stage, record.number), record.to_dict())
                self._stored[record.job] = record
