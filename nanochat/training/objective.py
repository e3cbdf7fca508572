"""A stage's objective: for each step this rank's part of the global batch, as summed and weighted tokens.

An objective is a pure function of the data step: `objective.local_batch(17)` is the same whenever, and on however many
processes, it is asked for, so that a resumed run needs nothing but the number. The loss of a step is

    sum over all ranks and tokens of factor * cross-entropy  /  sum over all ranks of weight

which is the mean over supervised tokens where every factor is 1, and REINFORCE where the factors are advantages.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, Protocol

import numpy as np
import torch
from torch import Tensor

from nanochat.model.loss import IGNORED
from nanochat.runtime.distributed import World


@dataclass(frozen=True, slots=True)
class MicroBatch:
    """The input of one forward pass."""

    inputs: Tensor  # (R, T) int64
    targets: Tensor  # (R, T) int64, IGNORED where there is no loss
    factors: Tensor | None = None  # (R, T) float32: what the loss of each token is multiplied by; None is 1

    @property
    def tensors(self) -> list[Tensor]:
        """All that it is made of."""
        return [self.inputs, self.targets, *([] if self.factors is None else [self.factors])]

    def to(self, device: torch.device) -> MicroBatch:
        """The same on a device; the copy to a GPU is only begun, in the current stream."""
        return MicroBatch(*(send(tensor, device) for tensor in self.tensors))


@dataclass(frozen=True, slots=True)
class LocalBatch:
    """One rank's part of a step. `counts` are summed over ranks and steps, in the order of `Objective.counts`."""

    batches: Sequence[MicroBatch] = ()
    weight: float = 0.0  # what the summed loss is divided by, once summed over ranks
    tokens: int = 0  # tokens that go through the model, for rates
    counts: tuple[float, ...] = ()

    def to(self, device: torch.device) -> LocalBatch:
        """The same with its micro-batches on a device; see `MicroBatch.to`."""
        return replace(self, batches=tuple(batch.to(device) for batch in self.batches))


def send(tensor: Tensor, device: torch.device) -> Tensor:
    """The tensor on a device; from pinned memory, so that whoever sends it to a GPU need not wait for it."""
    if device.type == "cuda" and not tensor.is_cuda:
        return tensor.pin_memory().to(device, non_blocking=True)
    return tensor.to(device)


class Objective(Protocol):
    """A stage's data and loss."""

    learns_from: ClassVar[str]  # a step without it changes no weight
    is_likelihood: ClassVar[bool]  # whether its loss is that of predicting a text
    reads_ahead: ClassVar[bool]  # whether its data is the same whatever the weights: made while the step before trains

    @property
    def counts(self) -> tuple[str, ...]:
        """Names of what is counted."""
        ...

    def local_batch(self, step: int) -> LocalBatch:
        """This rank's part of a data step."""
        ...

    def metrics(self, counts: Mapping[str, float]) -> dict[str, float]:
        """Metrics for the journal from one step's counts, which are summed over ranks."""
        ...

    def text(self, step: int, local_batch: Callable[[int], LocalBatch]) -> MicroBatch | None:
        """This rank's part of a step's text, by which the model is judged before that step; `local_batch` gives all
        of the step, as the method does."""
        ...

    def figure(self, loss: float | None, counts: Mapping[str, float]) -> float | None:
        """The number of one step that training is to move: see `nanochat.training.guards.Trend`."""
        ...


def micro_loss(forward: Callable[..., Tensor], batch: MicroBatch) -> Tensor:
    """The batch's summed loss, () float32."""
    return forward(batch.inputs, batch.targets, batch.factors, reduction="sum")


class Loader(Protocol):
    """A pure function of the step: the global batch, of which any rows may be asked for."""

    rows: int

    def batch(self, step: int, rows: slice | None = None) -> tuple[np.ndarray, np.ndarray]:
        """Inputs and targets, (R, T) int64 each."""
        ...


@dataclass(frozen=True, slots=True)
class Supervised:
    """Next-token prediction on a loader's batches: base, mid and sft."""

    loader: Loader
    world: World
    device_rows: int  # most rows of one forward pass
    counts: tuple[str, ...] = ()
    learns_from: ClassVar[str] = "a token to train on"
    is_likelihood: ClassVar[bool] = True
    reads_ahead: ClassVar[bool] = True

    def metrics(self, counts: Mapping[str, float]) -> dict[str, float]:
        """Nothing is counted."""
        return {}

    def text(self, step: int, local_batch: Callable[[int], LocalBatch]) -> MicroBatch | None:
        """The step's first micro-batch."""
        return next(iter(local_batch(step).batches), None)

    def figure(self, loss: float | None, counts: Mapping[str, float]) -> float | None:
        """The loss."""
        return loss

    def local_batch(self, step: int) -> LocalBatch:
        """This rank's rows of the step, in micro-batches."""
        inputs, targets = self.loader.batch(step, rows=self.world.part(self.loader.rows))
        return LocalBatch(
            batches=tuple(
                MicroBatch(
                    torch.from_numpy(inputs[i : i + self.device_rows]),
                    torch.from_numpy(targets[i : i + self.device_rows]),
                )
                for i in range(0, len(inputs), self.device_rows)
            ),
            weight=float((targets != IGNORED).sum()),
            tokens=int(targets.size),
        )
