"""The state of a training loop: all that a checkpoint says of it in `loop.json`, but for the guard's part."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any


@dataclass(slots=True)
class TrainerState:
    """Where training stands; all of it is in a checkpoint."""

    step: int = 0  # steps made, whose numbers were read
    measured: int = 0  # steps after which all was measured that was due by then
    skipped: list[tuple[int, int]] = field(default_factory=list)  # data steps that were left out: from, to (not incl.)
    empty: int = 0  # steps without supervised tokens
    tokens: int = 0  # that went through the model
    weight: float = 0.0  # of which were trained on
    seconds: float = 0.0  # of training, without the warm-up of each launch, measurements and checkpoints
    loss: float | None = None  # the last step's
    smooth_loss: float | None = None
    counts: dict[str, float] = field(default_factory=dict)  # what the objective counted
    metrics: dict[str, float] = field(default_factory=dict)  # the newest measurements

    def data_step(self, step: int) -> int:
        """The data of a step: the step's number, moved on by the ranges that were skipped before it."""
        for first, end in sorted(self.skipped):
            if step >= first:
                step += end - first
        return step

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> TrainerState:
        """From a checkpoint's JSON."""
        values = {"measured": values["step"], **values}  # a version before saved nothing that was not measured
        state = cls(**{item.name: values[item.name] for item in fields(cls)})
        state.skipped = [(first, end) for first, end in state.skipped]
        return state
