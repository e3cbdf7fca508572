"""Weights of 8 bits: rounded by their row's scale and no worse, with the same bits whoever is beside, or refused."""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy

import pytest
import torch

from nanochat.model import int8
from nanochat.model.cache import KVCache
from nanochat.model.int8 import Int8Linear, to_int8
from nanochat.model.sizes import ModelConfig
from nanochat.model.transformer import Linear, Transformer
from nanochat.spec.errors import UserError
from tests.model.recipe_models import RECIPES

Make = Callable[[ModelConfig], Transformer]
SHAPE = {"depth": 2, "width": 48, "heads": 4, "kv_heads": 2, "sequence_length": 64, "vocab_size": 61}


def rounded(weight: torch.Tensor) -> torch.Tensor:
    """What 8 bits keep of a matrix, by rows."""
    scale = weight.abs().amax(dim=1, keepdim=True) / 127
    return torch.where(scale > 0, (weight / scale).round() * scale, 0.0)


def drawn(*shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape)))


@pytest.mark.parametrize(("dtype", "error"), [(torch.float32, 2.0**-20), (torch.bfloat16, 2.0**-8)])
@pytest.mark.parametrize("rows", [1, 2, 7, 100])
@torch.inference_mode()
def test_a_product_loses_the_rounding_of_the_weights_and_nothing_else(
    dtype: torch.dtype, error: float, rows: int
) -> None:
    weight, x = drawn(30, 72), drawn(rows, 72).mul(torch.logspace(-3, 3, rows)[:, None]).to(dtype)
    weight[3] = 0.0
    x[0, :70] = 0.0
    kept = rounded(weight.double())
    exact = x.double() @ kept.T
    found = Int8Linear(weight)(x)
    assert found.dtype == dtype
    half_a_step = x.double().abs().amax(dim=1, keepdim=True) / (127 * 128) / 2
    assert ((found.double() - exact).abs() <= half_a_step * kept.abs().sum(dim=1) + error * exact.abs() + 1e-9).all()
    assert not Int8Linear(weight)(torch.zeros(rows, 72, dtype=dtype)).any()


@torch.inference_mode()
def test_a_row_has_the_same_bits_whatever_is_beside_it() -> None:
    linear, x = Int8Linear(drawn(96, 200)), drawn(33, 200)
    x[1:] *= 1000
    assert torch.equal(linear(x)[:1], linear(x[:1]))
    assert torch.equal(linear(x.view(3, 11, 200)).view(33, 96), linear(x))


@pytest.mark.parametrize("recipe", sorted(RECIPES))
@torch.inference_mode()
def test_a_model_is_the_one_with_rounded_weights(make_model: Make, recipe: str) -> None:
    model = make_model(ModelConfig(**SHAPE, **RECIPES[recipe]))  # pyright: ignore[reportArgumentType]
    expected, plain = deepcopy(model), deepcopy(model)
    for module in expected.modules():
        if isinstance(module, Linear):
            module.weight.copy_(rounded(module.weight))
    assert to_int8(model) == "weights have 8 bits, each row by its own scale"
    assert not any(isinstance(module, Linear) for module in model.modules())
    ids = torch.randint(61, (3, 20), generator=torch.Generator().manual_seed(1))
    told = expected(ids)
    assert (told - plain(ids)).abs().max() > 0.01  # so that 0.002 tells them apart
    torch.testing.assert_close(model(ids), told, rtol=0, atol=0.002)
    cache = KVCache(model.config, slots=3, length=64, device="cpu", dtype=torch.float32)
    for position in range(20):
        start = torch.full((3,), position)
        hidden = model.extend(ids[:, position : position + 1], start=start, slots=range(3), cache=cache)
        torch.testing.assert_close(model.logits(hidden)[:, 0], told[:, position], rtol=0, atol=0.002)


def test_what_can_not_be_multiplied_is_refused(make_model: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    model = make_model(ModelConfig(**SHAPE))
    with pytest.raises(UserError, match="are for CPUs, and this model is on meta: leave out int8"):
        to_int8(deepcopy(model).to("meta"))
    monkeypatch.setattr(int8, "LARGEST", 130)  # which 8 bits don't hold, as sums of 16 bits would not
    with pytest.raises(UserError, match="this CPU multiplies them inexactly: leave out int8"):
        to_int8(model)
    monkeypatch.setattr(int8, "engines", lambda: ["none"])
    with pytest.raises(UserError, match="this PyTorch lacks FBGEMM: leave out int8"):
        to_int8(model)
    assert all(isinstance(block.mlp.expand, Linear) for block in model.blocks)  # pyright: ignore
