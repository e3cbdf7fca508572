"""Settings of the stages, with the reference's hyper-parameters as defaults."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from nanochat.spec.fields import Name, Section, Text, Uri, setting
from nanochat.spec.pods import PodSettings


class Stage(Section):
    """What every stage has."""

    enabled: bool = setting(True, "Whether the stage is part of the pipeline.", key=False)
    pod: PodSettings = setting(PodSettings, "Its pods on a cluster, over spec.pods.", key=False)


class DatasetStage(Stage):
    """Mirrors and verifies text, task data and the evaluation bundle."""


class TokenizerStage(Stage):
    """Byte-level BPE."""

    vocab_size: int = setting(65_536, "Tokens in the vocabulary, specials included.", ge=265, le=1_048_576)
    max_chars: int = setting(
        2_000_000_000, "Characters of text to train on.", unit="characters", ge=1000, le=100_000_000_000
    )
    document_chars: int = setting(10_000, "Characters of a document that are read.", unit="characters", ge=1)


class TokensStage(Stage):
    """Text and conversations as token files."""

    workers: int | None = setting(None, "Worker processes; by default one a core.", ge=1, le=256, key=False)


class MixturePart(Section):
    """Conversations of one task in a training mixture."""

    task: Name = setting(help="Name of the task.")
    split: Name = setting("train", "Split of the task.")
    rows: int | None = setting(None, "Rows taken from the split's start; by default all.", ge=1)
    epochs: int = setting(1, "How often each row is used.", ge=1, le=100)


Mixture = Annotated[tuple[MixturePart, ...], Field(max_length=64)]


class ComputeStage(Stage):
    """What the stages that run a model have in common."""

    gpus_per_node: int = setting(
        0,
        "GPUs of each machine that the stage asks for; 0 asks for none and uses what is there.",
        ge=0,
        le=64,
        key=False,
    )
    processes_per_node: int | None = setting(
        None, "Processes of each machine; by default one a GPU, or one.", ge=1, le=256, key=False
    )
    device_batch_size: int = setting(32, "Rows in one forward pass of one process.", unit="rows", ge=1, key=False)
    precision: Literal["auto", "bf16", "fp32"] = setting(
        "auto", "Number format of the computation; auto is bf16 where the device has it."
    )

    @property
    def processes(self) -> int:
        """Processes of one machine."""
        return self.processes_per_node or max(1, self.gpus_per_node)


class TrainingStage(ComputeStage):
    """What base, mid, sft and rl have in common."""

    nodes: int = setting(1, "Machines.", ge=1, le=1024, key=False)
    compile: Literal["auto", "always", "never"] = setting(
        "auto", "Whether torch.compile is used; auto does where it pays.", key=False
    )
    embedding_lr: float = setting(0.2, "AdamW's rate for embeddings at width 768.", gt=0)
    unembedding_lr: float = setting(0.004, "AdamW's rate for the head at width 768.", gt=0)
    matrix_lr: float = setting(0.02, "Muon's rate for matrices.", gt=0)
    weight_decay: float = setting(0.0, "AdamW's weight decay.", ge=0)
    grad_clip: float | None = setting(None, "Largest global gradient norm; by default not clipped.", gt=0)
    checkpoint_every_seconds: float | None = setting(
        600.0, "Seconds between checkpoints.", unit="seconds", gt=0, key=False
    )
    checkpoint_every: int | None = setting(
        None, "Steps between checkpoints, besides those by time.", unit="steps", ge=1, key=False
    )
    keep_checkpoints: int = setting(2, "Checkpoints kept of a stage.", ge=1, le=100, key=False)
    log_every: int = setting(1, "Steps between logged metrics.", unit="steps", ge=1, key=False)
    skip_on_divergence: int = setting(
        50, "Steps of data that are skipped once when training diverges.", unit="steps", ge=1
    )


class BaseStage(TrainingStage):
    """Pretraining. The horizon is `steps`, else `targetFlops`, else `tokensPerParameter`."""

    tokens_per_parameter: float = setting(20.0, "Training tokens for each parameter.", gt=0)
    target_flops: float | None = setting(None, "Training FLOPs, instead of tokensPerParameter.", gt=0)
    steps: int | None = setting(None, "Optimizer steps, instead of tokensPerParameter.", ge=1)
    total_batch_tokens: int = setting(524_288, "Tokens in one optimizer step.", unit="tokens", ge=1)
    warmup_ratio: float = setting(0.0, "Share of the steps with a rising rate.", ge=0, le=1)
    warmdown_ratio: float = setting(0.2, "Share of the steps with a falling rate.", ge=0, le=1)
    final_lr_fraction: float = setting(0.0, "Rate at the end as a share of the full one.", ge=0, le=1)
    momentum_warmup_steps: int = setting(300, "Steps in which Muon's momentum rises from 0.85 to 0.95.", ge=0)
    grad_clip: float | None = setting(1.0, "Largest global gradient norm.", gt=0)
    eval_every: int = setting(250, "Steps between measurements of bits per byte; 0 is never.", ge=0, key=False)
    eval_tokens: int = setting(10_485_760, "Tokens of a measurement in training.", ge=1, key=False)
    sample_every: int = setting(2000, "Steps between printed samples; 0 is never.", ge=0, key=False)


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

    mixture: Mixture = setting(_mid_mixture, "Conversations to train on.", min_length=1)
    validation: Mixture = setting(_mid_validation, "Conversations to measure on.", min_length=1)
    identity: Uri | None = setting(
        None, "JSONL of conversations that say who the model is (local path, file://, s3://).", key=False
    )
    steps: int | None = setting(None, "Optimizer steps; by default one epoch of the mixture.", ge=1)
    total_batch_tokens: int = setting(524_288, "Tokens in one optimizer step.", unit="tokens", ge=1)
    init_lr_fraction: float = setting(1.0, "Rate at the start as a share of the full one.", gt=0, le=1)
    warmdown_ratio: float = setting(0.2, "Share of the steps with a falling rate.", ge=0, le=1)
    final_lr_fraction: float = setting(0.0, "Rate at the end as a share of the full one.", ge=0, le=1)
    momentum_warmup_steps: int = setting(300, "Steps in which Muon's momentum rises from 0.85 to 0.95.", ge=0)
    eval_every: int = setting(150, "Steps between measurements of bits per byte; 0 is never.", ge=0, key=False)
    eval_tokens: int = setting(10_485_760, "Tokens of a measurement in training.", ge=1, key=False)


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

    mixture: Mixture = setting(_sft_mixture, "Conversations to train on.", min_length=1)
    validation: Mixture = setting(_sft_validation, "Conversations to measure on.", min_length=1)
    epochs: int = setting(1, "Passes over the mixture.", ge=1, le=100)
    steps: int | None = setting(None, "Optimizer steps; by default `epochs` passes.", ge=1)
    rows_per_step: int = setting(32, "Conversations in one optimizer step.", unit="rows", ge=1)
    device_batch_size: int = setting(4, "Rows in one forward pass of one process.", unit="rows", ge=1, key=False)
    init_lr_fraction: float = setting(0.02, "Rate at the start as a share of the full one.", gt=0, le=1)
    final_lr_fraction: float = setting(0.0, "Rate at the end as a share of the full one.", ge=0, le=1)
    eval_every: int = setting(100, "Steps between measurements of the loss; 0 is never.", ge=0, key=False)
    eval_rows: int = setting(3200, "Conversations of a measurement in training.", ge=1, key=False)


def _rl_tasks() -> Mixture:
    return (MixturePart(task="gsm8k"),)


class RlStage(TrainingStage):
    """Reinforcement learning on tasks that reward: REINFORCE with the group's mean as baseline."""

    enabled: bool = setting(True, "Whether the stage is part of the pipeline.", key=False)
    tasks: Mixture = setting(_rl_tasks, "Tasks that give prompts and rewards.", min_length=1)
    epochs: int = setting(1, "Passes over the prompts.", ge=1, le=100)
    steps: int | None = setting(None, "Optimizer steps; by default `epochs` passes.", ge=1)
    prompts_per_step: int = setting(16, "Prompts in one optimizer step.", ge=1)
    samples_per_prompt: int = setting(16, "Samples of each prompt: the group.", ge=2)
    device_batch_size: int = setting(8, "Rows in one forward pass of one process.", unit="rows", ge=1, key=False)
    max_new_tokens: int = setting(256, "Longest sample.", unit="tokens", ge=1)
    temperature: float = setting(1.0, "Temperature of the samples.", gt=0, le=10)
    top_k: int | None = setting(50, "Tokens that a sample chooses among.", ge=1)
    init_lr_fraction: float = setting(0.05, "Rate at the start as a share of the full one.", gt=0, le=1)
    final_lr_fraction: float = setting(0.0, "Rate at the end as a share of the full one.", ge=0, le=1)
    eval_every: int = setting(60, "Steps between measurements of pass@1; 0 is never.", ge=0, key=False)
    eval_rows: int = setting(400, "Problems of a measurement in training.", ge=1, key=False)


class BaseEvaluation(ComputeStage):
    """CORE, bits per byte and samples of the base model."""

    core: bool = setting(True, "Whether CORE is measured.")
    core_max_per_task: int | None = setting(None, "Examples of each CORE task; by default all.", ge=1)
    bits_per_byte_tokens: int = setting(10_485_760, "Tokens of each split for bits per byte.", ge=1)
    sample_tokens: int = setting(16, "Tokens of each sample.", ge=0, le=4096)


class TaskSelection(Section):
    """One task of the chat evaluation."""

    task: Name = setting(help="Name of the task.")
    rows: int | None = setting(None, "Problems of this task, at most maxPerTask; by default all.", ge=1)


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
        _chat_tasks, "Tasks to measure.", min_length=1
    )
    max_per_task: int | None = setting(None, "Problems of each task; by default all.", ge=1)
    max_new_tokens: int = setting(512, "Longest answer.", unit="tokens", ge=1)
    temperature: float = setting(0.0, "Temperature of the answers.", ge=0, le=10)
    top_k: int | None = setting(50, "Tokens that a sampled answer chooses among.", ge=1)
    sample_prompts: Annotated[tuple[Text, ...], Field(max_length=32)] = setting(
        (), "Questions whose answers are shown in the report."
    )


class ReportStage(Stage):
    """report.md, report.html and the model card."""


class ReleaseStage(Stage):
    """Registers the model version and moves the alias `champion` where the gates hold."""

    model: Name = setting("nanochat", "Name of the registered model.")
    gates: Annotated[tuple[Text, ...], Field(max_length=16)] = setting(
        (), "Conditions on the results, for example `core >= 0.20 and core >= champion.core - 0.005`."
    )


class Stages(Section):
    """The stages in their order."""

    dataset: DatasetStage = setting(DatasetStage, "Text, task data and bundle.")
    tokenizer: TokenizerStage = setting(TokenizerStage, "The vocabulary.")
    tokens: TokensStage = setting(TokensStage, "Token files.")
    base: BaseStage = setting(BaseStage, "Pretraining.")
    mid: MidStage = setting(MidStage, "Midtraining.")
    sft: SftStage = setting(SftStage, "Supervised fine-tuning.")
    rl: RlStage = setting(RlStage, "Reinforcement learning.")
    eval_base: BaseEvaluation = setting(BaseEvaluation, "Evaluation of the base model.")
    eval_chat: ChatEvaluation = setting(ChatEvaluation, "Evaluation after mid, sft and rl.")
    report: ReportStage = setting(ReportStage, "The report.")
    release: ReleaseStage = setting(ReleaseStage, "The release.")

    @model_validator(mode="after")
    def _needed(self) -> Stages:
        for name in ("dataset", "tokenizer", "tokens"):
            if not getattr(self, name).enabled:
                raise ValueError(f"stages.{name} makes what all later stages read and cannot be disabled")
        if not self.base.enabled:
            raise ValueError("stages.base cannot be disabled: mid, sft and rl start from its weights")
        return self
