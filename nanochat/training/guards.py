"""The guard: tells a run that has diverged from one that has a bad batch.

A loss or gradient norm that is not finite is divergence at once. A finite loss is suspect while it lies above the
recent median by more than `margin` nats and more than six median deviations, and divergence when that has lasted
`patience` steps in a row. While a loss is suspect the loop saves no checkpoint, so that the newest one is always
from before the trouble began.
"""

from __future__ import annotations

import math
from collections import deque
from statistics import median

from nanochat.spec.errors import Diverged


class SpikeGuard:
    """Watches the losses of consecutive steps; `state` and `restore` carry it through a checkpoint."""

    def __init__(self, *, margin: float = 0.5, patience: int = 20, window: int = 100) -> None:
        self.margin = margin  # nats
        self.patience = patience  # steps
        self.calm: deque[float] = deque(maxlen=window)  # the last losses that were not suspect
        self.suspect = 0  # steps in a row

    def check_norm(self, step: int, norm: float) -> None:
        """Look at one step's gradient norm; raises Diverged."""
        if not math.isfinite(norm):
            raise Diverged(f"The gradient norm at step {step:,} is {norm}.")

    def check(self, step: int, loss: float) -> None:
        """Take in one step's loss; raises Diverged."""
        if not math.isfinite(loss):
            raise Diverged(f"The loss at step {step:,} is {loss}.")
        if loss <= self.threshold():
            self.calm.append(loss)
            self.suspect = 0
            return
        self.suspect += 1
        if self.suspect >= self.patience:
            usual = median(self.calm)
            raise Diverged(
                f"The loss has been above {self.threshold():.3f} for {self.suspect} steps, up to step {step:,}; "
                f"before it was {usual:.3f}."
            )

    def threshold(self) -> float:
        """The loss above which a step is suspect, in nats; infinite until half the window is known."""
        if len(self.calm) * 2 < (self.calm.maxlen or 0):
            return math.inf
        middle = median(self.calm)
        deviation = median(abs(loss - middle) for loss in self.calm)
        return middle + max(self.margin, 6 * deviation)

    def state(self) -> dict[str, list[float] | int]:
        """The guard's part of a checkpoint."""
        return {"calm": list(self.calm), "suspect": self.suspect}

    def restore(self, state: dict[str, list[float] | int]) -> None:
        """Go on from a checkpoint's state."""
        calm, suspect = state["calm"], state["suspect"]
        assert isinstance(calm, list) and isinstance(suspect, int)
        self.calm.clear()
        self.calm.extend(calm)
        self.suspect = suspect
