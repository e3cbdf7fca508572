"""Lines of a training's log, for people: a launch's first steps, one every half a minute, the last step, measurements.

    lines = StepLog(plan, device, processes=world.size)
    lines.add(tokens, seconds)          # of each step that counts for rates
    lines.step(state, metrics, left)    # a line, where one is due
    lines.measured(step, values)        # always a line

What they tell is on the host already: a GPU is not waited for.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping

from nanochat.runtime.device import Device, used_memory
from nanochat.tracking.quantities import duration, number, size
from nanochat.training.plan import TrainerPlan
from nanochat.training.state import TrainerState

log = logging.getLogger(__name__)

FIRST = 3  # steps of a launch that have a line each
SECONDS = 30.0  # between two lines after these

_NAMES = {"val/loss": "validation loss", "val/core": "CORE"}  # where the last part of a name says too little


class StepLog:
    """Decides which steps have a line, and writes it; rank 0's."""

    def __init__(
        self, plan: TrainerPlan, device: Device, *, processes: int, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._plan, self._device, self._processes, self._clock = plan, device, processes, clock
        self._tokens, self._seconds = 0, 0.0  # since the last line
        self._said, self._at = 0, 0.0

    def add(self, tokens: int, seconds: float) -> None:
        """Take in a step: the tokens of all processes, and how long it took."""
        self._tokens += tokens
        self._seconds += seconds

    def step(self, state: TrainerState, metrics: Mapping[str, float], left: float | None) -> None:
        """Write a line on the step just made, where one is due; `left` is the time to the end in seconds."""
        last, now = self._plan.steps, self._clock()
        if self._said >= FIRST and now - self._at < SECONDS and state.step < last:
            return
        parts = [] if state.smooth_loss is None else [f"loss {state.smooth_loss:.4f}"]
        parts += _shown(metrics)
        parts.append(f"learning rate {self._plan.learning_rate * self._plan.schedule(state.step - 1).lr_scale:.3g}")
        parts += self._rates()
        parts.append(f"{size(used_memory(self._device.device))} of memory")
        if left is not None and state.step < last:
            parts.append(f"{duration(left)} left")
        log.info("%s: %s", self._place(state.step), ", ".join(parts))
        self._tokens, self._seconds = 0, 0.0
        self._said, self._at = self._said + 1, now

    def measured(self, step: int, values: Mapping[str, float]) -> None:
        """Write a line on what was measured after a step."""
        log.info("%s: %s", self._place(step), ", ".join(_shown(values)))

    def _place(self, step: int) -> str:
        return f"step {step:,} of {self._plan.steps:,}"

    def _rates(self) -> list[str]:
        """Tokens and FLOPs a second since the last line: a share of the devices' peak, where that is known."""
        if not self._seconds > 0:
            return []
        rate = self._tokens / self._seconds
        flops = self._plan.flops_per_token * rate
        parts = [f"{rate:,.0f} tokens/s"]
        if self._device.peak:
            parts.append(f"MFU {100 * flops / (self._device.peak * self._processes):.1f} %")
        elif flops:
            parts.append(f"{number(flops / 1e9)} GFLOP/s")
        return parts


def _shown(metrics: Mapping[str, float]) -> list[str]:
    """Metrics by the last part of their names, in words: val/bpb is 'bpb', val/pass_at_1 'pass@1'."""
    return [f"{_NAMES.get(name) or _words(name)} {number(value)}" for name, value in metrics.items()]


def _words(name: str) -> str:
    return name.rpartition("/")[2].replace("pass_at_", "pass@").replace("_", " ")
