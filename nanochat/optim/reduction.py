"""Gradients are reduced while backward makes them: each shard's when its last gradient has come.

reduction = Reduction(shards, early=True)   # in the order in which backward is expected to end with them
reduction.begin_in_backward()            # before the last of a step's backward passes
loss.backward()
reduction.begin()                        # what backward has not begun: all of it where a process had no batch
reduction.finish()                       # now each shard has its gradient

Processes may have different batches, or none, and yet have to begin in one order: a shard that is ready waits for those
before it.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from torch import Tensor

from nanochat.optim.shard import Shard


class Reduction:
    """The reductions of one step."""

    def __init__(self, shards: Sequence[Shard], *, early: bool) -> None:
        """Without `early` backward begins none."""
        self.shards = shards
        self._begun = 0  # shards, from the first on
        self._awaited: list[int] | None = None  # gradients that each still lacks, while a backward pass may begin it
        for index, shard in enumerate(shards if early else ()):
            for parameter in shard.parameters:
                parameter.register_post_accumulate_grad_hook(partial(self._came, index))

    def begin_in_backward(self) -> None:
        """From here on gradients that come are whole."""
        self._awaited = [len(shard.parameters) for shard in self.shards]

    def begin(self) -> None:
        """Begin what backward has not: gradients that have not come count as zero."""
        self._awaited = None
        for shard in self.shards[self._begun :]:
            shard.start_reduce()
        self._begun = len(self.shards)

    def finish(self) -> None:
        """Return when all are done that have begun."""
        for shard in self.shards[: self._begun]:
            shard.finish_reduce()
        self._begun = 0

    def _came(self, index: int, _: Tensor) -> None:
        if self._awaited is None:
            return
        self._awaited[index] -= 1
        while self._begun < len(self.shards) and not self._awaited[self._begun]:
            self._begun += 1
            self.shards[self._begun - 1].start_reduce()
