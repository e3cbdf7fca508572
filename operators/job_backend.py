"""The controller's interface to whatever runs an attempt's pods together: PyTorchJobs today (`operators.pytorchjob`).

    backend: JobBackend = PyTorchJobs(kube)
    job = backend.create(request)     # None where another object has its name
    job = backend.read_job(body)      # as a watch or a listing tells of it
    backend.delete(job)

A backend's bodies stay inside it: all others see `Job` and `Pod`. Trainer v2's TrainJob can stand beside it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol

from nanochat.pipeline.graph import Node
from nanochat.pipeline.planner import Start
from nanochat.spec.pipeline import PipelineSpec
from nanochat.spec.pods import PodSettings
from operators import resources
from operators.admission import Accepted
from operators.attempts import job_name, room_name
from operators.config import Config, StoreProfile
from operators.kube_client import Resource
from operators.kube_error import Object
from operators.objects import Job, Pod


@dataclass(frozen=True, slots=True)
class JobRequest:
    """All that an attempt is built from."""

    uid: str
    accepted: Accepted
    launch: Start
    run: str  # the run's folder
    config: Config
    started: float
    avoid: Mapping[str, float] = field(default_factory=dict)  # suspected node -> how much
    beside: str = ""  # job of the attempt for which this one holds room, and does nothing else

    @property
    def name(self) -> str:
        """The name of the attempt's objects."""
        pipeline, stage = self.accepted.pipeline.metadata.name, self.launch.stage
        if self.beside:
            return room_name(pipeline, self.uid, stage)
        return job_name(pipeline, self.uid, stage, self.launch.attempt)

    @property
    def nodes(self) -> int:
        """Pods of the attempt."""
        declared = resources.nodes(self.spec, self.launch.stage)
        return declared if self.launch.nodes is None else self.launch.nodes

    @property
    def spec(self) -> PipelineSpec:
        return self.accepted.spec

    @property
    def node(self) -> Node:
        return self.accepted.graph.node(self.launch.stage)

    @property
    def profile(self) -> StoreProfile:
        return self.accepted.profile

    @property
    def settings(self) -> PodSettings:
        return resources.pod_settings(self.config, self.spec, self.launch.stage)


class JobBackend(Protocol):
    """One kind of job."""

    @property
    def resource(self) -> Resource:
        """The kind of object that is watched."""
        ...

    def build(self, request: JobRequest) -> object:
        """The job of an attempt, in the backend's own model."""
        ...

    def form(self, request: JobRequest) -> str:
        """A digest of the job of an attempt, but for the nodes that it avoids; its annotation tells it."""
        ...

    def create(self, request: JobRequest) -> Job | None:
        """Create the job of an attempt; None where an object of its name exists."""
        ...

    def delete(self, job: Job) -> None:
        """Delete a job with its pods; one that is gone already is no error."""
        ...

    def keep_pods(self, job: Job) -> None:
        """Let the backend delete no pods of a job, whatever becomes of them; they still go with the job."""
        ...

    def label(self, job: Job, labels: Mapping[str, str]) -> Job | None:
        """Give a job these labels; None where it is gone."""
        ...

    def pod_name(self, job: str, index: str) -> str:
        """The name of a job's pod."""
        ...

    def read_job(self, body: Object) -> Job:
        """Observe a job, from its object in the API server."""
        ...

    def read_pod(self, body: Object) -> Pod:
        """Observe a pod of a job."""
        ...
