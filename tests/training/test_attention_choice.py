"""Which kernel attends in training."""

from __future__ import annotations

from copy import deepcopy
from dataclasses import replace

import pytest
import torch

from nanochat.model import fused_attention
from nanochat.model.attention import sdpa
from nanochat.model.blocked_attention import LONGEST, blocked
from nanochat.model.fused_attention import fused
from nanochat.model.fused_pointwise import FUSED
from nanochat.model.transformer import Transformer
from nanochat.runtime import native_code
from nanochat.runtime.compiler import cxx_compiler
from nanochat.runtime.device import Device
from nanochat.runtime.distributed import World
from nanochat.training.attention import choose_attention
from tests.training.rig import CONFIG


def device(kind: str, dtype: torch.dtype) -> Device:
    return Device(torch.device(kind), dtype)


NO_COMPILER = "there is no C++ compiler; install g++"


@pytest.fixture(autouse=True)
def bf16(monkeypatch: pytest.MonkeyPatch) -> None:
    """A CPU that multiplies it."""
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: True)


@pytest.fixture
def no_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    fused_attention.prepare.cache_clear()
    monkeypatch.setattr(native_code, "cxx_compiler", lambda: None)


@pytest.mark.skipif(cxx_compiler() is None, reason=NO_COMPILER)
@pytest.mark.parametrize("length", [16, LONGEST + 1])
def test_where_there_is_a_compiler_its_code_attends(length: int) -> None:
    choice = choose_attention(device("cpu", torch.bfloat16), replace(CONFIG, sequence_length=length))
    assert choice.attend is fused and choice.reason == "attention by compiled code"
    model = Transformer(CONFIG)
    choice.use_in(model)
    assert model.attend is fused and model.pointwise is FUSED and deepcopy(model).pointwise == FUSED


def test_all_processes_attend_alike(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fused_attention, "prepare", lambda: None)
    monkeypatch.setattr(World, "sum", lambda world, *values: [value + 1 for value in values])
    choice = choose_attention(device("cpu", torch.bfloat16), CONFIG)
    assert choice.attend is blocked
    assert choice.reason == "attention by blocks of rows: another process has no compiled code"


@pytest.mark.usefixtures("no_compiler")
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


@pytest.mark.usefixtures("no_compiler")
def test_a_pytorch_without_such_products_attends_by_its_own_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(type(torch.backends.mkldnn), "matmul")
    choice = choose_attention(device("cpu", torch.bfloat16), CONFIG)
    assert choice.attend is sdpa and choice.reason == f"attention by PyTorch's kernels: {NO_COMPILER}"


def test_a_cpu_without_bf16_takes_no_such_code(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False)
    choice = choose_attention(device("cpu", torch.bfloat16), CONFIG)
    assert choice.attend is blocked
    assert choice.reason == "attention by blocks of rows: this CPU has no instructions for bf16"
