"""Settings of the stages, with the reference's hyper-parameters as defaults."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from nanochat.spec.fields import Name, Section, Text, Uri, setting
from nanochat.spec.pods import PodSettings

# Comments of fields that several stages have.
DEVICE_BATCH_SIZE = (
    "deviceBatchSize is the number of rows in one forward pass of one process. It is halved where the device's memory "
    "runs out."
)
TOTAL_BATCH_TOKENS = (
    "totalBatchTokens is the number of tokens of one optimizer step over all processes. It must be a multiple of "
    "model.sequenceLength."
)
INIT_LR_FRACTION = "initLrFraction is the learning rate that training begins with, as a fraction of the full one."
FINAL_LR_FRACTION = "finalLrFraction is the learning rate that training ends at, as a fraction of the full one."
WARMDOWN_RATIO = "warmdownRatio is the fraction of the steps, at the end, in which the learning rate falls."
MOMENTUM_WARMUP_STEPS = (
    "momentumWarmupSteps is the number of first steps in which Muon's momentum rises from 0.85 to 0.95."
)
EVAL_EVERY = "evalEvery is the number of optimizer steps between measurements of {}; 0 measures none."
EVAL_TOKENS = "evalTokens is the number of validation tokens of one measurement in training."
MIXTURE = "mixture is the list of the tasks whose conversations the model is trained on."
VALIDATION = "validation is the list of the tasks whose conversations the validation loss is measured on."


class Stage(Section):
    """The settings of every stage."""

    enabled: bool = setting(True, "enabled says whether the stage is part of the pipeline.", key=False)
    pod: PodSettings = setting(PodSettings, "pod holds the settings of the stage's pods, over spec.pods.", key=False)


class DatasetStage(Stage):
    """Mirrors and verifies text, task data and the evaluation bundle."""


class TokenizerStage(Stage):
    """Byte-level BPE."""

    vocab_size: int = setting(
        65_536, "vocabSize is the number of tokens in the vocabulary, special ones included.", ge=265, le=1_048_576
    )
    max_chars: int = setting(
        2_000_000_000,
        "maxChars is the number of characters of text that the tokenizer is trained on.",
        unit="characters",
        ge=1000,
        le=100_000_000_000,
    )
    document_chars: int = setting(
        10_000,
        "documentChars is the number of characters that are read of each document, from its start.",
        unit="characters",
        ge=1,
    )


class TokensStage(Stage):
    """Text and conversations as token files."""

    workers: int | None = setting(
        None, "workers is the number of worker processes. Defaults to one for each CPU core.", ge=1, le=256, key=False
    )


class MixturePart(Section):
    """Conversations of one task in a training mixture."""

    task: Name = setting(help="task is the name of the task whose conversations are taken.")
    split: Name = setting("train", "split is the split of the task that the conversations are taken from.")
    rows: int | None = setting(
        None, "rows is the number of conversations that are taken, from the split's start. Defaults to all.", ge=1
    )
    epochs: int = setting(1, "epochs is the number of times that each conversation is in the mixture.", ge=1, le=100)


Mixture = Annotated[tuple[MixturePart, ...], Field(max_length=64)]


class ComputeStage(Stage):
    """What the stages that run a model have in common."""

    gpus_per_node: int = setting(
        0,
        "gpusPerNode is the number of GPUs that each node of the stage needs. With 0 a cluster gives it none, and a "
        "machine what is there.",
        ge=0,
        le=64,
        key=False,
    )
    processes_per_node: int | None = setting(
        None,
        "processesPerNode is the number of processes on each node. Defaults to gpusPerNode, or to 1 without GPUs.",
        ge=1,
        le=256,
        key=False,
    )
    device_batch_size: int = setting(32, DEVICE_BATCH_SIZE, unit="rows", ge=1, key=False)
    precision: Literal["auto", "bf16", "fp32"] = setting(
        "auto",
        "precision is the number format of the computation: bf16, fp32, or auto for bf16 where the device has it.",
    )

    @property
    def processes(self) -> int:
        """Processes of one machine."""
        return self.processes_per_node or max(1, self.gpus_per_node)


class TrainingStage(ComputeStage):
    """What base, mid, sft and rl have in common."""

    nodes: int = setting(
        1, "nodes is the number of nodes, and so of pods, that an attempt runs on.", ge=1, le=1024, key=False
    )
    compile: Literal["auto", "always", "never"] = setting(
        "auto",
        "compile says whether torch.compile compiles the model; auto does so where that saves more time than it takes.",
        key=False,
    )
    embedding_lr: float = setting(
        0.2,
        "embeddingLr is AdamW's learning rate for the embedding at width 768; it falls with the width's root.",
        gt=0,
    )
    unembedding_lr: float = setting(
        0.004, "unembeddingLr is AdamW's learning rate for the head at width 768; it falls with the width's root.", gt=0
    )
    matrix_lr: float = setting(0.02, "matrixLr is Muon's learning rate for the matrices of the blocks.", gt=0)
    weight_decay: float = setting(0.0, "weightDecay is AdamW's decoupled weight decay, for embedding and head.", ge=0)
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


class BaseStage(TrainingStage):
    """Pretraining. The horizon is `steps`, else `targetFlops`, else `tokensPerParameter`."""

    tokens_per_parameter: float = setting(
        20.0,
        "tokensPerParameter is the number of training tokens for each parameter, from which the steps follow.",
        gt=0,
    )
    target_flops: float | None = setting(
        None, "targetFlops is the number of training FLOPs. By default the steps follow from tokensPerParameter.", gt=0
    )
    steps: int | None = setting(
        None, "steps is the number of optimizer steps. Defaults to what targetFlops or tokensPerParameter gives.", ge=1
    )
    total_batch_tokens: int = setting(524_288, TOTAL_BATCH_TOKENS, unit="tokens", ge=1)
    warmup_ratio: float = setting(
        0.0, "warmupRatio is the fraction of the steps in which the learning rate rises to its full value.", ge=0, le=1
    )
    warmdown_ratio: float = setting(0.2, WARMDOWN_RATIO, ge=0, le=1)
    final_lr_fraction: float = setting(0.0, FINAL_LR_FRACTION, ge=0, le=1)
    momentum_warmup_steps: int = setting(300, MOMENTUM_WARMUP_STEPS, unit="steps", ge=0)
    grad_clip: float | None = setting(
        1.0, "gradClip is the largest global norm of the gradient; null does not clip it.", gt=0
    )
    eval_every: int = setting(250, EVAL_EVERY.format("bits per byte"), unit="steps", ge=0, key=False)
    eval_tokens: int = setting(10_485_760, EVAL_TOKENS, unit="tokens", ge=1, key=False)
    sample_every: int = setting(
        2000,
        "sampleEvery is the number of optimizer steps between samples that are printed to the log; 0 prints none.",
        unit="steps",
        ge=0,
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


class MidStage(TrainingStage):
    """Midtraining: one epoch of packed conversations, every token trained."""

    mixture: Mixture = setting(_mid_mixture, MIXTURE, min_length=1)
    validation: Mixture = setting(_mid_validation, VALIDATION, min_length=1)
    identity: Uri | None = setting(
        None,
        "identity is the address of a JSONL file of conversations that say who the model is: a local path, file://, "
        "s3:// or, on a cluster, configmap://NAME/KEY. Defaults to sources.identity.",
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

    mixture: Mixture = setting(_sft_mixture, MIXTURE, min_length=1)
    validation: Mixture = setting(_sft_validation, VALIDATION, min_length=1)
    epochs: int = setting(1, "epochs is the number of passes over the mixture.", ge=1, le=100)
    steps: int | None = setting(None, "steps is the number of optimizer steps. Defaults to what epochs comes to.", ge=1)
    rows_per_step: int = setting(
        32,
        "rowsPerStep is the number of rows, each a conversation, of one optimizer step over all processes.",
        unit="rows",
        ge=1,
    )
    device_batch_size: int = setting(4, DEVICE_BATCH_SIZE, unit="rows", ge=1, key=False)
    init_lr_fraction: float = setting(0.02, INIT_LR_FRACTION, gt=0, le=1)
    final_lr_fraction: float = setting(0.0, FINAL_LR_FRACTION, ge=0, le=1)
    eval_every: int = setting(100, EVAL_EVERY.format("the validation loss"), unit="steps", ge=0, key=False)
    eval_rows: int = setting(
        3200, "evalRows is the number of conversations of one measurement in training.", ge=1, key=False
    )


def _rl_tasks() -> Mixture:
    return (MixturePart(task="gsm8k"),)


class RlStage(TrainingStage):
    """Reinforcement learning on tasks that reward: REINFORCE with the group's mean as baseline."""

    tasks: Mixture = setting(_rl_tasks, "tasks are the tasks that give prompts and reward the samples.", min_length=1)
    epochs: int = setting(1, "epochs is the number of passes over the prompts.", ge=1, le=100)
    steps: int | None = setting(None, "steps is the number of optimizer steps. Defaults to what epochs comes to.", ge=1)
    prompts_per_step: int = setting(
        16, "promptsPerStep is the number of prompts of one optimizer step over all processes.", ge=1
    )
    samples_per_prompt: int = setting(
        16, "samplesPerPrompt is the number of samples of each prompt, whose mean reward is the baseline.", ge=2
    )
    device_batch_size: int = setting(8, DEVICE_BATCH_SIZE, unit="rows", ge=1, key=False)
    max_new_tokens: int = setting(
        256, "maxNewTokens is the length of the longest sample, in tokens.", unit="tokens", ge=1
    )
    temperature: float = setting(1.0, "temperature is the temperature at which samples are drawn.", gt=0, le=10)
    top_k: int | None = setting(
        50, "topK is the number of most likely tokens that samples are drawn from; null takes all.", ge=1
    )
    init_lr_fraction: float = setting(0.05, INIT_LR_FRACTION, gt=0, le=1)
    final_lr_fraction: float = setting(0.0, FINAL_LR_FRACTION, ge=0, le=1)
    eval_every: int = setting(60, EVAL_EVERY.format("pass@1"), unit="steps", ge=0, key=False)
    eval_rows: int = setting(400, "evalRows is the number of problems of one measurement in training.", ge=1, key=False)


class BaseEvaluation(ComputeStage):
    """CORE, bits per byte and samples of the base model."""

    core: bool = setting(True, "core says whether CORE, the mean over 22 tasks of the bundle, is measured.")
    core_max_per_task: int | None = setting(
        None, "coreMaxPerTask is the largest number of examples of each CORE task. Defaults to all.", ge=1
    )
    bits_per_byte_tokens: int = setting(
        10_485_760,
        "bitsPerByteTokens is the number of tokens of training text, and of validation text, that bits per byte are "
        "measured on.",
        unit="tokens",
        ge=1,
    )
    sample_tokens: int = setting(
        16, "sampleTokens is the length of each sample text in tokens; 0 makes none.", unit="tokens", ge=0, le=4096
    )


class TaskSelection(Section):
    """One task of the chat evaluation."""

    task: Name = setting(help="task is the name of the task that is measured.")
    rows: int | None = setting(
        None, "rows is the number of problems of this task, up to maxPerTask. Defaults to all.", ge=1
    )


def _chat_tasks() -> tuple[TaskSelection, ...]:
    return (
        TaskSelection(task="arc-easy"),
        TaskSelection(task="arc-challenge"),
        TaskSelection(task="mmlu"),
        TaskSelection(task="gsm8k"),
        TaskSelection(task="humaneval"),
        TaskSelection(task="spelling-bee", rows=256),
    )


class ChatEvaluation(ComputeStage):
    """The chat tasks and ChatCORE, after mid, sft and rl."""

    tasks: Annotated[tuple[TaskSelection, ...], Field(max_length=64)] = setting(
        _chat_tasks, "tasks are the tasks that the chat models are measured on.", min_length=1
    )
    max_per_task: int | None = setting(
        None, "maxPerTask is the largest number of problems of each task. Defaults to all.", ge=1
    )
    max_new_tokens: int = setting(
        512, "maxNewTokens is the length of the longest answer, in tokens.", unit="tokens", ge=1
    )
    temperature: float = setting(
        0.0, "temperature is the temperature at which answers are drawn; 0 takes the most likely token.", ge=0, le=10
    )
    top_k: int | None = setting(
        50, "topK is the number of most likely tokens that answers are drawn from; null takes all.", ge=1
    )
    sample_prompts: Annotated[tuple[Text, ...], Field(max_length=32)] = setting(
        (), "samplePrompts are questions whose answers are shown in the report."
    )


class ReportStage(Stage):
    """report.md, report.html and the model card."""


class ReleaseStage(Stage):
    """Registers the model version and moves the alias `champion` where the gates hold."""

    model: Name = setting("nanochat", "model is the name that the model is registered by in MLflow.")
    gates: Annotated[tuple[Text, ...], Field(max_length=16)] = setting(
        (),
        "gates are conditions on the results, all of which must hold for the version to become champion, such as "
        "core >= 0.20 and core >= champion.core - 0.005.",
    )


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
        return self
