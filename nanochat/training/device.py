"""The device that this process trains on, the number format of its computation, and torch.compile.

All three are chosen by capability, never by a stopwatch: a resumed run must choose again what it chose before, or
its weights would not be equal bit for bit.

Measured with a model of 4 layers of 192 and a context of 256 on two cores with avx512_bf16, forward and backward, in
thousands of tokens a second: fp32 9.8 and compiled 12.0; bf16 20.7 and compiled 23.0, after 16 to 25 s of compiling.
So bf16 is worth twice as much and compiling a tenth, which pays after some minutes.
"""

from __future__ import annotations

import logging
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import nn

from nanochat.model.precision import compute_dtype_for

log = logging.getLogger(__name__)

# Dense bf16 FLOPs a second, from the makers' data sheets; the first name that is part of the device's own counts.
PEAK_FLOPS = (
    ("B200", 2250e12),
    ("GH200", 989e12),
    ("H200", 989e12),
    ("H100 PCIe", 756e12),
    ("H100", 989e12),
    ("A100", 312e12),
    ("L40S", 362e12),
    ("L4", 121e12),
    ("RTX 4090", 165e12),
    ("RTX 3090", 71e12),
)

PRECISIONS = {"bf16": torch.bfloat16, "fp32": torch.float32}
LOCAL_VARIABLES = (("LOCAL_RANK", "0"), ("LOCAL_WORLD_SIZE", "1"))

# A tenth of the time of 1e14 FLOPs (five minutes on two cores) is what compiling for a CPU costs.
CPU_COMPILE_FLOPS = 1e14


@dataclass(frozen=True, slots=True)
class Device:
    """Where and in what format this process computes. `peak` is in FLOPs a second, None where it is not known."""

    device: torch.device
    compute_dtype: torch.dtype
    peak: float | None = None


def choose_device(precision: Literal["auto", "bf16", "fp32"] = "auto") -> Device:
    """CUDA where every local rank has a GPU of its own, else Apple's GPU where there is one, else the CPU."""
    local_rank, local_size = (int(os.environ.get(name, default)) for name, default in LOCAL_VARIABLES)
    if torch.cuda.is_available() and torch.cuda.device_count() >= local_size:
        device = torch.device("cuda", local_rank)
        torch.cuda.set_device(device)
        torch.set_float32_matmul_precision("high")
    elif torch.backends.mps.is_available() and local_size == 1:
        device = torch.device("mps")
    else:
        device = torch.device("cpu")
        # Compiled kernels would add up the embedding's gradient atomically, in the order in which threads come: a
        # resumed run has to end with the same bits. (`use_deterministic_algorithms` would import the compiler.)
        torch.set_deterministic_debug_mode("error")
        torch.utils.deterministic.fill_uninitialized_memory = False  # pyright: ignore[reportAttributeAccessIssue]
    dtype = compute_dtype_for(device) if precision == "auto" else PRECISIONS[precision]
    return Device(device, dtype, peak_flops(device) if dtype == torch.bfloat16 else None)


def peak_flops(device: torch.device) -> float | None:
    """The device's dense bf16 peak in FLOPs a second, where it is known."""
    if device.type != "cuda":
        return None
    name = torch.cuda.get_device_name(device)
    return next((peak for part, peak in PEAK_FLOPS if part in name), None)


def compile_pays(device: torch.device, flops: float) -> bool:
    """Whether compiling is worth its time for training of `flops` in all, on every process together."""
    if device.type == "cuda":
        return True
    compiler = os.environ.get("CXX") or shutil.which("g++") or shutil.which("clang++")
    return device.type == "cpu" and compiler is not None and flops >= CPU_COMPILE_FLOPS


class Forward:
    """The model's forward pass, compiled where asked; falls back to the plain one, and says so, if that fails."""

    def __init__(self, model: nn.Module, *, compiled: bool) -> None:
        self.model = model
        if compiled and torch.are_deterministic_algorithms_enabled():
            torch.use_deterministic_algorithms(True)  # tells the compiler, too
        self.call: Callable[..., Any] = torch.compile(model, dynamic=False) if compiled else model
        self.proven = not compiled  # whether `call` has worked once

    def __call__(self, *args: Any, **options: Any) -> torch.Tensor:
        if self.proven:
            return self.call(*args, **options)
        try:
            result = self.call(*args, **options)
        except torch.OutOfMemoryError:
            raise
        except Exception as error:
            reason = str(error).strip().splitlines()
            log.warning("torch.compile does not work here, so training is slower: %s", reason[0] if reason else error)
            self.call = self.model
            result = self.model(*args, **options)
        self.proven = True
        return result
