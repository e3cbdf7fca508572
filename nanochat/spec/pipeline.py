"""The root of the declaration: one ChatPipeline."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, StringConstraints, model_validator

from nanochat.spec.fields import LabelKey, LabelValue, Name, Section, setting
from nanochat.spec.pods import ObjectName, PodSettings
from nanochat.spec.sources import Sources
from nanochat.spec.stages import Stage, Stages


class ModelSettings(Section):
    """The model's shape; `depth` is the one dial that sets all else."""

    depth: int = setting(20, "Number of transformer blocks.", ge=1, le=256)
    aspect_ratio: int = setting(64, "Width for each block of depth.", ge=8, le=1024)
    head_dim: int = setting(128, "Width that one head aims at.", ge=8, le=512)
    width: int | None = setting(None, "Width, instead of depth x aspectRatio.", ge=16, le=65_536)
    kv_heads: int | None = setting(None, "Key and value heads; by default as many as query heads.", ge=1)
    sequence_length: int = setting(2048, "Context.", unit="tokens", ge=16, le=1_048_576)


class Retries(Section):
    """How often an attempt that failed is made again."""

    limit: int = setting(3, "Attempts beyond the first that count against a stage.", ge=0, le=100, key=False)
    delay_seconds: float = setting(5.0, "First delay; it doubles each time.", unit="seconds", ge=0, key=False)
    max_delay_seconds: float = setting(300.0, "Longest delay.", unit="seconds", ge=0, key=False)
    stall_seconds: float = setting(
        900.0, "Seconds without a heartbeat before a stage counts as stalled.", unit="seconds", ge=10, key=False
    )


class Cost(Section):
    """Prices, for the report."""

    gpu_hour: float = setting(3.0, "Price of one GPU hour.", unit="USD", ge=0, key=False)


class PipelineSpec(Section):
    """What a pipeline makes and how."""

    store: Name = setting("default", "Name of the store profile.", key=False)
    seed: int = setting(42, "Seed of everything random.", ge=0, le=2**31 - 1)
    model: ModelSettings = setting(ModelSettings, "The model's shape.")
    sources: Sources = setting(Sources, "Where data comes from.")
    stages: Stages = setting(Stages, "The stages.")
    retries: Retries = setting(Retries, "What happens when an attempt fails.")
    cost: Cost = setting(Cost, "Prices.")
    suspend: bool = setting(False, "Whether stages save a checkpoint, stop, and wait until this is false.", key=False)
    cancel: bool = setting(False, "Whether the pipeline ends now; what it made stays.", key=False)
    pods: PodSettings = setting(PodSettings, "Pods of all stages on a cluster.", key=False)
    queue: ObjectName | None = setting(None, "Kueue's LocalQueue that the jobs wait in.", key=False)
    priority: ObjectName | None = setting(None, "Kueue's WorkloadPriorityClass of the jobs.", key=False)
    job_ttl_seconds: int = setting(
        3600, "Seconds until the job of an attempt that ended is deleted.", unit="seconds", ge=0, key=False
    )
    stop_grace_seconds: int = setting(
        120, "Seconds that pods have to save a checkpoint when they are stopped.", unit="seconds", ge=5, key=False
    )

    def of_stage(self, stage: str) -> Stage:
        """The settings of a stage of the graph; one section is for the evaluations of all chat models."""
        chat = stage in ("eval-mid", "eval-sft", "eval-rl")
        return getattr(self.stages, "eval_chat" if chat else stage.replace("-", "_"))

    @model_validator(mode="after")
    def _batches(self) -> PipelineSpec:
        length = self.model.sequence_length
        for name in ("base", "mid"):
            stage = getattr(self.stages, name)
            total = stage.total_batch_tokens
            if total % length:
                low, high = total // length * length, (total // length + 1) * length
                near = f"{low} or {high}" if low else f"{high}"
                raise ValueError(
                    f"stages.{name}.totalBatchTokens ({total}) must be a multiple of model.sequenceLength ({length}): "
                    f"set it to {near}"
                )
        return self


PipelineName = Annotated[str, StringConstraints(min_length=1, max_length=32, pattern=r"^[a-z]([-a-z0-9]*[a-z0-9])?$")]


class Metadata(Section):
    """Name and namespace, as Kubernetes has them."""

    name: PipelineName = setting(help="Name of the pipeline: lower-case letters, digits and '-', up to 32.")
    namespace: Name = setting("default", "Namespace.")
    labels: Annotated[dict[LabelKey, LabelValue], Field(max_length=64)] = setting(dict, "Labels.", key=False)
    annotations: Annotated[dict[LabelKey, str], Field(max_length=64)] = setting(dict, "Annotations.", key=False)


class Pipeline(Section):
    """One YAML file."""

    api_version: Literal["nanochat.dev/v1alpha1"] = setting(help="Version of the declaration.")
    kind: Literal["ChatPipeline"] = setting(help="Always ChatPipeline.")
    metadata: Metadata = setting(help="Name and namespace.")
    spec: PipelineSpec = setting(PipelineSpec, "The pipeline.")
