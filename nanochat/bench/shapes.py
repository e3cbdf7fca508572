"""Shapes that are measured: those of a pipeline file, or the one that docs/performance.md has figures of."""

from __future__ import annotations

from collections.abc import Mapping
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nanochat.spec.errors import UserError
from nanochat.spec.load import apply_override, check_pipeline, load_pipeline
from nanochat.spec.pipeline import PipelineSpec

# Depth 6 and width 384, 16 rows of 512 tokens in a step, on a generated text.
PRESET: dict[str, Any] = {
    "apiVersion": "nanochat.dev/v1alpha1",
    "kind": "ChatPipeline",
    "metadata": {"name": "bench"},
    "spec": {
        "model": {"depth": 6, "sequenceLength": 512},
        "sources": {"text": {"kind": "world", "charactersPerShard": 2_000_000, "shards": 1, "validationShard": 1000}},
        "stages": {
            "tokenizer": {"vocabSize": 32_768},
            "base": {"totalBatchTokens": 8192, "deviceBatchSize": 16, "steps": 1000},
            "sft": {"rowsPerStep": 16, "deviceBatchSize": 16},
            "rl": {"promptsPerStep": 2, "samplesPerPrompt": 8, "deviceBatchSize": 16},
        },
    },
}


def read_shape(file: Path | None, overrides: list[str]) -> PipelineSpec:
    """The settings of a pipeline file, or of the preset, with `overrides`; UserError with all that is wrong."""
    if file is not None:
        return load_pipeline(file, overrides).spec
    data = deepcopy(PRESET)
    for override in overrides:
        apply_override(data, override)
    return check_pipeline(data, where="--set").spec


@dataclass(frozen=True, slots=True)
class Shape:
    """A pipeline file, or None for the preset, and what is set otherwise: each process reads it with its own code."""

    file: Path | None
    overrides: tuple[str, ...]

    def read(self, *more: str) -> PipelineSpec:
        """The settings; UserError with all that is wrong."""
        return read_shape(self.file, [*self.overrides, *more])

    def to_dict(self) -> dict[str, Any]:
        """As a task carries it."""
        return {"file": None if self.file is None else str(self.file.absolute()), "overrides": list(self.overrides)}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Shape:
        return cls(None if values["file"] is None else Path(values["file"]), tuple(values["overrides"]))


def batch(spec: PipelineSpec) -> tuple[int, int, int]:
    """A step of base in one process: micro-batches, rows of each, tokens of a row. UserError unless they are equal."""
    length, base = spec.model.sequence_length, spec.stages.base
    rows = base.total_batch_tokens // length
    each = min(rows, base.device_batch_size)
    if rows % each:
        raise UserError(
            f"a step has {rows:,} rows, which do not divide into micro-batches of {each}: set "
            "stages.base.deviceBatchSize or stages.base.totalBatchTokens so that they do"
        )
    return rows // each, each, length


def describe(spec: PipelineSpec) -> dict[str, Any]:
    """The shape for people and programs."""
    from nanochat.model.sizes import parameters
    from nanochat.pipeline.resolve import model_config

    config = model_config(spec)
    return {**config.to_dict(), "parameters": parameters(config), "batch": list(batch(spec))}
