"""A small model's folder as a stage writes it, and its export."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from nanochat.exchange.export import export
from nanochat.model.export import save_model
from nanochat.model.sizes import ModelConfig
from nanochat.model.transformer import Transformer
from nanochat.tokenizer import Tokenizer

TEXT = "The quick brown fox jumps over the lazy dog. So it is 42, isn't it? Na\u00efve caf\u00e9s, \u65e5\u672c. " * 30
CONFIG = ModelConfig(depth=2, width=32, heads=4, kv_heads=2, sequence_length=64, vocab_size=300)


@pytest.fixture(scope="session")
def tokenizer() -> Tokenizer:
    return Tokenizer.train([TEXT], vocab_size=300)


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory, tokenizer: Tokenizer) -> Path:
    folder = tmp_path_factory.mktemp("artifact")
    model = Transformer(CONFIG)
    with torch.no_grad():
        for weight in model.parameters():
            weight.normal_(0.0, 1.0, generator=torch.Generator().manual_seed(1))
    save_model(folder, model, {"stage": "sft", "step": 1200, "questions": ["Who are you?"]})
    tokenizer.save(folder)
    return folder


@pytest.fixture
def exported(folder: Path, tmp_path: Path) -> Path:
    target = tmp_path / "exported"
    export(folder, target)
    return target
