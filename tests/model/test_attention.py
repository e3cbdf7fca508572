"""Attention by blocks of rows and by compiled code against an exact computation, and against PyTorch's kernel."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from nanochat.model import blocked_attention, fused_attention
from nanochat.model.attention import Attend, sdpa, visible
from nanochat.model.blocked_attention import blocked
from nanochat.model.fused_attention import fused
from nanochat.model.pointwise import norm
from nanochat.model.sizes import ModelConfig
from nanochat.model.transformer import Transformer
from nanochat.runtime import native_code
from nanochat.runtime.compiler import cxx_compiler

Inputs = tuple[Tensor, Tensor, Tensor, Tensor]
needs_compiler: Any = pytest.mark.skipif(cxx_compiler() is None, reason="there is no C++ compiler")
KERNELS = pytest.mark.parametrize("attend", [blocked, pytest.param(fused, marks=needs_compiler)])
# Rows of one block, of several, of several and a part; windows within a block and beyond it.
SHAPES = [(1, None), (60, None), (60, 7), (300, None), (300, 5), (300, 128), (384, 200), (300, 300), (60, 1)]


def inputs(length: int, heads: int = 2, kv_heads: int = 2, hd: int = 64) -> Inputs:
    """q, k, v and the gradient of the output, bf16; some keys are like queries, so that few weights are large."""
    draw = torch.Generator().manual_seed(length)
    q, k, v, to_y = (torch.randn(2, length, n, hd, generator=draw) for n in (heads, kv_heads, kv_heads, heads))
    k = k + 0.5 * q[:, :, :kv_heads]
    return norm(q).bfloat16(), norm(k).bfloat16(), v.bfloat16(), to_y.bfloat16()


def results(attend: Attend, given: Inputs, window: int | None) -> list[Tensor]:
    """The output, and the gradients of q, k and v."""
    q, k, v = (x.clone().requires_grad_() for x in given[:3])
    y = attend(q, k, v, window)
    y.backward(given[3].to(y.dtype))
    return [y.detach(), *(x.grad for x in (q, k, v) if x.grad is not None)]


def exact(q: Tensor, k: Tensor, v: Tensor, window: int | None) -> Tensor:
    """In fp64, by the definition."""
    shared = q.size(2) // k.size(2)
    q, k, v = (x.double().transpose(1, 2) for x in (q, k, v))
    k, v = (x.repeat_interleave(shared, dim=1) for x in (k, v))
    scores = (q @ k.mT / math.sqrt(q.size(-1))).masked_fill(~visible(q.size(2), window, q.device), -math.inf)
    return (scores.softmax(-1) @ v).transpose(1, 2)


def errors(found: list[Tensor], expected: list[Tensor]) -> list[float]:
    """Each relative to what is expected."""
    return [
        float((a.double() - b.double()).norm() / b.double().norm().clamp(min=1e-9))
        for a, b in zip(found, expected, strict=True)
    ]


@KERNELS
@pytest.mark.parametrize(("length", "window"), SHAPES)
def test_it_is_as_exact_as_pytorchs_kernel(attend: Attend, length: int, window: int | None) -> None:
    """The output, and the gradients together; each gradient by itself within a fifth."""
    given = inputs(length)
    expected = results(exact, given, window)
    (y, *gradients), (plain_y, *plain) = (errors(results(each, given, window), expected) for each in (attend, sdpa))
    assert y <= 1.05 * plain_y < 5e-3
    assert sum(gradients) <= 1.1 * sum(plain) or max(gradients) < 1e-6
    assert all(a <= 1.25 * b or a < 1e-6 for a, b in zip(gradients, plain, strict=True))


@KERNELS
@pytest.mark.parametrize("kv_heads", [1, 2])
def test_heads_share_keys(attend: Attend, kv_heads: int) -> None:
    given = inputs(200, heads=4, kv_heads=kv_heads)
    assert max(errors(results(attend, given, None), results(exact, given, None))) < 1e-2


@KERNELS
@pytest.mark.parametrize("window", [None, 40])
def test_what_a_position_does_not_see_has_no_weight_at_all(attend: Attend, window: int | None) -> None:
    q, k, v, _ = inputs(300)
    before = attend(q, k, v, window)
    k[:, 200:], v[:, 200:] = 7.0, 99.0
    after = attend(q, k, v, window)
    assert torch.equal(after[:, :200], before[:, :200]) and not torch.equal(after[:, 200:], before[:, 200:])
    if window is not None:
        v[:, :161] = 50.0
        assert torch.equal(attend(q, k, v, window)[:, 200:], after[:, 200:])


@KERNELS
def test_the_same_bits_each_time_and_the_processs_products_as_before(attend: Attend) -> None:
    settings, given = torch.backends.mkldnn.matmul, inputs(300)
    before = settings.fp32_precision
    first, second = (results(attend, given, None) for _ in range(2))
    assert all(map(torch.equal, first, second))
    assert settings.fp32_precision == before


def test_what_is_kept_for_backward_is_kept_for_it_alone() -> None:
    kept: list[int] = []
    operator = torch.ops.nanochat.blocked_attention

    def count(call: Callable[[], object]) -> int:
        kept.clear()
        with torch.autograd.graph.saved_tensors_hooks(lambda x: kept.append(x.numel()) or x, lambda x: x):
            call()
        return sum(kept)

    q, k, v, _ = inputs(300)
    weights = 4 * sum(math.prod(s) for s in ((128, 128), (128, 256), (44, 300)))  # of B * H blocks
    assert count(lambda: blocked(q.requires_grad_(), k, v, None)) == weights + 4 * q.numel()
    with torch.no_grad():
        assert operator(q, k, v, 300, torch.is_grad_enabled())[1].numel() == 0


@KERNELS
def test_the_compiler_takes_it_whole(attend: Attend) -> None:
    given = inputs(150)
    compiled = torch.compile(attend, backend="aot_eager", fullgraph=True)
    assert all(map(torch.equal, results(compiled, given, 40), results(attend, given, 40)))


@needs_compiler
def test_bits_of_compiled_code_depend_on_nothing_beside() -> None:
    """Neither on the threads, nor on other rows of the batch, nor, forward, on how many positions follow."""
    given = inputs(300, heads=4)
    whole, before = results(fused, given, 70), torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        assert all(map(torch.equal, results(fused, given, 70), whole))
    finally:
        torch.set_num_threads(before)
    q, k, v, to_y = (x[1:] for x in given)
    assert all(map(torch.equal, results(fused, (q, k, v, to_y), 70), (x[1:] for x in whole)))
    assert torch.equal(fused(q[:, :77], k[:, :77], v[:, :77], 70), whole[0][1:, :77])


@needs_compiler
@pytest.mark.parametrize("hd", [6, 40, 128])
def test_compiled_code_takes_heads_of_any_size(hd: int) -> None:
    given = inputs(90, heads=3, kv_heads=3, hd=hd)
    assert max(errors(results(fused, given, 30), results(exact, given, 30))) < 1e-2


@needs_compiler
def test_compiled_code_keeps_little_for_backward() -> None:
    kept: list[Tensor] = []
    q, k, v, _ = inputs(300)
    with torch.autograd.graph.saved_tensors_hooks(lambda x: kept.append(x) or x, lambda x: x):
        y = fused(q.requires_grad_(), k, v, None)
    assert sum(x.numel() for x in kept) == 4 * y.numel() + y.numel() // 64


@needs_compiler
def test_code_for_other_cpus_attends_alike(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the compiler makes of it for a CPU without instructions for bf16."""
    given = inputs(200)
    expected = results(exact, given, 50)
    plain = [option for option in native_code.OPTIONS if option != "-march=native"]
    monkeypatch.setattr(native_code, "OPTIONS", (*plain, "-Wno-psabi"))
    library = fused_attention.prepare.__wrapped__()
    monkeypatch.setattr(fused_attention, "prepare", lambda: library)
    assert max(errors(results(fused, given, 50), expected)) < 1e-2


@KERNELS
def test_a_model_trains_by_it(
    config: ModelConfig, make_model: Callable[[ModelConfig], Transformer], attend: Attend
) -> None:
    """Loss and gradients are those of PyTorch's kernel within rounding, with short windows too."""
    model = make_model(replace(config, window_pattern="SL"))
    model.compute_dtype = torch.bfloat16
    ids = torch.randint(config.vocab_size, (2, config.sequence_length), generator=torch.Generator().manual_seed(0))
    found = []
    for each in (sdpa, attend):
        model.attend = each
        model.zero_grad()
        model(ids, ids.roll(-1, 1)).backward()
        found.append([weight.grad.clone() for weight in model.parameters() if weight.grad is not None])
    assert max(errors(found[1], found[0])) < 3e-2


def test_rows_of_a_block_may_be_few(monkeypatch: pytest.MonkeyPatch) -> None:
    given = inputs(50)
    expected = results(exact, given, 20)
    monkeypatch.setattr(blocked_attention, "ROWS", 16)
    assert max(errors(results(blocked, given, 20), expected)) < 1e-2
