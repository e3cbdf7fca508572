"""Kernels of training on a GPU: attention that is fetched, and the loss by chunks."""

from __future__ import annotations

from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from nanochat.model.attention import sdpa
from nanochat.model.loss import SOFTCAP, cross_entropy_, head_loss
from nanochat.model.transformer import Transformer
from nanochat.runtime.device import Device
from nanochat.storage.cache import Cache
from nanochat.training.attention import choose_attention
from nanochat.training.forward import Forward
from tests.training.rig import CONFIG

pytestmark = pytest.mark.gpu
BF16 = Device(torch.device("cuda"), torch.bfloat16)


@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize("pattern", ["L", "SL"])
def test_fetched_attention_trains_as_pytorchs(tmp_path: Path, compiled: bool, pattern: str) -> None:
    if torch.cuda.get_device_capability()[0] != 9 or find_spec("kernels") is None:
        pytest.skip("no Hopper GPU, or the package kernels is not installed")
    config = replace(CONFIG, width=256, sequence_length=256, window_pattern=pattern)
    choice = choose_attention(BF16, config, cache=Cache(tmp_path, 10**10))
    if choice.attend is sdpa:
        pytest.skip(choice.reason)
    with torch.device("cuda"):
        model = Transformer(config)
    model.init_weights(0)
    torch.nn.init.normal_(model.head.weight, std=0.05)
    for block in model.blocks:
        torch.nn.init.normal_(block.attention.project.weight, std=0.05)  # type: ignore[union-attr, arg-type]
    model.compute_dtype = torch.bfloat16
    ids = torch.randint(config.vocab_size, (4, 256), device="cuda")
    found = []
    for attend in (sdpa, choice.attend):
        model.attend = attend
        model.zero_grad()
        loss = Forward(model, compiled=compiled)(ids, ids.roll(-1, 1), reduction="mean")
        loss.backward()
        found.append(
            (float(loss.detach()), torch.cat([w.grad.flatten() for w in model.parameters() if w.grad is not None]))
        )
    (expected_loss, expected), (loss, gradient) = found
    assert loss == pytest.approx(expected_loss, rel=1e-2)
    assert float((gradient - expected).norm()) < 0.05 * float(expected.norm())


@pytest.mark.parametrize("compiled", [False, True])
def test_the_loss_by_chunks_is_the_plain_one_and_its_memory_does_not_grow_with_rows(compiled: bool) -> None:
    tile = torch.compile(cross_entropy_) if compiled else cross_entropy_
    weight = torch.randn(65_536, 128, device="cuda").mul_(0.2).requires_grad_()

    def peak(rows: int) -> int:
        """Bytes beyond what goes in and the gradients of it, and a comparison with the plain loss."""
        hidden = torch.randn(rows, 128, device="cuda").bfloat16().requires_grad_()
        targets = torch.randint(-1, 65_536, (rows,), device="cuda")
        head_loss(hidden, weight, targets, tile=tile)[0].backward()
        weight.grad = hidden.grad = None
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        total, _ = head_loss(hidden, weight, targets, tile=tile)
        total.backward()
        found = torch.cuda.max_memory_allocated() - before
        if rows <= 4096:
            given = (hidden.detach().requires_grad_(), weight.detach().requires_grad_())
            logits = SOFTCAP * torch.tanh((given[0] @ given[1].bfloat16().t()).float() / SOFTCAP)
            expected = F.cross_entropy(logits, targets, ignore_index=-1, reduction="sum")
            expected.backward()
            assert float(total.detach()) == pytest.approx(float(expected.detach()), rel=1e-3)
            for own, other in zip((hidden, weight), given, strict=True):
                assert own.grad is not None and other.grad is not None
                assert float((own.grad.float() - other.grad.float()).norm()) < 0.02 * float(other.grad.float().norm())
        weight.grad = None
        return found

    least, most = peak(4096), peak(32_768)
    assert most - least < 28_672 * 128 * 2 * 4 + 2**20  # four rows of the width for each row more
