"""Weights under the names that transformers gives them, one to one.

names(config)        # {"blocks.0.attention.query.weight": "model.layers.0.self_attn.q_proj.weight", ...}
shapes(config)       # {"blocks.0.attention.query.weight": (1280, 1280), ...}
"""

from __future__ import annotations

import torch

from nanochat.model.sizes import ModelConfig
from nanochat.model.transformer import Transformer

_ENDS = {"embedding": "model.embed_tokens.weight", "head.weight": "lm_head.weight"}
_OF_A_BLOCK = {
    "attention.query.weight": "self_attn.q_proj.weight",
    "attention.key.weight": "self_attn.k_proj.weight",
    "attention.value.weight": "self_attn.v_proj.weight",
    "attention.project.weight": "self_attn.o_proj.weight",
    "mlp.expand.weight": "mlp.fc1.weight",
    "mlp.contract.weight": "mlp.fc2.weight",
}


def names(config: ModelConfig) -> dict[str, str]:
    """Transformers' name of each weight, by this project's."""
    blocks = {
        f"blocks.{layer}.{own}": f"model.layers.{layer}.{theirs}"
        for layer in range(config.depth)
        for own, theirs in _OF_A_BLOCK.items()
    }
    return _ENDS | blocks


def shapes(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    """The shape of each weight, by this project's name."""
    with torch.device("meta"):
        return {name: tuple(weight.shape) for name, weight in Transformer(config).state_dict().items()}
