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
WINDOW_SHARE = 4  # a short window is this part of the trained context
GATE_CHANNELS = 12  # of the input decide a gate of value embeddings
SMEAR_CHANNELS = 24  # of the embedding decide how much of the token before is mixed in


@dataclass(frozen=True, slots=True)
class ModelConfig:
    """The shape of a model; everything that has to be known to build one and load its weights.

    The fields after `rope_base` are what the modern recipe adds (`residual.py`, `value_embedding.py`); a classic model
    has none of it.
    """

    depth: int
    width: int
    heads: int
    kv_heads: int  # fewer than heads: grouped-query attention
    sequence_length: int  # the context it is trained on, in tokens
    vocab_size: int
    rope_base: float = 10_000.0
    value_embeddings: bool = False  # every second layer adds a gated embedding of the token to its values
    residual_scalars: bool = False  # each layer scales the stream and adds the embedding again, by learned scalars
    window_pattern: str = "L"  # S: a short window, L: all; repeated over the layers, of which the last is L
    smear: bool = False  # the embedding of the token before is mixed in
    backout: bool = False  # the stream of the middle layer is taken out at the end

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
        if not self.window_pattern or set(self.window_pattern) - {"S", "L"}:
            raise ValueError(f"window_pattern: {self.window_pattern!r}")  # only of a file: settings have a pattern

    @property
    def head_dim(self) -> int:
        return self.width // self.heads

    @property
    def kv_width(self) -> int:
        return self.kv_heads * self.head_dim

    def window(self, layer: int) -> int | None:
        """How many positions a layer sees, its own included; None for all."""
        last = layer == self.depth - 1
        if last or self.window_pattern[layer % len(self.window_pattern)] == "L":
            return None
        return -(-self.sequence_length // WINDOW_SHARE)

    def has_value_embedding(self, layer: int) -> bool:
        """Whether a layer has one: every second, so that the last does."""
        return self.value_embeddings and (self.depth - 1 - layer) % 2 == 0

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
        **features: Any,
    ) -> ModelConfig:
        """The one dial: width = depth * aspect_ratio unless given, heads of head_dim or a little less.

        `features` are the fields of the modern recipe.

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
            **features,
        )

    def to_dict(self) -> dict[str, Any]:
        """All fields, without the modern ones that are not used: keys and files of classic models know none."""
        unused = {field.name for field in FEATURES if getattr(self, field.name) == field.default}
        return {name: value for name, value in asdict(self).items() if name not in unused}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> ModelConfig:
        """From a mapping that holds at least the fields; others are left alone."""
        return cls(**{field.name: values[field.name] for field in fields(cls) if field.name in values})


FEATURES = tuple(field for field in fields(ModelConfig) if field.name in (
    "value_embeddings", "residual_scalars", "window_pattern", "smear", "backout",
))  # fmt: skip


def embedding_parameters(config: ModelConfig) -> int:
    """Parameters of the token embedding, V * D; they cost no multiplications."""
    return config.vocab_size * config.width


def value_embedding_parameters(config: ModelConfig) -> int:
    """Parameters of the value embeddings' tables, V * Dkv each; they cost no multiplications either."""
    return _value_embeddings(config) * config.vocab_size * config.kv_width


def matrix_parameters(config: ModelConfig) -> int:
    """Parameters of the blocks' matrices and of gates.

    Query and output D * D, key and value D * Dkv, the MLP 2 * 4 * D * D.
    """
    d, d_kv = config.width, config.kv_width
    blocks = config.depth * (2 * d * d + 2 * d * d_kv + 2 * MLP_RATIO * d * d)
    gates = _value_embeddings(config) * config.kv_heads * min(GATE_CHANNELS, d)
    return blocks + gates + config.smear * min(SMEAR_CHANNELS, d)


def scalar_parameters(config: ModelConfig) -> int:
    """Learned scalars: two for each layer, one of smear, one of backout."""
    return 2 * config.depth * config.residual_scalars + config.smear + config.backout


def parameters(config: ModelConfig) -> int:
    """All parameters: embedding, blocks, untied head, and what the modern recipe adds. There are no biases and no
    learned norms."""
    tables = 2 * embedding_parameters(config) + value_embedding_parameters(config)
    return tables + matrix_parameters(config) + scalar_parameters(config)


def flops_per_token(config: ModelConfig) -> int:
    """FLOPs of forward and backward per token, 6 (N - N_tables - N_scalars) + 12 H hd (positions seen, over layers).

    With all layers seeing all T positions the second part is 12 L H hd T (arXiv 2204.02311).
    """
    seen = sum(config.window(layer) or config.sequence_length for layer in range(config.depth))
    return 6 * (matrix_parameters(config) + embedding_parameters(config)) + 12 * config.width * seen


def _value_embeddings(config: ModelConfig) -> int:
    return sum(config.has_value_embedding(layer) for layer in range(config.depth))
