"""The model's forward pass and torch.compile.

Whether to compile is decided by capability and size, never by a stopwatch, just as the device is chosen.

Measured with a model of 4 layers of 192 and a context of 256 on two cores with avx512_bf16, forward and backward, in
thousands of tokens a second: fp32 9.8 and compiled 12.0; bf16 20.7 and compiled 23.0, after 16 to 25 s of compiling.
So bf16 is worth twice as much and compiling a tenth, which pays after some minutes.
"""

from __future__ import annotations

import logging
import os
import shutil
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from nanochat.runtime.memory import is_out_of_memory

log = logging.getLogger(__name__)

# A tenth of the time of 1e14 FLOPs (five minutes on two cores) is what compiling for a CPU costs.
CPU_COMPILE_FLOPS = 1e14


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
        except Exception as error:
            if is_out_of_memory(error):
                raise
            reason = str(error).strip().splitlines()
            log.warning("torch.compile does not work here, so training is slower: %s", reason[0] if reason else error)
            self.call = self.model
            result = self.model(*args, **options)
        self.proven = True
        return result
