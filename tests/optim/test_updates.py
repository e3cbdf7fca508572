"""One process, against PyTorch's own optimizers and the formulas."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from optim_problem import Tables, batch

from nanochat.optim import OptimSettings, build_optimizer
from nanochat.optim.muon import muon_update, orthogonalise
from nanochat.optim.sharded import MODERN

SETTINGS = OptimSettings(weight_decay=0.1)


def gradients(model: Tables, step: int) -> None:
    model.zero_grad()
    model.loss(batch(step)).backward()


def test_tables_are_pytorchs_adamw() -> None:
    """With rates scaled by (width / 768)^-0.5, and by the schedule."""
    ours, theirs = Tables(), Tables()
    optimizer = build_optimizer(ours, SETTINGS)
    scale = (8 / 768) ** -0.5
    adamw = torch.optim.AdamW(
        [
            {"params": [theirs.embedding], "lr": 0.2 * scale * 0.5},
            {"params": [theirs.head.weight], "lr": 0.004 * scale * 0.5},
        ],
        betas=(0.8, 0.95),
        eps=1e-10,
        weight_decay=0.1,
    )
    for step in range(4):
        gradients(ours, step)
        for mine, other in ((ours.embedding, theirs.embedding), (ours.head.weight, theirs.head.weight)):
            assert mine.grad is not None
            other.grad = mine.grad.clone()
        optimizer.step(0.5, 0.9, None)
        adamw.step()
    torch.testing.assert_close(ours.embedding, theirs.embedding, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(ours.head.weight, theirs.head.weight, rtol=1e-5, atol=1e-6)


def test_matrices_are_muon_by_singular_values() -> None:
    """Five rounds of the quintic on the singular values of Nesterov's direction; tall ones by sqrt(rows / cols)."""
    model = Tables()
    optimizer = build_optimizer(model, SETTINGS)
    matrices = [*model.square, model.tall, model.wide]
    expected = [matrix.detach().double() for matrix in matrices]
    momenta = [torch.zeros_like(matrix) for matrix in expected]
    for step in range(4):
        gradients(model, step)
        for i, matrix in enumerate(matrices):
            assert matrix.grad is not None
            gradient = matrix.grad.double()
            momenta[i] = 0.9 * momenta[i] + 0.1 * gradient
            u, s, vh = torch.linalg.svd(0.1 * gradient + 0.9 * momenta[i], full_matrices=False)
            s = s / s.norm()
            for _ in range(5):
                s = 3.4445 * s - 4.7750 * s**3 + 2.0315 * s**5
            rows, cols = matrix.shape
            expected[i] -= 0.02 * 0.5 * max(1, rows / cols) ** 0.5 * (u * s) @ vh
        optimizer.step(0.5, 0.9, None)
    for matrix, value in zip(matrices, expected, strict=True):
        torch.testing.assert_close(matrix.double(), value, rtol=1e-4, atol=1e-5)


def test_modern_groups_are_pytorchs_adamw_by_their_own_rates() -> None:
    """A vector's rate does not depend on the width, a table's does; those for embedding and head leave them alone."""
    ours, theirs = Tables(), Tables()
    optimizer = build_optimizer(ours, SETTINGS)
    mine, other = dict(ours.named_parameters()), dict(theirs.named_parameters())
    scale = (8 / 768) ** -0.5
    adamw = torch.optim.AdamW(
        [
            {
                "params": [other["value_embedding.table"]],
                "lr": 0.15 * scale,
                "betas": (0.8, 0.995),
                "weight_decay": 0.01,
            },
            {"params": [other["stream.stream_scale"]], "lr": 0.005, "weight_decay": 0.05},
            {"params": [other["stream.input_scale"]], "lr": 0.5, "betas": (0.96, 0.95)},
            {"params": [other[f"stream.{name}"] for name in ("smear_gate", "smear_scale", "backout_scale")], "lr": 0.2},
        ],
        betas=(0.8, 0.95),
        eps=1e-10,
        weight_decay=0.0,
    )
    for step in range(4):
        gradients(ours, step)
        for name in MODERN:
            gradient = mine[name].grad
            assert gradient is not None and gradient.count_nonzero()
            other[name].grad = gradient.clone()
        optimizer.step(1.0, 0.9, None)
        adamw.step()
    for name in MODERN:
        torch.testing.assert_close(mine[name], other[name], rtol=1e-5, atol=1e-6)


def test_decay_is_cautious() -> None:
    """Only what the step moves towards 0 shrinks as well, by lr x decay of itself."""
    generator = torch.Generator().manual_seed(0)
    weights, gradient = torch.randn(2, 6, 4, generator=generator), torch.randn(2, 6, 4, generator=generator)
    plain, decayed = weights.clone(), weights.clone()
    for case, decay in ((plain, 0.0), (decayed, 0.3)):
        momenta = torch.zeros_like(case)
        muon_update(case, gradient, momenta, lr=0.02, momentum=0.9, dtype=torch.float32, decay=decay)
    agreeing = (weights - plain) * weights >= 0
    assert agreeing.any() and not agreeing.all()
    torch.testing.assert_close(decayed, torch.where(agreeing, plain - 0.02 * 0.3 * weights, plain), rtol=0, atol=1e-7)


def test_decay_takes_no_weight_beyond_0() -> None:
    """Scaling rules give a training of a few steps a decay of more than all."""
    generator = torch.Generator().manual_seed(0)
    weights, gradient = torch.randn(2, 6, 4, generator=generator), torch.randn(2, 6, 4, generator=generator)
    whole, more = weights.clone(), weights.clone()
    for case, decay in ((whole, 1.0), (more, 7000.0)):
        muon_update(case, gradient, torch.zeros_like(case), lr=1.0, momentum=0.9, dtype=torch.float32, decay=decay)
    assert torch.equal(more, whole)
    assert not torch.equal(more, weights)


def test_the_schedule_scales_the_decay() -> None:
    settings = OptimSettings(matrix_decay=0.1)
    cases = []
    for decay, scale in ((0.1, 0.0), (0.0, 1.0), (0.1, 1.0)):
        model = Tables()
        gradients(model, 0)
        build_optimizer(model, replace(settings, matrix_decay=decay)).step(1.0, 0.9, None, scale)
        cases.append(model)
    none, off, full = cases
    assert all(torch.equal(a, b) for a, b in zip(none.parameters(), off.parameters(), strict=True))
    assert not torch.equal(full.tall, off.tall)
    assert torch.equal(full.embedding, off.embedding)


def test_epsilon_is_not_scaled_by_the_step() -> None:
    """A first gradient g moves a weight by lr g / (|g| + epsilon), whatever beta2."""
    model = Tables()
    before = model.head.weight.detach().clone()
    for parameter in model.parameters():
        parameter.grad = torch.full_like(parameter, 1e-10)
    build_optimizer(model, OptimSettings()).step(1.0, 0.9, None)
    moved = before - model.head.weight
    expected = torch.full_like(moved, 0.004 * (8 / 768) ** -0.5 * 0.5)
    torch.testing.assert_close(moved, expected, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("shape", [(3, 16, 16), (2, 64, 16), (1, 16, 64), (0, 8, 8)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("method", ["newton-schulz", "polar-express"])
def test_orthogonalised_singular_values_are_about_one(shape: tuple[int, ...], dtype: torch.dtype, method: str) -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(shape, generator=generator) * torch.arange(1, shape[-1] + 1) * 1e-3
    y = orthogonalise(x, dtype, method)
    assert y.shape == x.shape and y.dtype == x.dtype
    if shape[0]:
        values = torch.linalg.svdvals(y)
        assert values.min() > 0.3 and values.max() < 1.3
        single = orthogonalise(x[:1], dtype, method)
        torch.testing.assert_close(y[:1], single, rtol=0, atol=1e-6 if dtype == torch.float32 else 2e-2)


def test_polar_express_is_nearer_to_one() -> None:
    x = torch.randn(1, 24, 16, generator=torch.Generator().manual_seed(0))
    spread = {
        method: (torch.linalg.svdvals(orthogonalise(x, torch.float32, method)) - 1).abs().max().item()
        for method in ("newton-schulz", "polar-express")
    }
    assert spread["polar-express"] < 0.2 and spread["polar-express"] < spread["newton-schulz"]


def test_nothing_comes_of_nothing() -> None:
    assert orthogonalise(torch.zeros(2, 4, 8), torch.float32).count_nonzero() == 0


def test_clipping_by_the_norm_of_all() -> None:
    """Gradients twice as large with a norm that stays clipped make the same step."""
    model, doubled = Tables(), Tables()
    norms = []
    for case, factor in ((model, 1.0), (doubled, 2.0)):
        gradients(case, 0)
        for parameter in case.parameters():
            assert parameter.grad is not None
            parameter.grad.mul_(factor)
        expected = math.sqrt(sum(p.grad.square().sum().item() for p in case.parameters() if p.grad is not None))
        norms.append(float(build_optimizer(case, SETTINGS).step(1.0, 0.9, 0.01)))
        assert norms[-1] == pytest.approx(expected, rel=1e-5)
    assert norms[1] == pytest.approx(2 * norms[0])
    torch.testing.assert_close(model.state_dict(), doubled.state_dict(), rtol=1e-4, atol=1e-5)


def test_saved_and_loaded_goes_on_bit_for_bit() -> None:
    model = Tables()
    optimizer = build_optimizer(model, SETTINGS)
    for step in range(3):
        gradients(model, step)
        optimizer.step(1.0, 0.9, 1.0)
    other = Tables()
    other.load_state_dict(model.state_dict())
    resumed = build_optimizer(other, SETTINGS)
    resumed.load_state_dict(optimizer.own_state())
    for case, its in ((model, optimizer), (other, resumed)):
        gradients(case, 3)
        its.step(1.0, 0.9, 1.0)
    for mine, its in zip(model.parameters(), other.parameters(), strict=True):
        assert torch.equal(mine, its)


def test_reset_forgets_the_state() -> None:
    model = Tables()
    optimizer = build_optimizer(model, SETTINGS)
    gradients(model, 0)
    optimizer.step(1.0, 0.9, None)
    assert sum(tensor.count_nonzero() for tensor in optimizer.own_state().values()) > 0
    optimizer.reset()
    assert sum(tensor.count_nonzero() for tensor in optimizer.own_state().values()) == 0


def test_another_models_state_is_refused() -> None:
    optimizer = build_optimizer(Tables(), SETTINGS)
    state = optimizer.own_state()
    state.pop("tall.momentum")
    with pytest.raises(ValueError, match=r"tall\.momentum"):
        optimizer.load_state_dict(state)
