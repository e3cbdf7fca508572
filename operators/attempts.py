"""The attempts of a run on a cluster: the records of `nanochat.pipeline.attempts`, with jobs, pods and nodes.

attempts = Attempts(store, paths).load()
attempts.adopt(job, uid)                  # a job that has no record yet
attempts.put(replace(record, ...)); attempts.save()
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Self

from nanochat.parse.json_text import read_json
from nanochat.pipeline.attempts import AttemptLog, AttemptRecord
from nanochat.pipeline.outcomes import Outcome
from nanochat.pipeline.runs import RunPaths
from nanochat.storage.records import RECORD, Count, Seconds
from nanochat.storage.store import Store
from operators.objects import Job


@dataclass(frozen=True, slots=True, kw_only=True)
class JobAttempt(AttemptRecord):
    """One attempt; it started when its job was created. Times are in seconds since 1970."""

    job: str
    nodes: Count = 1
    processes: Count = 1  # of one node
    gpus: Count = 0  # of all nodes
    generation: Count = 0  # of the job as it was created: a higher one is somebody else's change
    pods: Mapping[str, str] = field(default_factory=dict)  # replica index -> uid, of the present launch
    job_started: str = ""  # the job's startTime that they belong to: Kueue may stop a job and start it again
    placement: Mapping[str, str] = field(default_factory=dict)  # replica index -> node, of the present launch
    launches: tuple[str, ...] = ()  # ids of all pods that ran
    hosts: tuple[str, ...] = ()  # nodes of all of them
    blame: Mapping[str, Seconds] = field(default_factory=dict)  # node -> how much its end speaks against it
    running_since: Seconds | None = None
    used: Seconds = 0.0  # seconds that launches before ran
    decided: Outcome | None = None  # how it will have ended, once nothing of it runs any more
    cleaned: bool = False  # its job and plan are deleted

    def ran(self, now: float) -> float:
        """Seconds that its pods ran."""
        return self.used + (max(0.0, now - self.running_since) if self.running_since is not None else 0.0)

    def launch_of(self, pod_uid: str) -> str:
        """The id of the launch in a pod."""
        return f"{self.number:02d}-{pod_uid[:8]}"

    def index_of(self, rank: int) -> str:
        """The index of the pod that a rank runs in."""
        return str(rank // max(1, self.processes))

    def end(self, outcome: Outcome, *, reached: int, now: float) -> Self:
        """The record with how the attempt ended."""
        used = self.ran(now)
        return replace(self, outcome=outcome, reached=reached, ended=now, used=used, running_since=None)


class Attempts(AttemptLog[JobAttempt]):
    """The records of one run, in memory and in storage."""

    def __init__(self, store: Store, paths: RunPaths) -> None:
        super().__init__(store, paths, JobAttempt)

    def adopt(self, job: Job, uid: str) -> None:
        """Make a record for a job of the pipeline `uid` that has none."""
        if uid not in job.owners or not job.attempt or any(record.job == job.meta.name for record in self.all()):
            return
        record = JobAttempt.from_dict(read_json(job.attempt, limit=RECORD) | {"job": job.meta.name})
        reached = self.reached(record.stage, before=record.number)
        self.put(replace(record, generation=job.meta.generation, reached=reached))
