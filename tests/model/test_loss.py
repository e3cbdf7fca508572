"""The loss by chunks is the plain loss, and holds no more than a chunk of logits."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from nanochat.model import loss as module
from nanochat.model.loss import IGNORED, head_loss, softcap
from nanochat.model.sizes import ModelConfig
from nanochat.model.transformer import Transformer

WIDTH, VOCABULARY = 24, 83


class Largest(TorchDispatchMode):
    """Notes the number of elements of the largest tensor that any operation gives."""

    elements = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        sizes = [leaf.numel() for leaf in tree_leaves(result) if isinstance(leaf, Tensor)]
        self.elements = max(self.elements, *sizes, 0)
        return result


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Chunks of 8 rows and tiles of 3 at this vocabulary."""
    monkeypatch.setattr(module, "CHUNK", {"cpu": 8 * VOCABULARY})
    monkeypatch.setattr(module, "TILE", {"cpu": 3 * VOCABULARY})


@contextmanager
def random() -> Iterator[None]:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(5)
        yield


def problem(rows: int, dtype: torch.dtype, *, ignored: bool) -> tuple[Tensor, Tensor, Tensor]:
    with random():
        hidden = torch.randn(rows, WIDTH).to(dtype).requires_grad_()
        weight = torch.randn(VOCABULARY, WIDTH).mul_(2).requires_grad_()
        targets = torch.randint(0, VOCABULARY, (rows,))
        if ignored:
            targets[torch.rand(rows) < 0.4] = IGNORED
    return hidden, weight, targets


def gradients(total: Tensor, *inputs: Tensor) -> list[Tensor]:
    return [gradient.double() for gradient in torch.autograd.grad(total, inputs)]


def plain(hidden: Tensor, weight: Tensor, targets: Tensor, factors: Tensor | None) -> Tensor:
    """The same as one matrix of logits."""
    logits = softcap_of(hidden @ weight.to(hidden.dtype).t())
    losses = F.cross_entropy(logits, targets, ignore_index=IGNORED, reduction="none")
    return losses.sum() if factors is None else (losses * factors).sum()


def softcap_of(logits: Tensor) -> Tensor:
    return softcap(logits) if logits.dtype != torch.float64 else 15 * torch.tanh(logits / 15)


@pytest.mark.parametrize("rows", [1, 8, 37])
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("ignored", [False, True])
def test_in_fp32_loss_and_gradients_are_the_plain_ones(rows: int, weighted: bool, ignored: bool) -> None:
    hidden, weight, targets = problem(rows, torch.float32, ignored=ignored)
    factors = torch.linspace(-1.5, 2.0, rows) if weighted else None
    total, _ = head_loss(hidden, weight, targets, factors)
    expected = plain(hidden, weight, targets, factors)
    torch.testing.assert_close(total, expected, rtol=1e-5, atol=1e-5)
    scale = 0.37  # what comes from behind the loss
    usual = gradients(expected * scale, hidden, weight)
    for got, wanted in zip(gradients(total * scale, hidden, weight), usual, strict=True):
        torch.testing.assert_close(got, wanted, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("weighted", [False, True])
def test_in_bf16_gradients_are_as_near_to_the_exact_ones_as_the_plain_ones(weighted: bool) -> None:
    hidden, weight, targets = problem(203, torch.bfloat16, ignored=True)
    factors = torch.linspace(-1.5, 2.0, 203) if weighted else None
    total, _ = head_loss(hidden, weight, targets, factors)
    exact_hidden = hidden.detach().double().requires_grad_()
    exact_weight = weight.detach().bfloat16().double().requires_grad_()
    exact = plain(exact_hidden, exact_weight, targets, None if factors is None else factors.double())
    expected = plain(hidden, weight, targets, factors)
    torch.testing.assert_close(total.double(), exact, rtol=2e-3, atol=0)
    for got, usual, true in zip(
        gradients(total, hidden, weight),
        gradients(expected, hidden, weight),
        gradients(exact, exact_hidden, exact_weight),
        strict=True,
    ):
        assert (got - true).norm() <= 1.2 * (usual - true).norm()
        assert (got - true).norm() <= 0.01 * true.norm()


def test_gradients_of_micro_batches_add_up() -> None:
    hidden, weight, targets = problem(30, torch.float32, ignored=True)
    for part in (slice(0, 11), slice(11, 30)):
        (head_loss(hidden[part], weight, targets[part])[0] / 20).backward()
    wanted = gradients(plain(hidden, weight, targets, None) / 20, hidden, weight)
    for got, expected in zip((hidden.grad, weight.grad), wanted, strict=True):
        assert got is not None
        torch.testing.assert_close(got.double(), expected, rtol=1e-5, atol=1e-6)


def test_the_losses_of_tokens_are_the_plain_ones_and_have_no_gradient() -> None:
    hidden, weight, targets = problem(37, torch.float32, ignored=True)
    _, losses = head_loss(hidden, weight, targets)
    wanted = F.cross_entropy(softcap(hidden @ weight.t()), targets, ignore_index=IGNORED, reduction="none")
    torch.testing.assert_close(losses, wanted, rtol=1e-5, atol=1e-5)
    assert not losses.requires_grad and not losses[targets == IGNORED].any()


def test_the_same_rows_give_the_same_bits() -> None:
    hidden, weight, targets = problem(37, torch.bfloat16, ignored=True)
    runs = [gradients(head_loss(hidden, weight, targets)[0], hidden, weight) for _ in range(3)]
    assert all(torch.equal(a, b) for again in runs[1:] for a, b in zip(runs[0], again, strict=True))


def test_without_a_target_loss_and_gradients_are_zero() -> None:
    hidden, weight, _ = problem(5, torch.float32, ignored=False)
    total, _ = head_loss(hidden, weight, torch.full((5,), IGNORED))
    assert total == 0
    assert not any(gradient.any() for gradient in gradients(total, hidden, weight))


def test_a_second_backward_is_refused() -> None:
    total, _ = head_loss(*problem(5, torch.float32, ignored=False))
    total.backward(retain_graph=True)
    with pytest.raises(RuntimeError):
        total.backward()


@pytest.mark.parametrize(("rows", "vocabulary"), [(64, 83), (640, 83), (64, 830), (640, 830)])
@pytest.mark.parametrize("trained", [True, False])
def test_no_tensor_is_of_all_rows_times_the_vocabulary(rows: int, vocabulary: int, trained: bool) -> None:
    """Of the whole model: with and without a gradient, whatever the batch and the vocabulary."""
    model = Transformer(ModelConfig(depth=1, width=8, heads=1, kv_heads=1, sequence_length=16, vocab_size=vocabulary))
    model.init_weights(1)
    ids = torch.randint(0, vocabulary, (rows // 16, 16), generator=torch.Generator().manual_seed(1))
    factors = torch.ones(ids.shape)
    with Largest() as largest, torch.set_grad_enabled(trained):
        if trained:
            model(ids, ids, factors, reduction="sum").backward()
        else:
            model(ids, ids, reduction="none")
    model_itself = max(vocabulary * 8, rows * 4 * 8)  # a table, and the widest layer
    assert largest.elements <= max(8 * VOCABULARY, model_itself) < rows * vocabulary
