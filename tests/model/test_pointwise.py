"""What compiled code computes between the products is what PyTorch computes, with its gradients."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from nanochat.model import fused_pointwise
from nanochat.model.fused_pointwise import FUSED
from nanochat.model.pointwise import PLAIN, Pointwise
from nanochat.model.sizes import ModelConfig
from nanochat.model.transformer import Transformer
from nanochat.runtime import native_code
from nanochat.runtime.compiler import cxx_compiler

pytestmark = pytest.mark.skipif(cxx_compiler() is None, reason="there is no C++ compiler")
ROUNDING = 2**-8  # of one number in bf16


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def rotary(length: int, head_dim: int) -> Tensor:
    angles = torch.outer(torch.arange(float(length)), 1 / 100 ** torch.linspace(0, 1, head_dim // 2))
    return torch.stack((angles.cos(), angles.sin()))[:, None, :, None]


def results(pointwise: Pointwise, name: str, x: Tensor) -> tuple[Tensor, Tensor]:
    """The output and the gradient of x."""
    x = x.clone().requires_grad_()
    more = (rotary(x.size(1), x.size(-1)),) if name == "turn" else ()
    y = getattr(pointwise, name)(x, *more)
    y.backward(draw(*y.shape, seed=1).bfloat16().to(y.dtype))
    assert x.grad is not None
    return y.detach(), x.grad


def compare(name: str, x: Tensor) -> None:
    """Each row of the output and of its gradient, against those of fp32."""
    for found, exact in zip(
        results(FUSED, name, x.bfloat16()), results(PLAIN, name, x.bfloat16().float()), strict=True
    ):
        assert found.dtype == torch.bfloat16 and found.shape == exact.shape
        assert float((found.float() - exact).norm(dim=-1).max()) <= ROUNDING * float(exact.norm(dim=-1).max())


@pytest.mark.parametrize("name", ["norm", "turn", "square"])
@pytest.mark.parametrize("width", [2, 48, 64, 100, 192])
def test_it_is_exact_but_for_one_rounding(name: str, width: int) -> None:
    compare(name, draw(3, 70, 2, width))


@pytest.mark.parametrize("name", ["norm", "turn", "square"])
def test_code_for_other_cpus_computes_alike(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    plain = [option for option in native_code.OPTIONS if option != "-march=native"]
    monkeypatch.setattr(native_code, "OPTIONS", (*plain, "-Wno-psabi"))
    library = fused_pointwise.prepare.__wrapped__()
    monkeypatch.setattr(fused_pointwise, "prepare", lambda: library)
    compare(name, draw(2, 30, 2, 52))


def test_the_mlps_square_has_pytorchs_bits() -> None:
    x = draw(3, 1000).bfloat16()
    assert all(map(torch.equal, results(FUSED, "square", x), results(PLAIN, "square", x)))


@pytest.mark.parametrize("name", ["norm", "turn", "square"])
def test_what_is_no_number_stays_none(name: str) -> None:
    x = draw(1, 4, 2, 32).bfloat16()
    x[0, 2, 1, 3] = float("nan")
    assert all(bool(found[0, 2, 1].isnan().any()) for found in results(FUSED, name, x))
    with pytest.raises(TypeError, match="bf16"):
        results(FUSED, name, x.float())


@pytest.mark.parametrize("name", ["norm", "turn", "square"])
def test_bits_are_the_same_whatever_the_threads(name: str) -> None:
    x, before = draw(4, 300, 2, 64).bfloat16(), torch.get_num_threads()
    found = []
    try:
        for threads in (1, 3):
            torch.set_num_threads(threads)
            found.append(results(FUSED, name, x))
    finally:
        torch.set_num_threads(before)
    assert all(map(torch.equal, *found))


@pytest.mark.parametrize("recipe", [{}, {"window_pattern": "SL", "value_embeddings": True}])
def test_a_model_trains_by_it(
    config: ModelConfig, make_model: Callable[[ModelConfig], Transformer], recipe: dict[str, object]
) -> None:
    """Loss and gradients are those of PyTorch within rounding."""
    model = make_model(replace(config, **recipe))  # pyright: ignore[reportArgumentType]
    model.compute_dtype = torch.bfloat16
    ids = torch.randint(config.vocab_size, (2, config.sequence_length), generator=torch.Generator().manual_seed(0))
    found: list[list[Tensor]] = []
    for pointwise in (PLAIN, FUSED):
        model.pointwise = pointwise
        model.zero_grad()
        loss = model(ids, ids.roll(-1, 1))
        loss.backward()
        found.append([loss.detach(), *(weight.grad for weight in model.parameters() if weight.grad is not None)])
    for plain, fused in zip(*found, strict=True):
        assert float((fused - plain).norm()) <= 3e-2 * float(plain.norm())


@torch.no_grad()
def test_the_compiler_takes_the_plain_ones_whole(
    config: ModelConfig, make_model: Callable[[ModelConfig], Transformer]
) -> None:
    """As an argument of a layer, too, which is how layers are compiled where several processes train."""
    model = make_model(config)
    ids = torch.randint(config.vocab_size, (2, 8), generator=torch.Generator().manual_seed(0))
    expected = model.hidden(ids)
    for blocks in (None, [torch.compile(block, backend="eager", fullgraph=True) for block in model.blocks]):
        whole = torch.compile(model.hidden, backend="eager", fullgraph=blocks is None)
        torch.testing.assert_close(whole(ids) if blocks is None else model.hidden(ids, blocks), expected)
