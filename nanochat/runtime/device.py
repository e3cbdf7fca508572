"""The device that this process computes on, and the number format. Master weights are fp32 in any case.

Both are chosen by capability, never by a stopwatch: a resumed run must choose again what it chose before, or its
weights would not be equal bit for bit.

    with deterministic(device.device, wanted=True):
        loss.backward()
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal

import psutil
import torch

from nanochat.runtime.accelerators import find_accelerator
from nanochat.spec.environment import integer

PRECISIONS = {"bf16": torch.bfloat16, "fp32": torch.float32}
LOCAL_VARIABLES = (("LOCAL_RANK", 0), ("LOCAL_WORLD_SIZE", 1))


@dataclass(frozen=True, slots=True)
class Device:
    """Where and in what format this process computes. `peak` is in FLOPs a second, None where it is not known."""

    device: torch.device
    compute_dtype: torch.dtype
    peak: float | None = None


def choose_device(precision: Literal["auto", "bf16", "fp32"] = "auto") -> Device:
    """CUDA where every local rank has a GPU of its own, else Apple's GPU where there is one, else the CPU."""
    local_rank, local_size = (integer(name, default) for name, default in LOCAL_VARIABLES)
    if torch.cuda.is_available() and torch.cuda.device_count() >= local_size:
        device = torch.device("cuda", local_rank)
        torch.cuda.set_device(device)
        torch.set_float32_matmul_precision("high")
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # cuBLAS's condition for equal bits
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


@contextmanager
def deterministic(device: torch.device, *, wanted: bool) -> Iterator[None]:
    """Inside, a GPU computes gradients with the same bits each time, if that is wanted; a CPU always does."""
    wanted = wanted and device.type == "cuda"
    if wanted:
        torch.use_deterministic_algorithms(True)
    try:
        yield
    finally:
        if wanted:
            torch.use_deterministic_algorithms(False)


def compute_dtype_for(device: torch.device | str) -> torch.dtype:
    """bf16 where the device multiplies it in hardware, fp32 elsewhere.

    An emulated bf16 is slower than fp32, so a CPU has to have AVX512-BF16 or AMX.
    """
    kind = torch.device(device).type
    if kind == "cuda":
        native = torch.cuda.is_bf16_supported(including_emulation=False)
    elif kind == "cpu":
        native = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    else:
        native = False
    return torch.bfloat16 if native else torch.float32


def has_fp8(device: torch.device) -> bool:
    """Whether the device multiplies FP8 matrices in hardware."""
    return device.type == "cuda" and torch.cuda.get_device_capability(device) >= (8, 9)


def used_memory(device: torch.device) -> int:
    """Bytes that this process has in use: on a GPU the most that its tensors have come to, else of the host's."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    if device.type == "mps":
        return torch.mps.driver_allocated_memory()
    return psutil.Process().memory_info().rss


def peak_flops(device: torch.device) -> float | None:
    """The device's dense bf16 peak in FLOPs a second, where it is known."""
    if device.type != "cuda":
        return None
    found = find_accelerator(torch.cuda.get_device_name(device))
    return found.peak if found else None
