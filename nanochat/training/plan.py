"""The plan of a training loop: its steps and rates, what is measured, and how often the state is saved."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Rates:
    """The schedule's values for one step."""

    lr_scale: float  # what every group's learning rate is multiplied by
    momentum: float = 0.95  # Muon's
    decay_scale: float = 1.0  # what the matrices' decay is multiplied by


@dataclass(frozen=True, slots=True)
class Measurement:
    """Something to measure every few steps, and after the last unless an evaluation follows that measures it anyway.

    All ranks call it and get the same values.
    """

    every: int  # steps; 0 is never
    call: Callable[[int], Mapping[str, float]]
    after_last: bool = True
    doing: str = "measuring"  # what people read while it is called

    def due(self, step: int, last: int) -> bool:
        """Whether it is due after `step` steps of `last`."""
        return self.every > 0 and (self.after_last if step == last else step % self.every == 0)


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainerPlan:
    """The training that a stage asks for."""

    steps: int
    schedule: Callable[[int], Rates]  # of the step that is about to be made, from 0
    learning_rate: float = 1.0  # of the matrices, for people: the schedule's factor is on it
    clip: float | None = None  # largest global gradient norm
    flops_per_token: float = 0.0
    checkpoint_steps: int | None = None
    checkpoint_seconds: float | None = None
    log_every: int = 1  # steps
    skip_steps: int = 50  # steps of data that are skipped when training diverges
    deterministic: bool = False  # on a GPU; a CPU always is
    measurements: tuple[Measurement, ...] = ()
