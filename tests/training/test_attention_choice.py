"""Which kernel attends in training."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from nanochat.model.attention import sdpa
from nanochat.model.blocked_attention import LONGEST, blocked
from nanochat.runtime.device import Device
from nanochat.training.attention import choose_attention
from tests.training.rig import CONFIG


def device(kind: str, dtype: torch.dtype) -> Device:
    return Device(torch.device(kind), dtype)


@pytest.mark.parametrize(
    ("kind", "dtype", "length", "chosen"),
    [
        ("cpu", torch.bfloat16, 16, blocked),
        ("cpu", torch.bfloat16, LONGEST, blocked),
        ("cpu", torch.bfloat16, LONGEST + 1, sdpa),
        ("cpu", torch.float32, 16, sdpa),
        ("mps", torch.bfloat16, 16, sdpa),
    ],
)
def test_what_the_device_has_decides(kind: str, dtype: torch.dtype, length: int, chosen: object) -> None:
    assert choose_attention(device(kind, dtype), replace(CONFIG, sequence_length=length)).attend is chosen


def test_a_pytorch_without_such_products_attends_by_its_own_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(type(torch.backends.mkldnn), "matmul")
    choice = choose_attention(device("cpu", torch.bfloat16), CONFIG)
    assert choice.attend is sdpa and choice.reason == "attention by PyTorch's kernels"
