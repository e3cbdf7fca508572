"""The model's loss by a forward pass that is compiled where `nanochat.training.compiling` says so."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable
from functools import partial

import torch
import torch._functorch.config as functorch
from torch import Tensor

from nanochat.model.loss import Tile, cross_entropy_
from nanochat.model.pointwise import PLAIN
from nanochat.model.transformer import Reduction, Transformer
from nanochat.optim import LAST, ShardedOptimizer
from nanochat.runtime.memory import is_out_of_memory

log = logging.getLogger(__name__)


class Forward:
    """The model's loss, compiled where asked; falls back to the plain one, and says so, if that fails.

    What is compiled is the model up to its last layer, and of the loss what works on each logit. Where several
    processes train, each layer is compiled for itself: it begins when its weights are there, and backward ends with its
    gradients.
    """

    def __init__(
        self,
        model: Transformer,
        *,
        compiled: bool,
        tuned: bool = False,
        optimizer: ShardedOptimizer | None = None,
        done: Callable[[], None] | None = None,
    ) -> None:
        """With the `optimizer` weights may be read that it has under way; `tuned` tries kernels before it takes one.
        `done` is called once all is compiled, backward too: when a second pass begins."""
        self.model, self.done = model, done if compiled else None
        self.tuned = tuned
        self.optimizer = optimizer
        if compiled and torch.are_deterministic_algorithms_enabled():
            torch.use_deterministic_algorithms(True)  # tells the compiler, too
        self.hidden = self._hidden(compiled=compiled)
        self.tile: Tile = torch.compile(cross_entropy_) if compiled else cross_entropy_
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
            # Backward is compiled here too, not when it begins: what fails is met here.
            with warnings.catch_warnings(), functorch.patch(force_non_lazy_backward_lowering=True):
                warnings.filterwarnings("ignore", "The .grad attribute")  # the compiler looks at each layer's input
                result = self._loss(ids, targets, factors, reduction)
        except Exception as error:
            if is_out_of_memory(error):
                raise
            what = "max-autotune" if self.tuned else "torch.compile"
            log.warning("%s does not work here, so training is slower: %s", what, reason_of(error))
            if self.tuned:
                self.tuned = False
                self.hidden = self._hidden(compiled=True)
                return self(ids, targets, factors, reduction=reduction)
            self.hidden, self.tile, self.done = self._hidden(compiled=False), cross_entropy_, None
            result = self._loss(ids, targets, factors, reduction)
        self.proven = True
        return result

    def _loss(self, ids: Tensor, targets: Tensor, factors: Tensor | None, reduction: Reduction) -> Tensor:
        hidden = self.hidden(ids)
        self._wait()
        return self.model.loss(hidden, targets, factors, reduction=reduction, tile=self.tile)

    def _hidden(self, *, compiled: bool) -> Callable[[Tensor], Tensor]:
        """`Transformer.hidden`, which waits for each layer's weights where they may be under way."""
        mode = "max-autotune-no-cudagraphs" if self.tuned else None
        compile = partial(torch.compile, dynamic=False, mode=mode)
        # What the compiler takes it fuses itself.
        pointwise = PLAIN if compiled else None
        if self.optimizer is None or self.optimizer.world.size == 1:

            def whole(ids: Tensor) -> Tensor:
                return self.model.hidden(ids, pointwise=pointwise)

            return compile(whole) if compiled else whole
        blocks = [
            partial(self._block, layer, compile(block) if compiled else block)
            for layer, block in enumerate(self.model.blocks, 1)
        ]

        def hidden(ids: Tensor) -> Tensor:
            self._wait(0)
            return self.model.hidden(ids, blocks, pointwise)

        return hidden

    def _block(self, layer: int, block: Callable[..., Tensor], *inputs: object) -> Tensor:
        self._wait(layer)
        return block(*inputs)

    def _wait(self, layer: int = LAST) -> None:
        if self.optimizer is not None:
            self.optimizer.wait(layer)


def reason_of(error: Exception) -> str:
    """An error's first line, with the next one where it only introduces that, as the compiler's do."""
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return " ".join(lines[: 1 + lines[0].endswith(":")])
