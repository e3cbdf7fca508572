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

import torch
from torch import Tensor

from nanochat.model.loss import Tile, cross_entropy_
from nanochat.model.transformer import Reduction, Transformer
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
    """The model's loss, compiled where asked; falls back to the plain one, and says so, if that fails.

    What is compiled is the model up to its last layer; of the loss on a GPU what works on each logit, which is as many
    kernels otherwise. On a CPU that is faster as it is (see `nanochat.model.loss`).
    """

    def __init__(self, model: Transformer, *, compiled: bool) -> None:
        self.model = model
        if compiled and torch.are_deterministic_algorithms_enabled():
            torch.use_deterministic_algorithms(True)  # tells the compiler, too
        self.hidden: Callable[[Tensor], Tensor] = (
            torch.compile(model.hidden, dynamic=False) if compiled else model.hidden
        )
        self.tile: Tile = torch.compile(cross_entropy_) if compiled and model.device.type == "cuda" else cross_entropy_
        self.proven = not compiled  # whether a compiled pass has worked once

    def __call__(
        self, ids: Tensor, targets: Tensor, factors: Tensor | None = None, *, reduction: Reduction = "sum"
    ) -> Tensor:
        """ids, targets and factors (B, T) -> `Transformer.loss`."""
        if self.proven:
            return self._loss(ids, targets, factors, reduction)
        try:
            result = self._loss(ids, targets, factors, reduction)
        except Exception as error:
            if is_out_of_memory(error):
                raise
            reason = str(error).strip().splitlines()
            log.warning("torch.compile does not work here, so training is slower: %s", reason[0] if reason else error)
            self.hidden, self.tile = self.model.hidden, cross_entropy_
            result = self._loss(ids, targets, factors, reduction)
        self.proven = True
        return result

    def _loss(self, ids: Tensor, targets: Tensor, factors: Tensor | None, reduction: Reduction) -> Tensor:
        return self.model.loss(self.hidden(ids), targets, factors, reduction=reduction, tile=self.tile)
