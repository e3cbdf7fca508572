"""The shape of a model as transformers' NanoChatConfig: config.json, and ModelConfig of it.

    values = to_transformers(config, special)       # UserError where the class cannot hold the model
    config = from_transformers(values)              # UserError where this project's model cannot

Facts about the class are those of transformers 5.24.0: norms without weights, half of a head rotated with its other
half, ReLU squared, no biases, capped logits.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from nanochat.model.loss import SOFTCAP
from nanochat.model.pointwise import EPSILON
from nanochat.model.sizes import FEATURES, MLP_RATIO, ModelConfig
from nanochat.parse import first_problem
from nanochat.spec.errors import UserError

CLASS = "NanoChatForCausalLM"
TRANSFORMERS_EPSILON = 1e-6  # of the class, unless its configuration says otherwise

_FEATURES = {
    "value_embeddings": "value embeddings",
    "residual_scalars": "learned scalars of the stream",
    "window_pattern": "short windows",
    "smear": "smear",
    "backout": "backout",
}


def to_transformers(config: ModelConfig, special: Mapping[str, int]) -> dict[str, Any]:
    """The contents of config.json. `special` are the ids of the special tokens by name."""
    unheld = [_FEATURES[field.name] for field in FEATURES if getattr(config, field.name) != field.default]
    if unheld:
        raise UserError(
            f"this model cannot be exported: transformers' {CLASS} has no {', '.join(unheld)}, which its recipe uses; "
            "a model of model.recipe classic can"
        )
    return {
        "architectures": [CLASS],
        "model_type": "nanochat",
        "dtype": "float32",
        "vocab_size": config.vocab_size,
        "hidden_size": config.width,
        "intermediate_size": MLP_RATIO * config.width,
        "num_hidden_layers": config.depth,
        "num_attention_heads": config.heads,
        "num_key_value_heads": config.kv_heads,
        "max_position_embeddings": config.sequence_length,
        "hidden_act": "relu2",
        "rms_norm_eps": EPSILON,
        "rope_parameters": {"rope_type": "default", "rope_theta": config.rope_base},
        "final_logit_softcapping": SOFTCAP,
        "attention_bias": False,
        "attention_dropout": 0.0,
        "tie_word_embeddings": False,
        "use_cache": True,
        **token_ids(special),
    }


def token_ids(special: Mapping[str, int]) -> dict[str, int]:
    """The ids of the tokens that begin a text, end an answer and fill a batch."""
    return {
        "bos_token_id": special["bos"],
        "eos_token_id": special["assistant_end"],
        "pad_token_id": special["bos"],
    }


class _Rope(BaseModel):
    model_config = ConfigDict(strict=True)

    rope_type: Literal["default"] = "default"
    rope_theta: float = Field(default=10_000.0, gt=1, le=1e12)


class _NanoChatConfig(BaseModel):
    """The fields that decide the model; fields without a default have to be there, the others have the class's own."""

    model_config = ConfigDict(strict=True)

    model_type: Literal["nanochat"]
    vocab_size: int = Field(ge=1, le=1 << 20)
    hidden_size: int = Field(ge=2, le=1 << 16)
    intermediate_size: int = Field(ge=1, le=1 << 20)
    num_hidden_layers: int = Field(ge=1, le=1024)
    num_attention_heads: int = Field(ge=1, le=1024)
    num_key_value_heads: int | None = Field(None, ge=1, le=1024)
    head_dim: int | None = Field(None, ge=1, le=1 << 16)
    max_position_embeddings: int = Field(ge=1, le=1 << 20)
    hidden_act: Literal["relu2"] = "relu2"
    rms_norm_eps: float = TRANSFORMERS_EPSILON
    rope_parameters: _Rope | None = None
    rope_theta: float | None = Field(None, gt=1, le=1e12)  # as older versions wrote it
    rope_scaling: None = None
    final_logit_softcapping: float | None = SOFTCAP
    attention_bias: Literal[False] = False
    tie_word_embeddings: Literal[False] = False
    quantization_config: None = None


def from_transformers(values: Any) -> ModelConfig:
    """The model's shape; `values` are what config.json holds."""
    try:
        found = _NanoChatConfig.model_validate(values)
    except ValidationError as error:
        raise UserError(f"it is no {CLASS} as this project has them: {first_problem(error)}") from None
    heads = found.num_attention_heads
    if found.intermediate_size != MLP_RATIO * found.hidden_size:
        raise UserError(
            f"intermediate_size is {found.intermediate_size:,}, and this project's models have {MLP_RATIO} times "
            f"hidden_size: {MLP_RATIO * found.hidden_size:,}"
        )
    if found.head_dim is not None and found.head_dim * heads != found.hidden_size:
        raise UserError(f"{heads} heads of {found.head_dim} are not hidden_size {found.hidden_size:,}")
    if found.final_logit_softcapping != SOFTCAP:
        raise UserError(f"final_logit_softcapping is {found.final_logit_softcapping}, and this project's is {SOFTCAP}")
    if found.rms_norm_eps not in (EPSILON, TRANSFORMERS_EPSILON):
        raise UserError(
            f"rms_norm_eps is {found.rms_norm_eps}, and this project's is {EPSILON:.3g}; of others only "
            f"{TRANSFORMERS_EPSILON} is near enough"
        )
    rope = found.rope_parameters or _Rope(rope_theta=found.rope_theta or 10_000.0)
    return ModelConfig(
        depth=found.num_hidden_layers,
        width=found.hidden_size,
        heads=heads,
        kv_heads=found.num_key_value_heads or heads,
        sequence_length=found.max_position_embeddings,
        vocab_size=found.vocab_size,
        rope_base=rope.rope_theta,
    )
