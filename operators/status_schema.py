"""The declaration of a ChatPipeline's status, as `nanochat/spec` declares its spec: `crd.py` makes the schema of it.

`status.py` builds what these models describe. Every text, list and map has a bound, which what is built respects.
"""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, ClassVar, Literal

from pydantic import Field, StringConstraints

from nanochat.pipeline.outcomes import Reason
from nanochat.pipeline.planner import Phase
from nanochat.spec.comments import Form
from nanochat.spec.fields import Section, Text, setting

Word = Annotated[str, StringConstraints(max_length=253)]  # names of stages and objects, keys, short figures
Words = Annotated[dict[str, Word], Field(max_length=64)]

# Bounds and patterns of a condition are those of metav1.Condition.
ConditionType = Annotated[
    str,
    StringConstraints(
        max_length=316,
        pattern=r"^([a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*/)?"
        r"(([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9])$",
    ),
    Form("be a CamelCase word, with or without a domain before it"),
]
ConditionReason = Annotated[
    str,
    StringConstraints(min_length=1, max_length=1024, pattern=r"^[A-Za-z]([A-Za-z0-9_,:]*[A-Za-z0-9_])?$"),
    Form("be a CamelCase word"),
]
ConditionMessage = Annotated[str, StringConstraints(max_length=32_768)]


class StatusSection(Section):
    """A part of the status, which the controller alone writes."""

    is_input: ClassVar[bool] = False


class StageStatus(StatusSection):
    """One stage: its phase, its progress and its artifacts."""

    name: Word = setting(help="name is the name of the stage, for example base or eval-sft.")
    phase: Phase = setting(
        help="phase is where the stage stands. Waiting: an input is missing still. Pending: its job is there, and not "
        "all pods run. Running: all pods run. Stopping: it saves a checkpoint and ends. Suspended: it starts once "
        "spec.suspend is false and spec.budget suffices. Retrying: the next attempt starts after a delay. Succeeded: "
        "it made its outputs. "
        "Cached: its outputs were in the store before. Unneeded: nothing that has to run reads its outputs. Failed: it "
        "is not tried again until a retry is asked for. Blocked: a stage before it failed. Cancelled: spec.cancel "
        "ended it. Queued and Unselected occur in local runs alone."
    )
    reason: Word | None = setting(
        None, "reason is the cause of a wait, as a word for programs: Unschedulable, PodsMissing, QueuePending, ..."
    )
    message: Text | None = setting(None, "message is a sentence that says why the stage is in its phase.")
    why: Text | None = setting(
        None,
        "why is a sentence that says why the stage's outputs had to be made, such as which setting or input differs.",
    )
    attempts: int = setting(help="attempts is the number of attempts that were made, the present one included.")
    step: int | None = setting(None, "step is the number of steps that the running attempt has done.", unit="steps")
    total: int | None = setting(None, "total is the number of steps of the stage, once known.", unit="steps")
    pause: Text | None = setting(
        None, "pause is what the running attempt does while it makes no steps, for example measuring CORE."
    )
    rate: Text | None = setting(
        None, "rate is how fast the running attempt is, with its units, for example 9,800 tokens/s."
    )
    loss: float | None = setting(
        None,
        "loss is the smoothed training loss that was reported last: in nats per token, in rl that of its objective.",
    )
    eta: float | None = setting(
        None, "eta is the estimated time in seconds to the end of what the attempt is doing.", unit="seconds"
    )
    started: datetime | None = setting(None, "started is the time at which the first attempt began.")
    ended: datetime | None = setting(None, "ended is the time at which the last attempt ended.")
    keys: Words = setting(
        help="keys holds the key of each artifact that the stage makes, by kind and name. The same key is the same "
        "content."
    )


class AttemptStatus(StatusSection):
    """One attempt of a stage."""

    stage: Word = setting(help="stage is the name of the stage that the attempt is of.")
    number: int = setting(help="number is the number of the attempt among those of its stage, from 1.")
    job: Word = setting(help="job is the name of the attempt's PyTorchJob, in the pipeline's namespace.")
    reason: Word = setting(
        help=f"reason is how the attempt ended, as one of {', '.join(Reason)}; Running until it has."
    )
    message: Text | None = setting(None, "message is a sentence that says why the attempt ended, or is being stopped.")
    started: datetime = setting(help="started is the time at which the attempt's job was created.")
    ended: datetime | None = setting(None, "ended is the time at which the attempt was found to be over.")
    nodes: Annotated[tuple[Word, ...], Field(max_length=64)] = setting(
        help="nodes are the names of the nodes that pods of the attempt ran on; of too many the first by name."
    )
    node_count: int | None = setting(
        None, "nodeCount is the number of nodes that the attempt was started for: nodes, or fewer down to minNodes."
    )
    suspects: Annotated[tuple[Word, ...], Field(max_length=16)] | None = setting(
        None,
        "suspects are the names of the nodes that the attempt's end speaks against: the next attempts prefer others.",
    )
    batch: int = setting(
        help="batch is the number of rows in one forward pass of one process: deviceBatchSize, or less after memory "
        "ran out.",
        unit="rows",
    )


class ProfileStatus(StatusSection):
    """The store profile, as it was when the spec was accepted last."""

    root: Text = setting(help="root is the address of the folder in the store below which all artifacts and runs are.")
    endpoint: Text | None = setting(None, "endpoint is the address of the S3 server; AWS where there is none.")
    region: Text | None = setting(None, "region is the region of the store, where one is set.")
    anonymous: bool = setting(help="anonymous says whether requests to the store are sent without a signature.")
    tracking: Text | None = setting(None, "tracking is the tracking URI of the MLflow server, where there is one.")
    secret: Word | None = setting(None, "secret is the name of the Secret whose keys the pods get as variables.")
    service_account: Word | None = setting(None, "serviceAccount is the name of the service account of the pods.")


class AccessStatus(StatusSection):
    """The address of logs and report, and the token for them."""

    service: Word = setting(
        help="service is the controller's Service, as namespace/name:port, for the API server's proxy."
    )
    token: Word = setting(
        help="token is sent in the header X-Nanochat-Token to read this pipeline's logs and report. It is good until "
        "expiresAt and replaced a day before."
    )
    expires_at: datetime | None = setting(None, "expiresAt is when the token ceases to be good.")


class QueueStatus(StatusSection):
    """The state in Kueue of the job that waits or runs."""

    name: Word = setting(help="name is the name of the LocalQueue that the job is in.")
    workload: Word = setting(help="workload is the name of Kueue's Workload for the job.")
    state: Word = setting(
        help="state is how far Kueue is with the job: Pending, QuotaReserved, Admitted, Evicted or Finished."
    )
    message: Text = setting(help="message is Kueue's sentence about this state, such as which quota is short.")


class Condition(StatusSection):
    """A condition, as metav1.Condition."""

    type: ConditionType = setting(
        help="type is the name of the condition: Accepted, StorageReachable, WithinBudget, Succeeded or Serving."
    )
    status: Literal["True", "False", "Unknown"] = setting(
        help="status says whether the condition holds: True, False or Unknown."
    )
    reason: ConditionReason = setting(help="reason is the cause of the last transition, as a word for programs.")
    message: ConditionMessage = setting(help="message is a sentence for people about the transition. It may be empty.")
    last_transition_time: datetime = setting(
        help="lastTransitionTime is the time at which the condition's status last changed to another value."
    )
    observed_generation: int | None = setting(
        None, "observedGeneration is the metadata.generation that the condition was found for.", ge=0, le=None
    )


class PipelineStatus(StatusSection):
    """status says where the pipeline stands, as the controller saw it last."""

    observed_generation: int | None = setting(
        None, "observedGeneration is the metadata.generation of the spec that is carried out.", ge=0, le=None
    )
    phase: Phase | None = setting(
        None,
        "phase is where the pipeline stands as a whole. Waiting: nothing can start yet. Running: a stage is under way. "
        "Stopping: running stages end. Suspended: it goes on once spec.suspend is false and spec.budget suffices. "
        "Succeeded, Failed and "
        "Cancelled are final until spec changes or a retry is asked for. The other phases are those of stages.",
    )
    message: Text | None = setting(None, "message is a sentence that says why the pipeline is in its phase.")
    stage: Word | None = setting(
        None, "stage is the name of the stage to look at: one that is under way, or else the one that failed."
    )
    progress: Word | None = setting(
        None, "progress is the step that this stage is at, of all its steps, as step/total."
    )
    eta: Word | None = setting(None, "eta is the estimated time to the end of this stage, for people, such as 1.5h.")
    loss: Word | None = setting(None, "loss is the loss of this stage, as in stages, with three decimals.")
    core: Word | None = setting(None, "core is CORE of the base model, once measured, with four decimals.")
    started: datetime | None = setting(None, "started is the time at which the first attempt began.")
    finished: datetime | None = setting(
        None, "finished is the time at which the pipeline was found Succeeded, Failed or Cancelled."
    )
    run: Text | None = setting(
        None, "run is the path of the run's folder below the store's root, with its attempts, logs and progress."
    )
    retried_at: Text | None = setting(
        None, "retriedAt is the value of the annotation nanochat.dev/retry that was carried out last."
    )
    gpu_hours: float | None = setting(
        None, "gpuHours is the time that GPUs were held by pods of the pipeline, in hours.", unit="hours"
    )
    cost: float | None = setting(
        None,
        "cost is the price in USD of the machines that pods of the pipeline held, by spec.cost.gpuHour or the prices "
        "of the pools.",
        unit="USD",
    )
    lost_cost: float | None = setting(
        None, "lostCost is the part of cost in USD for work that attempts did in vain.", unit="USD"
    )
    waiting_cost: float | None = setting(
        None, "waitingCost is the part of cost in USD in which some pods of an attempt waited for others.", unit="USD"
    )
    horizon: Words | None = setting(
        None,
        "horizon says what the base stage trains and for how long: the number of parameters, steps, tokens, shards of "
        "text and floating-point operations.",
    )
    stages: Annotated[tuple[StageStatus, ...], Field(max_length=32)] | None = setting(
        None,
        "stages are the stages in their order: dataset, tokenizer, tokens, base, mid, sft, rl, an evaluation "
        "(eval-base, eval-mid, ...) after each model, report and release. Each makes artifacts, which are stored by a "
        "key of all that they are made from; a stage whose artifacts are all in the store is Cached and does not run.",
    )
    attempts: Annotated[tuple[AttemptStatus, ...], Field(max_length=20)] | None = setting(
        None, "attempts are the last attempts of all stages, the newest at the end. All are in the run's folder."
    )
    profile: ProfileStatus | None = setting(
        None, "profile is the store profile, as it was when the spec was accepted last."
    )
    access: AccessStatus | None = setting(
        None, "access says where stored logs and the report are read through the controller, and with which token."
    )
    queue: QueueStatus | None = setting(
        None, "queue is what Kueue says of the job that waits, where spec.queue is set."
    )
    conditions: Annotated[tuple[Condition, ...], Field(max_length=16)] | None = setting(
        None,
        "conditions are what was found about the pipeline: Accepted (the spec passed all checks), StorageReachable, "
        "WithinBudget, Succeeded, and Serving (the chat API serves the version that this pipeline released).",
    )
