"""A byte-level tokenizer and small models whose weights are nowhere zero."""

from __future__ import annotations

import pytest
import torch

from nanochat.model.sizes import ModelConfig
from nanochat.model.transformer import Transformer
from nanochat.tokenizer import Tokenizer


@pytest.fixture(scope="session")
def tokenizer() -> Tokenizer:
    """256 bytes and some pairs that occur in English."""
    pairs = [b" t", b"th", b" a", b"in", b"er", b" the"]
    return Tokenizer([bytes([i]) for i in range(256)] + pairs)


@pytest.fixture
def model(tokenizer: Tokenizer) -> Transformer:
    config = ModelConfig(depth=2, width=32, heads=2, kv_heads=2, sequence_length=48, vocab_size=tokenizer.vocab_size)
    model = Transformer(config)
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for weight in model.parameters():
            weight.normal_(0.0, 2 * weight.size(1) ** -0.5, generator=generator)
    return model
