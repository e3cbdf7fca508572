"""Products in FP8, which a CPU makes too, slowly: their errors, and what training by them comes to."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from nanochat.model.fp8 import fp8_linear, quantize
from nanochat.model.sizes import ModelConfig
from nanochat.model.transformer import Linear, Transformer

CONFIG = ModelConfig(depth=2, width=128, heads=2, kv_heads=2, sequence_length=64, vocab_size=256)
STEPS = 60


def model(config: ModelConfig = CONFIG) -> Transformer:
    made = Transformer(config)
    made.init_weights(0)
    made.compute_dtype = torch.bfloat16
    return made


def batches() -> Iterator[tuple[Tensor, Tensor]]:
    """Rows that count on in steps of their own, of which a fifth is noise."""
    draw = torch.Generator().manual_seed(0)
    while True:
        first, stride = (torch.randint(1, 16, (8, 1), generator=draw) for _ in range(2))
        rows = (first + stride * torch.arange(65)) % 251
        noise = torch.rand(rows.shape, generator=draw) < 0.2
        rows = torch.where(noise, torch.randint(256, rows.shape, generator=draw), rows)
        yield rows[:, :-1], rows[:, 1:]


def trained(made: Transformer) -> list[float]:
    """The losses of STEPS steps."""
    optimizer = torch.optim.AdamW(made.parameters(), lr=3e-3)
    losses = []
    for _, (ids, targets) in zip(range(STEPS), batches(), strict=False):
        optimizer.zero_grad()
        loss = made(ids, targets)
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    return losses


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.float8_e5m2])
@pytest.mark.parametrize("size", [0.0, 1e-20, 1.0, 1e6, 3e38])
def test_numbers_keep_their_size(dtype: torch.dtype, size: float) -> None:
    x = torch.linspace(-1, 1, 999) * size
    small, scale = quantize(x, dtype)
    assert small.float().isfinite().all()
    torch.testing.assert_close(small.double() * scale.double(), x.double(), rtol=0.13, atol=max(1e-3 * size, 1e-15))


def test_what_is_not_finite_is_not_made_so() -> None:
    x = torch.tensor([1.0, float("inf")])
    small, scale = quantize(x, torch.float8_e5m2)
    assert not (small.float() * scale).isfinite().all()


def test_products_and_gradients_are_near_and_no_outlier_ruins_small_gradients() -> None:
    draw = torch.Generator().manual_seed(0)
    x = torch.randn(2, 64, 128, generator=draw).bfloat16().requires_grad_()
    weight = torch.randn(256, 128, generator=draw).requires_grad_()
    to_y = torch.randn(2, 64, 256, generator=draw).bfloat16() * 1e-7
    y = fp8_linear(x, weight)
    y.backward(to_y)
    assert y.dtype == torch.bfloat16 and x.grad is not None and weight.grad is not None
    assert weight.grad.dtype == torch.float32
    a, b, g = x.detach().double(), weight.detach().double(), to_y.double()
    for found, expected in ((y.detach(), a @ b.T), (x.grad, g @ b), (weight.grad, g.flatten(0, 1).T @ a.flatten(0, 1))):
        assert 0.005 < float((found.double() - expected).norm() / expected.norm()) < 0.08


def test_head_embeddings_and_small_matrices_stay_in_bf16() -> None:
    made = model()
    assert made.use_fp8() == 12
    assert not made.head.fp8
    small = model(ModelConfig(depth=2, width=64, heads=2, kv_heads=2, sequence_length=64, vocab_size=256))
    assert small.use_fp8() == 0
    assert not any(m.fp8 for m in small.modules() if isinstance(m, Linear))


def test_what_is_measured_is_not_in_fp8() -> None:
    made, ids = model(), next(batches())[0]
    trained(made)
    with torch.no_grad():
        before = made(ids)
        made.use_fp8()
        assert torch.equal(made(ids), before)
    assert not torch.equal(made(ids), before)


def test_training_comes_to_the_loss_of_bf16() -> None:
    plain, small = model(), model()
    small.use_fp8()
    expected, found = trained(plain), trained(small)
    assert expected != found
    learned = expected[0] - sum(expected[-10:]) / 10
    assert learned > 1
    assert abs(sum(found[-10:]) - sum(expected[-10:])) / 10 < 0.02 * learned


@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")  # by the compiler itself
def test_the_compiler_takes_it_whole() -> None:
    made, ids = model(), next(batches())
    made.use_fp8()
    made(*ids).backward()
    expected = [w.grad.clone() for w in made.parameters() if w.grad is not None]
    made.zero_grad()
    hidden = torch.compile(made.hidden, backend="aot_eager", fullgraph=True, dynamic=False)
    made.loss(hidden(ids[0]), ids[1]).backward()
    assert all(map(torch.equal, expected, (w.grad for w in made.parameters() if w.grad is not None)))
