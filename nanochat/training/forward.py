"""The model's loss by a forward pass that is compiled where `nanochat.training.compiling` says so."""

from __future__ import annotations

import logging
from collections.abc import Callable

import torch
from torch import Tensor

from nanochat.model.loss import Tile, cross_entropy_
from nanochat.model.transformer import Reduction, Transformer
from nanochat.runtime.memory import is_out_of_memory

log = logging.getLogger(__name__)


class Forward:
    """The model's loss, compiled where asked; falls back to the plain one, and says so, if that fails.

    What is compiled is the model up to its last layer; of the loss on a GPU what works on each logit, which is as many
    kernels otherwise. On a CPU that is faster as it is (see `nanochat.model.loss`).
    """

    def __init__(self, model: Transformer, *, compiled: bool, done: Callable[[], None] | None = None) -> None:
        """`done` is called once all is compiled, backward too: when a second pass begins."""
        self.model, self.done = model, done if compiled else None
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
            if self.done is not None:
                self.done()
                self.done = None
            return self._loss(ids, targets, factors, reduction)
        try:
            result = self._loss(ids, targets, factors, reduction)
        except Exception as error:
            if is_out_of_memory(error):
                raise
            reason = str(error).strip().splitlines()
            log.warning("torch.compile does not work here, so training is slower: %s", reason[0] if reason else error)
            self.hidden, self.tile, self.done = self.model.hidden, cross_entropy_, None
            result = self._loss(ids, targets, factors, reduction)
        self.proven = True
        return result

    def _loss(self, ids: Tensor, targets: Tensor, factors: Tensor | None, reduction: Reduction) -> Tensor:
        return self.model.loss(self.hidden(ids), targets, factors, reduction=reduction, tile=self.tile)
