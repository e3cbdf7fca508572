"""Settings of the stages that do not train, and what all stages, and all that run a model, have in common."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator
from pydantic_core import PydanticCustomError

from nanochat.spec.fields import Name, Section, Text, setting
from nanochat.spec.pods import PodSettings

DEVICE_BATCH_SIZE = (
    "deviceBatchSize is the number of rows in one forward pass of one process. It is halved where the device's memory "
    "runs out."
)


class Stage(Section):
    """The settings of every stage."""

    enabled: bool = setting(True, "enabled says whether the stage is part of the pipeline.", key=False)
    pod: PodSettings = setting(PodSettings, "pod holds the settings of the stage's pods, over spec.pods.", key=False)


class DatasetStage(Stage):
    """Mirrors and verifies text, task data and the evaluation bundle."""


class TokenizerStage(Stage):
    """Byte-level BPE."""

    vocab_size: int = setting(
        65_536,
        "vocabSize is the number of tokens in the vocabulary, special ones included.",
        modern=32_768,
        ge=265,
        le=1_048_576,
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


class ComputeStage(Stage):
    """Settings of the stages that run a model."""

    gpus_per_node: int = setting(
        0,
        "gpusPerNode is the number of GPUs of each node. With 0 the stage gets none on a cluster, and uses what is "
        "there on a machine of your own.",
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
    device_batch_size: int = setting(32, DEVICE_BATCH_SIZE, unit="rows", ge=1, le=65_536, key=False)
    precision: Literal["auto", "bf16", "fp32"] = setting(
        "auto",
        "precision is the number format of the computation: bf16, fp32, or auto for bf16 where the device has it.",
    )

    @model_validator(mode="after")
    def _has_a_gpu_for_each(self) -> ComputeStage:
        if self.gpus_per_node and (self.processes_per_node or 0) > self.gpus_per_node:
            problem = "processesPerNode ({processes}) is above gpusPerNode ({gpus}): each process takes a GPU"
            values = {"processes": self.processes_per_node, "gpus": self.gpus_per_node}
            raise PydanticCustomError("processes", problem, values)
        return self

    @property
    def processes(self) -> int:
        """Processes of one machine."""
        return self.processes_per_node or max(1, self.gpus_per_node)


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


CHATCORE = ("arc-easy", "arc-challenge", "mmlu", "gsm8k", "humaneval", "spelling-bee")  # tasks that it is the mean of


def passes(samples: int) -> tuple[int, ...]:
    """Each k above 1 that pass@k is told for of so many samples: powers of two, and all samples."""
    powers = {1 << i for i in range(1, samples.bit_length()) if 1 << i <= samples}
    return tuple(sorted(powers | ({samples} - {1})))


def _chat_tasks() -> tuple[TaskSelection, ...]:
    return tuple(TaskSelection(task=name, rows=256 if name == "spelling-bee" else None) for name in CHATCORE)


class ChatEvaluation(ComputeStage):
    """The chat tasks and ChatCORE, after mid, sft and rl."""

    tasks: Annotated[tuple[TaskSelection, ...], Field(max_length=64)] = setting(
        _chat_tasks, "tasks are the tasks that the chat models are measured on.", min_length=1
    )
    max_per_task: int | None = setting(
        None, "maxPerTask is the largest number of problems of each task. Defaults to all.", ge=1
    )
    max_new_tokens: int = setting(
        512, "maxNewTokens is the length of the longest answer, in tokens.", unit="tokens", ge=1, le=1_048_576
    )
    temperature: float = setting(
        0.0, "temperature is the temperature at which answers are drawn; 0 takes the most likely token.", ge=0, le=10
    )
    top_k: int | None = setting(
        50, "topK is the number of most likely tokens that answers are drawn from; null takes all.", ge=1, le=1_048_576
    )
    samples: int = setting(
        1,
        "samples is the number of answers to each problem; with several pass@k is measured, for k = 2, 4, 8 and so on.",
        ge=1,
        le=256,
        key="changed",
    )
    sample_prompts: Annotated[tuple[Text, ...], Field(max_length=32)] = setting(
        (), "samplePrompts are questions whose answers are shown in the report."
    )

    @model_validator(mode="after")
    def _samples_differ(self) -> ChatEvaluation:
        if self.samples > 1 and not self.temperature:
            problem = "several samples of temperature 0 are all the same: set a temperature above 0"
            raise PydanticCustomError("samples", problem)
        return self

    @property
    def pass_at(self) -> tuple[int, ...]:
        """Each k that pass@k is measured for: powers of two, and all samples."""
        return passes(self.samples)


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
