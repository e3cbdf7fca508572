"""Values that follow from the settings: the model's size, the training horizon, the number of text shards."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from pydantic.alias_generators import to_camel

from nanochat.model.scaling import REFERENCE_DEPTH, Scaling
from nanochat.model.sizes import (
    FEATURES,
    ModelConfig,
    embedding_parameters,
    flops_per_token,
    matrix_parameters,
    parameters,
    value_embedding_parameters,
)
from nanochat.spec.errors import UserError
from nanochat.spec.pipeline import PipelineSpec

# One parquet shard yields this many characters for each token (the reference's ratio for its vocabulary).
CHARACTERS_PER_TOKEN = 4.8
SHARD_MARGIN = 1.1
WORKER_MEMORY = 256 << 20  # bytes of a process that makes tokens, for which 150 MiB were measured
MOST_SHARDS = 100_000


@dataclass(frozen=True, slots=True)
class Horizon:
    """How long the base stage trains, and on how much text."""

    model: ModelConfig
    steps: int
    tokens: int
    shards: tuple[int, ...]  # indices of the training shards
    validation_shard: int

    @property
    def text_shards(self) -> tuple[int, ...]:
        """All shards of text that are used, the validation's last; none where nothing is pretrained."""
        return (*self.shards, self.validation_shard) if self.shards else ()

    def to_dict(self) -> dict[str, Any]:
        """As a stage's plan carries it."""
        return {
            "model": self.model.to_dict(),
            "steps": self.steps,
            "tokens": self.tokens,
            "shards": list(self.shards),
            "validationShard": self.validation_shard,
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Horizon:
        return cls(
            model=ModelConfig.from_dict(dict(data["model"])),
            steps=data["steps"],
            tokens=data["tokens"],
            shards=tuple(data["shards"]),
            validation_shard=data["validationShard"],
        )

    def summary(self) -> dict[str, Any]:
        """The horizon's figures for people."""
        return {
            "parameters": parameters(self.model),
            "steps": self.steps,
            "tokens": self.tokens,
            "shards": len(self.shards),
            "flops": flops_per_token(self.model) * self.tokens,
        }


def model_config(spec: PipelineSpec, depth: int | None = None) -> ModelConfig:
    """The model's shape from `model.depth` and its overrides; with `depth` that of another model of the family, which
    has the most key-value heads up to `model.kvHeads` that its own heads can share."""
    model = spec.model
    config = ModelConfig.from_depth(
        depth or model.depth,
        vocab_size=spec.stages.tokenizer.vocab_size,
        sequence_length=model.sequence_length,
        aspect_ratio=model.aspect_ratio,
        head_dim=model.head_dim,
        kv_heads=None if depth else model.kv_heads,
        width=None if depth else model.width,
        value_embeddings=model.value_embeddings,
        residual_scalars=model.residual_scalars,
        window_pattern=model.window_pattern,
        smear=model.smear,
        backout=model.backout,
    )
    if not depth or model.kv_heads is None:
        return config
    shared = (count for count in range(1, model.kv_heads + 1) if config.heads % count == 0)
    return replace(config, kv_heads=max(shared))


def shape_settings(config: ModelConfig) -> dict[str, Any]:
    """The settings that describe a model of this shape; of the modern recipe's only what it uses."""
    fields = ("depth", "width", "kv_heads", "sequence_length", *(feature.name for feature in FEATURES))
    found = {f"model.{to_camel(name)}": value for name, value in config.to_dict().items() if name in fields}
    return found | {"model.headDim": config.head_dim, "stages.tokenizer.vocabSize": config.vocab_size}


def scaling(spec: PipelineSpec) -> Scaling:
    """The batch of the base stage, and what its rates and decay are multiplied by."""
    base = spec.stages.base
    if not base.scaling_rules:
        return Scaling(base.total_batch_tokens)
    config, reference = model_config(spec), model_config(spec, REFERENCE_DEPTH)
    tokens = base.tokens_per_parameter * _counted(spec, config)
    if base.target_flops is not None:
        tokens = base.target_flops / flops_per_token(config)
    return Scaling.of(
        tokens=tokens,
        steps=base.steps,
        reference=base.tokens_per_parameter * _counted(spec, reference),
        multiple=spec.model.sequence_length,
    )


def _counted(spec: PipelineSpec, config: ModelConfig) -> int:
    """The parameters that the horizon follows from; tables of values, which cost next to nothing, are none of them."""
    if spec.stages.base.scaling_rules:
        return matrix_parameters(config) + embedding_parameters(config)  # blocks and head
    return parameters(config) - value_embedding_parameters(config)


def horizon(spec: PipelineSpec) -> Horizon:
    """Steps, tokens and shards of the base stage; none where training starts from a model that is there.

    The steps are `steps`, else targetFlops / FLOPs per token / batch, else tokensPerParameter x parameters / batch.
    The shards are ceil(1.1 x tokens x 4.8 / characters in a shard), unless `sources.text.shards` says otherwise.
    """
    config, base, text = model_config(spec), spec.stages.base, spec.sources.text
    if spec.stages.initial_model:
        return Horizon(model=config, steps=0, tokens=0, shards=(), validation_shard=text.validation_shard)
    batch = scaling(spec).batch_tokens
    if base.steps is not None:
        steps = base.steps
    elif base.target_flops is not None:
        steps = round(base.target_flops / (flops_per_token(config) * batch))
    else:
        # The small excess keeps the float product of a whole ratio from falling below its integer.
        steps = math.floor(base.tokens_per_parameter * _counted(spec, config) / batch + 1e-9)
    if steps < 1:
        raise UserError("stages.base would train for no step: set steps, tokensPerParameter or targetFlops higher")
    tokens = steps * batch
    count = text.shards or math.ceil(SHARD_MARGIN * tokens * CHARACTERS_PER_TOKEN / text.characters_per_shard)
    if text.kind == "files":
        count = text.shards or 1  # all of it is used, however much it is
    if text.shards is None and text.kind == "hub" and count > text.validation_shard:
        # The validation shard is the source's last: there are no more training shards, so the text repeats.
        count = text.validation_shard
    if count > MOST_SHARDS:
        raise UserError(
            f"stages.base would read {count:,} shards of text, and at most {MOST_SHARDS:,} are read: lower its steps, "
            "or raise sources.text.charactersPerShard"
        )
    indices = [i for i in range(count + 1) if i != text.validation_shard][:count]
    if not indices:
        raise UserError(
            "sources.text has no training shard left: sources.text.validationShard must not be the only one"
        )
    return Horizon(
        model=config, steps=steps, tokens=tokens, shards=tuple(indices), validation_shard=text.validation_shard
    )


def tokenizer_shards(spec: PipelineSpec, shards: tuple[int, ...]) -> tuple[int, ...]:
    """The training shards that the tokenizer reads: as many as `maxChars` asks for, so that more text keeps it."""
    need = math.ceil(SHARD_MARGIN * spec.stages.tokenizer.max_chars / spec.sources.text.characters_per_shard)
    return shards[: max(1, need)]


def shard_name(index: int) -> str:
    """Name of a text shard, as in artifact names."""
    return f"shard_{index:05d}"
