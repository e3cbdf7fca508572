"""The attempts of a run on a cluster: the records of `nanochat.pipeline.attempts`, with jobs, pods and nodes.

attempts = Attempts(store, paths, pipeline="demo", uid=uid).load()
attempts.adopt(job, graph)                # a job that has no record yet
attempts.put(replace(record, ...)); attempts.save()

Which job is an attempt's is not read anywhere: its name follows from pipeline, uid, stage and number (`job_name`). What
records and annotations say of an attempt may have been written by anybody who shares the store or the namespace.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Annotated

from pydantic import Field

from nanochat.parse.json_text import read_json
from nanochat.pipeline.attempts import LARGEST, AttemptLog, AttemptRecord
from nanochat.pipeline.graph import Graph
from nanochat.pipeline.outcomes import Outcome
from nanochat.pipeline.planner import STAGES
from nanochat.pipeline.runs import RunPaths
from nanochat.storage.manifest import Name
from nanochat.storage.records import Count, Seconds
from nanochat.storage.store import Store
from operators.objects import Job

# What the annotation of a job tells of its attempt: `operators.pytorchjob` writes it.
TOLD = ("keys", "device_batch_size", "memory", "started", "nodes", "processes", "gpus")
ROOM = "-room"  # end of a job's name
Host = Annotated[str, Field(pattern=r"^[a-z0-9]([a-z0-9.-]{0,251}[a-z0-9])?$")]  # a node's name


def job_name(pipeline: str, uid: str, stage: str, number: int) -> str:
    """The name of an attempt's objects: a DNS-1035 label of at most 32 + 20 characters."""
    return f"{pipeline}-{uid[:4]}-{stage}-{number}"


def room_name(pipeline: str, uid: str, stage: str) -> str:
    """The name of the job that holds room for a stage (`operators.room`); no attempt's ends like it."""
    return f"{pipeline}-{uid[:4]}-{stage}{ROOM}"


def is_room(job: str) -> bool:
    """Whether a job of a pipeline holds room, and is none of an attempt."""
    return job.endswith(ROOM)


@dataclass(frozen=True, slots=True, kw_only=True)
class JobAttempt(AttemptRecord):
    """One attempt; it started when its job was created. Times are in seconds since 1970."""

    job: str = ""  # name, which `Attempts` fills in
    job_uid: str = ""  # by which its pods are known when it is gone
    nodes: Count = 1
    generation: Count = 0  # of the job as it was created: a higher one is somebody else's change
    pods: Mapping[str, str] = field(default_factory=dict)  # replica index -> uid, of the present launch
    job_started: str = ""  # the job's startTime that they belong to: Kueue may stop a job and start it again
    placement: Mapping[str, Host] = field(default_factory=dict)  # replica index -> node, of the present launch
    launches: tuple[str, ...] = ()  # ids of all pods that ran
    hosts: tuple[Host, ...] = ()  # nodes of all of them
    blame: Mapping[Host, Seconds] = field(default_factory=dict)  # node -> how much its end speaks against it
    form: Name | None = None  # digest of its job as it was created
    resize: Count = 0  # nodes of the attempt after it, where it was stopped to have others
    decided: Outcome | None = None  # how it will have ended, once nothing of it runs any more
    cleaned: bool = False  # its job and plan are deleted

    def launch_of(self, pod_uid: str) -> str:
        """The id of the launch in a pod."""
        return f"{self.number:02d}-{pod_uid[:8]}"

    def index_of(self, rank: int) -> str:
        """The index of the pod that a rank runs in."""
        return str(rank // max(1, self.processes))


class Attempts(AttemptLog[JobAttempt]):
    """The records of one run, in memory and in storage."""

    def __init__(self, store: Store, paths: RunPaths, *, pipeline: str, uid: str) -> None:
        super().__init__(store, paths, JobAttempt)
        self._pipeline, self._uid = pipeline, uid
        self._jobs = re.compile(
            rf"{re.escape(job_name(pipeline, uid, '', 0)[:-2])}(?P<stage>.+)-(?P<number>[0-9]{{1,6}})"
        )

    def put(self, record: JobAttempt) -> JobAttempt:
        name = job_name(self._pipeline, self._uid, record.stage, record.number)
        return super().put(record if record.job == name else replace(record, job=name))

    def adopt(self, job: Job, graph: Graph) -> None:
        """Make a record for a job of this pipeline that has none; its annotation tells what the name does not."""
        named = self._jobs.fullmatch(job.meta.name)
        if self._uid not in job.owners or named is None or named["stage"] not in STAGES:
            return
        stage, number = named["stage"], int(named["number"])
        if any(record.number == number for record in self.of(stage)):
            return
        try:
            told = dict(read_json(job.attempt, limit=LARGEST))
            told = {name: told[name] for name in TOLD} | {name: told.get(name) for name in ("form", "hourly")}
            record = JobAttempt.from_dict(told | {"stage": stage, "number": number})
        except (ValueError, TypeError, LookupError):
            self.remark(f"the job {job.meta.name} has no annotation that tells of its attempt: taken for one of now")
            outputs = graph.node(stage).outputs if stage in graph.stages else ()
            record = JobAttempt(stage=stage, number=number, keys=tuple(out.key for out in outputs))
        reached = self.reached(stage, before=number)
        record = replace(record, job_uid=job.meta.uid, generation=job.meta.generation, reached=reached)
        self.put(record)
