"""Small models with weights that are nowhere zero, so that every part of them is seen."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from nanochat.model.sizes import ModelConfig
from nanochat.model.transformer import Transformer


@pytest.fixture
def config() -> ModelConfig:
    return ModelConfig(depth=2, width=32, heads=4, kv_heads=2, sequence_length=16, vocab_size=61)


@pytest.fixture
def make_model() -> Callable[[ModelConfig], Transformer]:
    def make(config: ModelConfig, seed: int = 1) -> Transformer:
        model = Transformer(config)
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for weight in model.parameters():
                weight.normal_(0.0, weight.size(-1) ** -0.5, generator=generator)
        return model

    return make
