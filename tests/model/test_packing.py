"""Weights in oneDNN's layout say what they said before; without oneDNN they stay as they are, and that is told."""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy

import pytest
import torch
import torch.nn.functional as F

from nanochat.model.cache import KVCache
from nanochat.model.packing import PackedLinear, pack
from nanochat.model.sizes import ModelConfig
from nanochat.model.transformer import Linear, Transformer
from tests.model.recipe_models import RECIPES

Make = Callable[[ModelConfig], Transformer]


def some_model(make_model: Make, recipe: str = "classic") -> Transformer:
    shape = {"depth": 2, "width": 48, "heads": 4, "kv_heads": 2, "sequence_length": 64, "vocab_size": 61}
    return make_model(ModelConfig(**shape, **RECIPES[recipe]))


@pytest.mark.parametrize("recipe", sorted(RECIPES))
@pytest.mark.parametrize("rows", [1, 3, 16])
@torch.inference_mode()
def test_a_packed_model_has_the_logits_that_it_had(make_model: Make, recipe: str, rows: int) -> None:
    model = some_model(make_model, recipe)
    packed = deepcopy(model)
    assert pack(packed) == "weights are laid out for products of few rows"
    assert not any(isinstance(module, Linear) for module in packed.modules())
    ids = torch.randint(61, (rows, 20), generator=torch.Generator().manual_seed(rows))
    expected = model(ids)
    torch.testing.assert_close(packed(ids), expected, rtol=1e-5, atol=1e-5)
    cache = KVCache(packed.config, slots=rows, length=64, device="cpu", dtype=torch.float32)
    for position in range(20):
        start = torch.full((rows,), position)
        hidden = packed.extend(ids[:, position : position + 1], start=start, slots=range(rows), cache=cache)
        torch.testing.assert_close(packed.logits(hidden)[:, 0], expected[:, position], rtol=1e-4, atol=1e-4)


@pytest.mark.skipif(not torch.cpu._is_avx512_bf16_supported(), reason="bf16 is chosen where the CPU multiplies it")
@pytest.mark.parametrize("rows", [1, 2, 7, 100])
@torch.inference_mode()
def test_products_in_bf16_keep_their_bits(rows: int) -> None:
    generator = torch.Generator().manual_seed(rows)
    for outputs, inputs in ((48, 192), (192, 48), (513, 384)):
        weight = torch.randn(outputs, inputs, generator=generator).to(torch.bfloat16)
        x = torch.randn(rows, inputs, generator=generator).to(torch.bfloat16)
        assert torch.equal(PackedLinear(weight)(x), F.linear(x, weight))


@pytest.mark.parametrize(("available", "words"), [(False, "this PyTorch has no oneDNN"), (True, "no such layout")])
def test_weights_that_can_not_be_laid_out_stay_and_it_is_said(
    make_model: Make, monkeypatch: pytest.MonkeyPatch, available: bool, words: str
) -> None:
    def refuse(_self: PackedLinear, _weight: torch.Tensor) -> None:
        raise RuntimeError("no such layout")

    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: available)
    monkeypatch.setattr(PackedLinear, "__init__", refuse)
    model = some_model(make_model)
    assert words in pack(model)
    assert sum(isinstance(module, Linear) for module in model.modules()) == 6 * 2 + 1
