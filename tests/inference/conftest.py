"""A tiny tokenizer, a tiny random model, and a model that says what a script tells it."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest
import torch
from torch import Tensor

from nanochat.inference import Engine, Sampling
from nanochat.model.cache import KVCache
from nanochat.model.sizes import ModelConfig
from nanochat.model.speed import speed_up
from nanochat.model.transformer import Transformer
from nanochat.runtime.compiler import cxx_compiler
from nanochat.tokenizer import Tokenizer
from tests.model.recipe_models import MODERN

TEXT = "The quick brown fox jumps over the lazy dog. What is 12 + 30? It is 42. Caf\u00e9 cr\u00e8me, na\u00efve. " * 50


@pytest.fixture(scope="session")
def tokenizer() -> Tokenizer:
    return Tokenizer.train([TEXT], vocab_size=320)


MODELS = {"classic": ({}, False), "modern": (MODERN, False), "compiled": (MODERN, True)}


@pytest.fixture(scope="session", params=MODELS.values(), ids=list(MODELS))
def model(request: pytest.FixtureRequest, tokenizer: Tokenizer) -> Transformer:
    fields, compiled = request.param
    config = ModelConfig(
        depth=2, width=32, heads=4, kv_heads=2, sequence_length=640, vocab_size=tokenizer.vocab_size, **fields
    )
    model = Transformer(config)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for weight in model.parameters():
            weight.normal_(0.0, 0.3, generator=generator)
    if compiled:
        if cxx_compiler() is None:
            pytest.skip("there is no C++ compiler")
        assert speed_up(model) == "answers are computed by compiled code"
    return model


class ScriptedModel:
    """After the prompt it says the script, token by token; each has a logit of 10 above all others."""

    def __init__(self, tokenizer: Tokenizer, *, prompt: int, script: Sequence[int], length: int = 256) -> None:
        self.config = ModelConfig(
            depth=1, width=8, heads=1, kv_heads=1, sequence_length=length, vocab_size=tokenizer.vocab_size
        )
        self.device = torch.device("cpu")
        self.compute_dtype = torch.float32
        self.native = self.graphs = None
        self.prompt = prompt
        self.script = list(script)

    def logits(self, hidden: Tensor) -> Tensor:
        return hidden

    decode = Transformer.decode

    def extend(
        self, ids: Tensor, *, start: Tensor, slots: Sequence[int], cache: KVCache, lengths: Tensor | None = None
    ) -> Tensor:
        """What `logits` returns as it is."""
        b, t = ids.shape
        logits = torch.zeros(b, t, self.config.vocab_size)
        for row in range(b):
            for step in range(t):
                said = int(start[row]) + step + 1 - self.prompt
                logits[row, step, self.script[min(max(said, 0), len(self.script) - 1)]] = 10.0
        return logits


Scripted = Callable[..., Engine]


@pytest.fixture
def scripted(tokenizer: Tokenizer) -> Scripted:
    """An engine whose model says the given tokens after a prompt of four."""

    def make(script: Sequence[int], *, length: int = 256) -> Engine:
        model = ScriptedModel(tokenizer, prompt=4, script=script, length=length)
        return Engine(model, tokenizer, slots=2)  # pyright: ignore[reportArgumentType]

    return make


@pytest.fixture
def greedy() -> Sampling:
    return Sampling(max_tokens=32)
