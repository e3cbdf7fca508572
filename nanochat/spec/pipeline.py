"""The root of the declaration: one ChatPipeline."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, StringConstraints, model_validator

from nanochat.spec.comments import Form
from nanochat.spec.cost import Budget, Cost
from nanochat.spec.fields import LabelKey, LabelValue, Name, Section, setting, with_modern_defaults
from nanochat.spec.pods import ObjectName, PodSettings
from nanochat.spec.sources import Sources
from nanochat.spec.stages import (
    BaseEvaluation,
    ChatEvaluation,
    DatasetStage,
    ReleaseStage,
    ReportStage,
    Stage,
    TokenizerStage,
    TokensStage,
)
from nanochat.spec.training import BaseStage, MidStage, RlStage, SftStage

WindowPattern = Annotated[
    str, StringConstraints(min_length=1, max_length=64, pattern="^[SL]+$"), Form("consist of S and L")
]


class ModelSettings(Section):
    """The model's shape, which `depth` alone decides where nothing else is set."""

    depth: int = setting(
        20,
        "depth is the number of transformer blocks. The width, the heads and, through them, the training steps follow "
        "from it.",
        ge=1,
        le=256,
    )
    aspect_ratio: int = setting(
        64, "aspectRatio is the width of the model for each of its blocks: width = depth x aspectRatio.", ge=8, le=1024
    )
    head_dim: int = setting(
        128,
        "headDim is the width that one attention head aims at; the heads then divide the width evenly.",
        ge=8,
        le=512,
    )
    width: int | None = setting(
        None, "width is the number of channels of the model. Defaults to depth x aspectRatio.", ge=16, le=65_536
    )
    kv_heads: int | None = setting(
        None, "kvHeads is the number of key and value heads. Defaults to the number of query heads.", ge=1, le=65_536
    )
    sequence_length: int = setting(
        2048,
        "sequenceLength is the context that the model is trained on, in tokens.",
        unit="tokens",
        ge=16,
        le=1_048_576,
    )
    recipe_name: Literal["classic", "modern"] = setting(
        "classic",
        "recipe is the set of defaults, of these settings and of the stages': classic is karpathy/nanochat's model of "
        "November 2025, modern what its later ablations added. Each can be set by itself as well.",
        alias="recipe",
    )
    value_embeddings: bool = setting(
        False,
        "valueEmbeddings gives every second layer a table of each token's part of the values, which a gate lets in.",
        modern=True,
    )
    residual_scalars: bool = setting(
        False,
        "residualScalars scales the input of each layer, and adds the embedding to it again, by learned numbers.",
    )
    window_pattern: WindowPattern = setting(
        "L",
        "windowPattern says what attention sees, layer after layer and again from its start: L the whole context, S "
        "the last quarter of sequenceLength. The last layer is always L.",
        modern="SSSL",
    )
    smear: bool = setting(
        False, "smear mixes a learned part of the token before into each token's embedding.", modern=True
    )
    backout: bool = setting(False, "backout takes a learned part of the middle layer's output out of the last one's.")


TRAINING = ("base", "mid", "sft", "rl")


class Stages(Section):
    """The stages in their order."""

    dataset: DatasetStage = setting(DatasetStage, "dataset mirrors and verifies text, task data and evaluation bundle.")
    tokenizer: TokenizerStage = setting(
        TokenizerStage, "tokenizer trains the vocabulary of byte-level BPE on the text."
    )
    tokens: TokensStage = setting(TokensStage, "tokens turns text and conversations into token files.")
    base: BaseStage = setting(BaseStage, "base pretrains the model on the text. It cannot be disabled.")
    mid: MidStage = setting(MidStage, "mid trains the base model on packed conversations of all kinds.")
    sft: SftStage = setting(SftStage, "sft fine-tunes the model on single conversations, under supervision.")
    rl: RlStage = setting(RlStage, "rl trains the model by reinforcement learning on tasks that reward.")
    eval_base: BaseEvaluation = setting(
        BaseEvaluation, "evalBase measures the base model: CORE, bits per byte and samples."
    )
    eval_chat: ChatEvaluation = setting(
        ChatEvaluation, "evalChat measures the chat models after mid, sft and rl, each in a stage of its own."
    )
    report: ReportStage = setting(ReportStage, "report writes report.md, report.html and the model card.")
    release: ReleaseStage = setting(
        ReleaseStage, "release registers the model in MLflow and makes it champion where the gates hold."
    )

    @model_validator(mode="after")
    def _needed(self) -> Stages:
        for name in ("dataset", "tokenizer", "tokens"):
            if not getattr(self, name).enabled:
                raise ValueError(f"stages.{name} makes what all later stages read and cannot be disabled")
        if not self.base.enabled:
            raise ValueError("stages.base cannot be disabled: mid, sft and rl start from its weights")
        if self.mid.initial_model and self.sft.initial_model:
            raise ValueError("stages.mid.initialModel and stages.sft.initialModel are given: one stage starts from it")
        for name in ("mid", "sft"):
            stage = getattr(self, name)
            if stage.initial_model and not stage.enabled:
                raise ValueError(f"stages.{name}.initialModel is given and stages.{name} is not enabled")
        return self

    @property
    def initial_model(self) -> str | None:
        """The key of the model that training starts from; None where base trains one."""
        return self.mid.initial_model or self.sft.initial_model

    def trained(self) -> tuple[str, ...]:
        """The stages that train, in their order."""
        first = "mid" if self.mid.initial_model else "sft" if self.sft.initial_model else "base"
        return tuple(name for name in TRAINING[TRAINING.index(first) :] if getattr(self, name).enabled)


class Retries(Section):
    """Limit and delays of further attempts after one that failed."""

    limit: int = setting(
        3,
        "limit is the number of further attempts that a stage gets without progress. An attempt that got further than "
        "those before it sets the count back to 0.",
        ge=0,
        le=100,
        key=False,
    )
    delay_seconds: float = setting(
        5.0,
        "delaySeconds is the time in seconds before the first retry; each further one doubles it.",
        unit="seconds",
        ge=0,
        key=False,
    )
    max_delay_seconds: float = setting(
        300.0, "maxDelaySeconds is the longest time in seconds before a retry.", unit="seconds", ge=0, key=False
    )
    stall_seconds: float = setting(
        900.0,
        "stallSeconds is the time in seconds without a heartbeat after which an attempt counts as stalled and is "
        "stopped.",
        unit="seconds",
        ge=10,
        key=False,
    )
    start_seconds: float = setting(
        1800.0,
        "startSeconds is the time in seconds without a heartbeat after which an attempt that has not made its first "
        "step counts as stalled: it loads programs and data, and compiles. It is at least stallSeconds.",
        unit="seconds",
        ge=10,
        key=False,
    )


class PipelineSpec(Section):
    """The desired pipeline: the model, its data, its stages, and how their attempts run."""

    store: Name = setting(
        "default",
        "store is the name of the store profile that the artifacts are kept in. It cannot be changed.",
        key=False,
    )
    seed: int = setting(42, "seed is the seed of everything random, in all stages.", ge=0, le=2**31 - 1)
    model: ModelSettings = setting(ModelSettings, "model is the shape of the model that is trained.")
    sources: Sources = setting(Sources, "sources says where text, task data and the evaluation bundle come from.")
    stages: Stages = setting(Stages, "stages holds the settings of each stage, from the dataset to the release.")
    retries: Retries = setting(Retries, "retries says how often, and after what delay, a failed attempt is repeated.")
    cost: Cost = setting(Cost, "cost holds the prices from which status and report reckon what the pipeline cost.")
    budget: Budget = setting(Budget, "budget limits what the pipeline may cost; raised, the pipeline goes on.")
    suspend: bool = setting(
        False,
        "suspend makes the running stages save a checkpoint and stop; they go on from it once this is false again.",
        key=False,
    )
    cancel: bool = setting(
        False, "cancel ends the pipeline, for as long as it is true. What was made stays in the store.", key=False
    )
    pods: PodSettings = setting(
        PodSettings, "pods holds the settings of the pods of all stages; a stage's own pod goes over them.", key=False
    )
    queue: ObjectName | None = setting(
        None,
        "queue is the name of Kueue's LocalQueue that admits the jobs. By default there is none, and jobs start at "
        "once.",
        key=False,
    )
    priority: ObjectName | None = setting(
        None,
        "priority is the name of Kueue's WorkloadPriorityClass of the jobs, where there is a queue. Defaults to "
        "Kueue's own.",
        key=False,
    )
    job_ttl_seconds: int = setting(
        3600,
        "jobTtlSeconds is the time in seconds after which the PyTorchJob of an ended attempt is deleted; its log and "
        "record stay in the store.",
        unit="seconds",
        ge=0,
        key=False,
    )
    stop_grace_seconds: int = setting(
        120,
        "stopGraceSeconds is the time in seconds that a pod, or a stage of a local run, has to save a checkpoint when "
        "it is stopped.",
        unit="seconds",
        ge=5,
        key=False,
    )

    @classmethod
    def prepare(cls, data: Any) -> Any:
        """With the modern recipe's defaults where it is the recipe."""
        model = data.get("model") if isinstance(data, dict) else None
        modern = isinstance(model, dict) and model.get("recipe") == "modern"
        return with_modern_defaults(data, cls) if modern else data

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
            if stage.fp8 and (length % 16 or stage.precision == "fp32"):
                raise ValueError(
                    f"stages.{name}.fp8 needs bf16 for all other numbers, and a model.sequenceLength that is a "
                    f"multiple of 16: they are {stage.precision} and {length}"
                )
        if self.priority is not None and self.queue is None:
            raise ValueError("priority is Kueue's and needs queue; that of pods is pods.priorityClass")
        base, measured = self.stages.base, self.stages.eval_base
        if base.eval_every and base.eval_tokens < length:
            raise ValueError(_too_few("stages.base.evalTokens", base.eval_tokens, length))
        if measured.enabled and measured.bits_per_byte_tokens < length:
            raise ValueError(_too_few("stages.evalBase.bitsPerByteTokens", measured.bits_per_byte_tokens, length))
        return self


def _too_few(setting: str, tokens: int, length: int) -> str:
    return (
        f"{setting} ({tokens}) must be at least model.sequenceLength ({length}): nothing is measured on less than a row"
    )


PipelineName = Annotated[
    str,
    StringConstraints(min_length=1, max_length=32, pattern=r"^[a-z]([-a-z0-9]*[a-z0-9])?$"),
    Form("consist of lower-case letters, digits and inner '-', and begin with a letter"),
]

Annotation = Annotated[str, StringConstraints(max_length=262_144)]  # what the API server takes of all together


class Metadata(Section):
    """Name and namespace, as Kubernetes has them."""

    name: PipelineName = setting(help="name is the name of the pipeline, unique in its namespace.")
    namespace: Name = setting("default", "namespace is the namespace that the pipeline is in.")
    labels: Annotated[dict[LabelKey, LabelValue], Field(max_length=64)] = setting(
        dict, "labels are names and values by which the pipeline is selected.", key=False
    )
    annotations: Annotated[dict[LabelKey, Annotation], Field(max_length=64)] = setting(
        dict, "annotations are further names and values that programs keep with the pipeline.", key=False
    )


class Pipeline(Section):
    """One pipeline, as a YAML file or the API server holds it."""

    api_version: Literal["nanochat.dev/v1alpha1"] = setting(
        help="apiVersion is the group and version of this schema: nanochat.dev/v1alpha1.", key=False
    )
    kind: Literal["ChatPipeline"] = setting(help="kind is the name of this schema, which is ChatPipeline.", key=False)
    metadata: Metadata = setting(help="metadata holds the pipeline's name, namespace, labels and annotations.")
    spec: PipelineSpec = setting(help="spec is the desired pipeline, in which every field has a default.")

    @classmethod
    def prepare(cls, data: Any) -> Any:
        """With the spec prepared."""
        has_spec = isinstance(data, dict) and "spec" in data
        return data | {"spec": PipelineSpec.prepare(data["spec"])} if has_spec else data
