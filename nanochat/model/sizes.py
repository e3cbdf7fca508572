"""Sizes of the transformer: what a depth means, how many parameters, how many FLOPs. Imports no torch.

config = ModelConfig.from_depth(20, vocab_size=65_536, sequence_length=2048)
parameters(config)  # 560,988,160
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

from nanochat.spec.errors import UserError

MLP_RATIO = 4  # the MLP is D -> 4D -> D


@dataclass(frozen=True, slots=True)
class ModelConfig:
    """The shape of a model; everything that has to be known to build one and load its weights."""

    depth: int
    width: int
    heads: int
    kv_heads: int  # fewer than heads: grouped-query attention
    sequence_length: int  # the context it is trained on, in tokens
    vocab_size: int
    rope_base: float = 10_000.0

    def __post_init__(self) -> None:
        for name in ("depth", "width", "heads", "kv_heads", "sequence_length", "vocab_size"):
            if getattr(self, name) < 1:
                raise UserError(f"The model's {name} is {getattr(self, name)}; it must be at least 1.")
        if self.width % self.heads or self.head_dim % 2:
            raise UserError(
                f"A width of {self.width} does not divide into {self.heads} heads of an even size; "
                "choose a model.width that is a multiple of twice the number of heads."
            )
        if self.heads % self.kv_heads:
            raise UserError(
                f"{self.heads} heads can't share {self.kv_heads} key-value heads evenly; "
                f"choose a model.kvHeads that divides {self.heads}."
            )

    @property
    def head_dim(self) -> int:
        return self.width // self.heads

    @classmethod
    def from_depth(
        cls,
        depth: int,
        *,
        vocab_size: int,
        sequence_length: int,
        aspect_ratio: int = 64,
        head_dim: int = 128,
        kv_heads: int | None = None,
        width: int | None = None,
    ) -> ModelConfig:
        """The one dial: width = depth * aspect_ratio unless given, heads of head_dim or a little less.

        heads = ceil(width / head_dim), or the next number that divides the width into heads of an even size:
        depth 20 -> 10 heads of 128, depth 5 -> width 320, 4 heads of 80.
        """
        width = depth * aspect_ratio if width is None else width
        if width < 2 or width % 2:
            raise UserError(f"model.width is {width}; it must be an even number of at least 2.")
        heads = max(1, -(-width // head_dim))
        while width % heads or (width // heads) % 2:
            heads += 1
        return cls(
            depth=depth,
            width=width,
            heads=heads,
            kv_heads=heads if kv_heads is None else kv_heads,
            sequence_length=sequence_length,
            vocab_size=vocab_size,
        )

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> ModelConfig:
        """From a mapping that holds at least the fields; others are left alone."""
        return cls(**{field.name: values[field.name] for field in fields(cls) if field.name in values})


def embedding_parameters(config: ModelConfig) -> int:
    """Parameters of the token embedding, V * D; they cost no multiplications."""
    return config.vocab_size * config.width


def matrix_parameters(config: ModelConfig) -> int:
    """Parameters of the blocks: query and output D * D, key and value D * Dkv, the MLP 2 * 4 * D * D."""
    d, d_kv = config.width, config.kv_heads * config.head_dim
    return config.depth * (2 * d * d + 2 * d * d_kv + 2 * MLP_RATIO * d * d)


def parameters(config: ModelConfig) -> int:
    """All parameters: embedding, blocks, untied head. There are no biases and no learned norms."""
    return 2 * embedding_parameters(config) + matrix_parameters(config)


def flops_per_token(config: ModelConfig) -> int:
    """FLOPs of forward and backward per token, 6 (N - N_embedding) + 12 L H hd T (arXiv 2204.02311)."""
    attention = 12 * config.depth * config.width * config.sequence_length
    return 6 * (parameters(config) - embedding_parameters(config)) + attention
