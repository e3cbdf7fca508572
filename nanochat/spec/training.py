"""Settings of the stages that train, with the reference's hyper-parameters as defaults."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator
from pydantic_core import PydanticCustomError

from nanochat.spec.fields import ArtifactKey, IdentityAddress, Name, Section, Text, setting
from nanochat.spec.stages import DEVICE_BATCH_SIZE, ComputeStage

# Comments of fields that several stages have.
TOTAL_BATCH_TOKENS = (
    "totalBatchTokens is the number of tokens of one optimizer step over all processes, a multiple of "
    "model.sequenceLength."
)
INIT_LR_FRACTION = "initLrFraction is the learning rate that training begins with, as a fraction of the full one."
FINAL_LR_FRACTION = "finalLrFraction is the learning rate that training ends at, as a fraction of the full one."
WARMDOWN_RATIO = "warmdownRatio is the fraction of the steps, at the end, in which the learning rate falls."
MOMENTUM_WARMUP_STEPS = (
    "momentumWarmupSteps is the number of first steps in which Muon's momentum rises from 0.85 to 0.95."
)
EMBEDDING_LR = "embeddingLr is AdamW's learning rate for the embedding at width 768; it falls with the width's root."
UNEMBEDDING_LR = "unembeddingLr is AdamW's learning rate for the head at width 768; it falls with the width's root."
EVAL_EVERY = "evalEvery is the number of optimizer steps between measurements of {}; 0 measures none."
EVAL_TOKENS = "evalTokens is the number of validation tokens of one measurement in training."
MIXTURE = "mixture is the list of the tasks whose conversations the model is trained on."
VALIDATION = "validation is the list of the tasks whose conversations the validation loss is measured on."


class MixturePart(Section):
    """Conversations of one task in a training mixture."""

    task: Name = setting(help="task is the name of the task whose conversations are taken.")
    split: Name = setting("train", "split is the split of the task that the conversations are taken from.")
    rows: int | None = setting(
        None, "rows is the number of conversations that are taken, from the split's start. Defaults to all.", ge=1
    )
    epochs: int = setting(1, "epochs is the number of times that each conversation is in the mixture.", ge=1, le=100)


Mixture = Annotated[tuple[MixturePart, ...], Field(max_length=64)]


class TrainingStage(ComputeStage):
    """Settings of the stages that train: base, mid, sft and rl."""

    nodes: int = setting(
        1, "nodes is the number of nodes, and so of pods, that an attempt runs on.", ge=1, le=1024, key=False
    )
    min_nodes: int | None = setting(
        None,
        "minNodes is the number of nodes that are enough where a cluster has no room for all: the batch stays the "
        "same, and the stage grows back when there is room. It means nothing on a machine of your own. Defaults to "
        "nodes.",
        ge=1,
        le=1024,
        key=False,
    )
    patience_seconds: float = setting(
        300.0,
        "patienceSeconds is the time in seconds that an attempt waits for all its nodes before it does with fewer, and "
        "that one with fewer runs before it grows.",
        unit="seconds",
        ge=1,
        key=False,
    )
    compile: Literal["auto", "always", "never", "max-autotune"] = setting(
        "auto",
        "compile says whether torch.compile compiles the model; auto does so where that saves more time than it takes. "
        "On a GPU max-autotune tries kernels for each product first, which takes minutes, but not with deterministic.",
        key=False,
    )
    deterministic: bool = setting(
        False,
        "deterministic says whether a GPU computes the same bits each time, so that a resumed stage ends with the "
        "weights of an undisturbed one; at depth 20 an H200 then takes 10 % longer. A CPU always computes so.",
        key=False,
    )
    embedding_lr: float = setting(0.2, EMBEDDING_LR, gt=0, le=100)
    unembedding_lr: float = setting(0.004, UNEMBEDDING_LR, gt=0, le=100)
    matrix_lr: float = setting(0.02, "matrixLr is Muon's learning rate for the matrices of the blocks.", gt=0, le=100)
    weight_decay: float = setting(
        0.0, "weightDecay is AdamW's decoupled weight decay, for embedding and head.", ge=0, le=100
    )
    grad_clip: float | None = setting(
        None, "gradClip is the largest global norm of the gradient. By default it is not clipped.", gt=0
    )
    checkpoint_every_seconds: float | None = setting(
        600.0,
        "checkpointEverySeconds is the time in seconds between checkpoints; null saves none by time.",
        unit="seconds",
        gt=0,
        key=False,
    )
    checkpoint_every: int | None = setting(
        None,
        "checkpointEvery is the number of optimizer steps between checkpoints, besides those by time. By default there "
        "are none by steps.",
        unit="steps",
        ge=1,
        key=False,
    )
    keep_checkpoints: int = setting(
        2, "keepCheckpoints is the number of newest checkpoints of the stage that are kept.", ge=1, le=100, key=False
    )
    log_every: int = setting(
        1, "logEvery is the number of optimizer steps between logged metrics.", unit="steps", ge=1, key=False
    )
    skip_on_divergence: int = setting(
        50,
        "skipOnDivergence is the largest number of steps whose data is left out when training diverges. Training then "
        "goes on, once, from the newest checkpoint.",
        unit="steps",
        ge=1,
    )

    @model_validator(mode="after")
    def _has_nodes_enough(self) -> TrainingStage:
        if self.least_nodes > self.nodes:
            problem = "minNodes ({least}) is above nodes ({nodes}): a stage does with fewer nodes, never with more"
            raise PydanticCustomError("nodes", problem, {"least": self.min_nodes, "nodes": self.nodes})
        return self

    @property
    def least_nodes(self) -> int:
        """Nodes without which an attempt waits."""
        return self.min_nodes or self.nodes


class PackedStage(TrainingStage):
    """Settings of base and mid, whose rows are all as long as the trained context."""

    fp8: bool = setting(
        False,
        "fp8 says whether the blocks' matrices are multiplied in FP8, which takes a GPU of compute capability 8.9 or "
        "newer, such as an H100, and gains at depth 20 and beyond.",
        key="changed",
    )


class BaseStage(PackedStage):
    """Pretraining. The horizon is `steps`, else `targetFlops`, else `tokensPerParameter`."""

    tokens_per_parameter: float = setting(
        20.0,
        "tokensPerParameter is the number of training tokens for each parameter, from which the steps follow. Value "
        "embeddings are not counted, and with scalingRules the embedding is not.",
        modern=10.5,
        gt=0,
        le=1e6,
    )
    target_flops: float | None = setting(
        None,
        "targetFlops is the number of training FLOPs. By default the steps follow from tokensPerParameter.",
        gt=0,
        le=1e30,
    )
    steps: int | None = setting(
        None, "steps is the number of optimizer steps. Defaults to what targetFlops or tokensPerParameter gives.", ge=1
    )
    total_batch_tokens: int = setting(524_288, TOTAL_BATCH_TOKENS, unit="tokens", ge=1)
    warmup_ratio: float = setting(
        0.0, "warmupRatio is the fraction of the steps in which the learning rate rises to its full value.", ge=0, le=1
    )
    warmdown_ratio: float = setting(0.2, WARMDOWN_RATIO, modern=0.65, ge=0, le=1)
    final_lr_fraction: float = setting(0.0, FINAL_LR_FRACTION, modern=0.05, ge=0, le=1)
    momentum_warmup_steps: int = setting(300, MOMENTUM_WARMUP_STEPS, unit="steps", ge=0)
    scaling_rules: bool = setting(
        False,
        "scalingRules lets the batch follow from the number of training tokens, in place of totalBatchTokens: the "
        "power of two next to 524288 (tokens / those of depth 12)^0.383. Rates and decay follow from the batch.",
        key="changed",
    )
    embedding_lr: float = setting(0.2, EMBEDDING_LR, gt=0, le=100)
    unembedding_lr: float = setting(0.004, UNEMBEDDING_LR, gt=0, le=100)
    orthogonalisation: Literal["newton-schulz", "polar-express"] = setting(
        "newton-schulz",
        "orthogonalisation is the polynomials by which Muon makes a step orthogonal.",
        modern="polar-express",
        key="changed",
    )
    matrix_decay: float = setting(
        0.0,
        "matrixDecay is the weight decay of the blocks' matrices, which falls to 0. It shrinks only weights that the "
        "step moves towards 0.",
        modern=0.28,
        key="changed",
        ge=0,
        le=100,
    )
    packing: Literal["stream", "best-fit"] = setting(
        "stream",
        "packing says how rows are made of text: stream cuts one after the other from it, best-fit begins each with "
        "the beginning of a document and chooses documents that fill it.",
        modern="best-fit",
        key="changed",
    )
    grad_clip: float | None = setting(
        1.0, "gradClip is the largest global norm of the gradient; null does not clip it.", gt=0
    )
    eval_every: int = setting(250, EVAL_EVERY.format("bits per byte"), unit="steps", ge=0, key=False)
    eval_tokens: int = setting(10_485_760, EVAL_TOKENS, unit="tokens", ge=1, key=False)
    core_every: int = setting(
        2000,
        "coreEvery is the number of optimizer steps between measurements of CORE, where stages.evalBase.core is on; 0 "
        "measures none.",
        unit="steps",
        ge=0,
        key=False,
    )
    core_max_per_task: int = setting(
        500, "coreMaxPerTask is the largest number of examples of each CORE task in training.", ge=1, key=False
    )
    sample_every: int = setting(
        2000,
        "sampleEvery is the number of optimizer steps between samples that are printed to the log; 0 prints none.",
        unit="steps",
        ge=0,
        key=False,
    )
    sample_prompts: Annotated[tuple[Text, ...], Field(max_length=32)] = setting(
        (),
        "samplePrompts are beginnings that the base model continues in log and report. Defaults to seven of general "
        "knowledge.",
        key=False,
    )


def _mid_mixture() -> Mixture:
    return (
        MixturePart(task="smoltalk"),
        MixturePart(task="mmlu", split="auxiliary-train"),
        MixturePart(task="gsm8k"),
        MixturePart(task="identity", epochs=2),
        MixturePart(task="simple-spelling", rows=200_000),
        MixturePart(task="spelling-bee", rows=80_000),
    )


def _mid_validation() -> Mixture:
    return (
        MixturePart(task="smoltalk", split="test"),
        MixturePart(task="mmlu", split="test", rows=5200),
        MixturePart(task="gsm8k", split="test", rows=420),
    )


INITIAL_MODEL = (
    "initialModel is the key of a model of the store, as `nanochat import` tells it, that this stage starts from, and "
    "that model and stages.tokenizer.vocabSize have to describe. By default the stages before it train one."
)


class MidStage(PackedStage):
    """Midtraining: one epoch of packed conversations, every token trained."""

    initial_model: ArtifactKey | None = setting(None, INITIAL_MODEL, key="changed")
    mixture: Mixture = setting(_mid_mixture, MIXTURE, min_length=1)
    validation: Mixture = setting(_mid_validation, VALIDATION, min_length=1)
    identity: IdentityAddress | None = setting(
        None,
        "identity is the address of a JSONL file of conversations that say who the model is; on a cluster "
        "that may be configmap://NAME/KEY. Defaults to sources.identity.",
        key=False,
    )
    steps: int | None = setting(
        None, "steps is the number of optimizer steps. Defaults to one epoch of the mixture.", ge=1
    )
    total_batch_tokens: int = setting(524_288, TOTAL_BATCH_TOKENS, unit="tokens", ge=1)
    init_lr_fraction: float = setting(1.0, INIT_LR_FRACTION, gt=0, le=1)
    warmdown_ratio: float = setting(0.2, WARMDOWN_RATIO, ge=0, le=1)
    final_lr_fraction: float = setting(0.0, FINAL_LR_FRACTION, ge=0, le=1)
    momentum_warmup_steps: int = setting(300, MOMENTUM_WARMUP_STEPS, unit="steps", ge=0)
    eval_every: int = setting(150, EVAL_EVERY.format("bits per byte"), unit="steps", ge=0, key=False)
    eval_tokens: int = setting(10_485_760, EVAL_TOKENS, unit="tokens", ge=1, key=False)


def _sft_mixture() -> Mixture:
    return (
        MixturePart(task="arc-easy"),
        MixturePart(task="arc-challenge"),
        MixturePart(task="gsm8k"),
        MixturePart(task="smoltalk", rows=10_000),
        MixturePart(task="identity"),
        MixturePart(task="simple-spelling", rows=300),
        MixturePart(task="spelling-bee", rows=300),
    )


def _sft_validation() -> Mixture:
    return (MixturePart(task="smoltalk", split="test"),)


class SftStage(TrainingStage):
    """Supervised fine-tuning: one conversation a row, only the assistant's tokens trained."""

    initial_model: ArtifactKey | None = setting(None, INITIAL_MODEL, key="changed")
    mixture: Mixture = setting(_sft_mixture, MIXTURE, min_length=1)
    validation: Mixture = setting(_sft_validation, VALIDATION, min_length=1)
    epochs: int = setting(1, "epochs is the number of passes over the mixture.", ge=1, le=100)
    steps: int | None = setting(None, "steps is the number of optimizer steps. Defaults to what epochs comes to.", ge=1)
    rows_per_step: int = setting(
        32,
        "rowsPerStep is the number of rows, each a conversation, of one optimizer step over all processes.",
        unit="rows",
        ge=1,
        le=1_048_576,
    )
    device_batch_size: int = setting(4, DEVICE_BATCH_SIZE, unit="rows", ge=1, le=65_536, key=False)
    init_lr_fraction: float = setting(0.02, INIT_LR_FRACTION, gt=0, le=1)
    final_lr_fraction: float = setting(0.0, FINAL_LR_FRACTION, ge=0, le=1)
    eval_every: int = setting(100, EVAL_EVERY.format("the validation loss"), unit="steps", ge=0, key=False)
    eval_rows: int = setting(
        3200, "evalRows is the number of conversations of one measurement in training.", ge=1, key=False
    )
    tasks_every: int = setting(
        200,
        "tasksEvery is the number of optimizer steps between measurements of the tasks of stages.evalChat that are of "
        "multiple choice, such as MMLU and ARC; 0 measures none.",
        unit="steps",
        ge=0,
        key=False,
    )
    tasks_rows: int = setting(
        1024, "tasksRows is the largest number of problems of each of these tasks in training.", ge=1, key=False
    )


def _rl_tasks() -> Mixture:
    return (MixturePart(task="gsm8k"),)


class RlStage(TrainingStage):
    """Reinforcement learning on tasks that reward: REINFORCE with the group's mean as baseline."""

    tasks: Mixture = setting(_rl_tasks, "tasks are the tasks that give prompts and reward the samples.", min_length=1)
    epochs: int = setting(1, "epochs is the number of passes over the prompts.", ge=1, le=100)
    steps: int | None = setting(None, "steps is the number of optimizer steps. Defaults to what epochs comes to.", ge=1)
    prompts_per_step: int = setting(
        16, "promptsPerStep is the number of prompts of one optimizer step over all processes.", ge=1, le=65_536
    )
    samples_per_prompt: int = setting(
        16,
        "samplesPerPrompt is the number of samples of each prompt, whose mean reward is the baseline.",
        ge=2,
        le=65_536,
    )
    device_batch_size: int = setting(8, DEVICE_BATCH_SIZE, unit="rows", ge=1, le=65_536, key=False)
    max_new_tokens: int = setting(
        256, "maxNewTokens is the length of the longest sample, in tokens.", unit="tokens", ge=1, le=1_048_576
    )
    temperature: float = setting(1.0, "temperature is the temperature at which samples are drawn.", gt=0, le=10)
    top_k: int | None = setting(
        50, "topK is the number of most likely tokens that samples are drawn from; null takes all.", ge=1, le=1_048_576
    )
    init_lr_fraction: float = setting(0.05, INIT_LR_FRACTION, gt=0, le=1)
    final_lr_fraction: float = setting(0.0, FINAL_LR_FRACTION, ge=0, le=1)
    eval_every: int = setting(60, EVAL_EVERY.format("pass@1"), unit="steps", ge=0, key=False)
    eval_rows: int = setting(400, "evalRows is the number of problems of one measurement in training.", ge=1, key=False)
    eval_samples: int = setting(
        1,
        "evalSamples is the number of samples of each of these problems; with several pass@k is told, for k = 2, 4, 8 "
        "and so on.",
        ge=1,
        le=256,
        key=False,
    )
