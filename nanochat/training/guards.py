"""The guard: tells a run that has diverged, or learns nothing, from one that has a bad batch.

A loss or gradient norm that is not finite is divergence at once. A finite loss is suspect while it lies above
`threshold`, the lower of two bounds:

- of its own past: the lowest that "the recent median and `margin` nats, or six median deviations" has come to, so that
  a loss that climbs slowly does not take its bound along. Above it for `patience` steps in a row is divergence;
- of what it is worth: what guessing every token alike costs, ln(vocabulary), or what the stage began with where that is
  more, and `SLACK`. Above it for `window` steps in a row is divergence, for a loss may overshoot when training begins.

A gradient norm that is the same number for `patience` steps tells of weights that no longer move. While a loss is
suspect the loop saves no checkpoint, so that the newest one is always from before the trouble began. At its end a run
must predict better than guessing; one whose figure did not move beyond its noise has a remark.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from statistics import fmean, median, variance
from typing import Any

from nanochat.spec.errors import Diverged

MARGIN = 0.5  # nats above its recent median that a loss may be
SLACK = 0.5  # nats above guessing, or above what the stage began with, that are no trouble yet
ROUNDING = 1e-3  # nats
NOTHING = 0.01  # of a figure: to have moved it by less is to have learned nothing
TREND_STEPS = 20  # at the beginning and at the end, whose means are compared
FEW = 5  # steps whose noise cannot be told


@dataclass(slots=True)
class Trend:
    """Whether the figure that training is to move (a loss down, a reward up) has moved since the first steps."""

    name: str = "loss"
    rises: bool = False
    advice: str = "other learning rates (matrixLr, embeddingLr, unembeddingLr, initLrFraction) or more steps may help"
    first: list[float] = field(default_factory=list)
    last: deque[float] = field(default_factory=lambda: deque(maxlen=TREND_STEPS))
    count: int = 0

    def add(self, value: float) -> None:
        """Take in one step's figure."""
        self.count += 1
        self.last.append(value)
        if len(self.first) < TREND_STEPS:
            self.first.append(value)

    def state(self) -> list[Any]:
        """The trend's part of a checkpoint."""
        return [list(self.first), list(self.last), self.count]

    def restore(self, state: Sequence[Any]) -> None:
        """Go on from a checkpoint's state, or from ()."""
        first, last, self.count = state or ((), (), 0)
        self.first = list(first)
        self.last.clear()
        self.last.extend(last)

    def remark(self) -> str:
        """A sentence about a figure that did not move beyond its noise; '' where it did, or where nobody can tell."""
        steps = min(TREND_STEPS, self.count // 2)
        if not steps:
            return ""
        first, last = self.first[:steps], list(self.last)[-steps:]
        begin, end = fmean(first), fmean(last)
        gain = end - begin if self.rises else begin - end
        chance = 2 * math.sqrt((variance(first) + variance(last)) / steps) if steps >= FEW else 0.0
        if gain > max(chance, NOTHING * abs(begin)) or (steps < FEW and abs(gain) > ROUNDING):
            return ""
        return (
            f"It has learned next to nothing: the mean {self.name} is {begin:.4g} in its first {steps} steps and "
            f"{end:.4g} in its last {steps}, where chance makes {chance:.2g} of difference; {self.advice}."
        )


class SpikeGuard:
    """Watches the losses of consecutive steps; `state` and `restore` carry it through a checkpoint."""

    def __init__(
        self,
        *,
        margin: float = MARGIN,
        patience: int = 20,
        window: int = 100,
        guessing: float = math.inf,
        trend: Trend | None = None,
    ) -> None:
        """`guessing` is the loss of a model that takes every token for equally likely, in nats. Where what is watched
        is not what is trained, as in rl, an infinite `margin` leaves the bounds of `guessing`."""
        self.margin = margin  # nats
        self.patience = patience  # steps
        self.guessing = guessing
        self.trend = trend or Trend()
        self.calm: deque[float] = deque(maxlen=window)  # the last losses that were not suspect
        self.recent: deque[float] = deque(maxlen=patience)  # the last losses
        self.suspect = 0  # steps in a row
        self.first: float | None = None  # the loss that training began with
        self.lowest = math.inf  # bound that the past has come to
        self.norm = math.nan  # the last gradient norm,
        self.same = 0  # and for how many steps in a row it has been that

    def check_norm(self, step: int, norm: float) -> None:
        """Look at one step's gradient norm; raises Diverged."""
        if not math.isfinite(norm):
            raise Diverged(f"The gradient norm at step {step:,} is {norm}.")
        self.norm, self.same = norm, self.same + 1 if norm == self.norm else 1
        if self.same >= self.patience:
            raise Diverged(
                f"The gradient norm has been exactly {norm:.3g} for {self.same} steps, up to step {step:,}: nothing is "
                "learned any more."
            )

    def check(self, step: int, loss: float) -> None:
        """Take in one step's loss; raises Diverged."""
        if not math.isfinite(loss):
            raise Diverged(f"The loss at step {step:,} is {loss}.")
        self.first = loss if self.first is None else self.first
        self.recent.append(loss)
        self.lowest = min(self.lowest, self._usual())
        if loss <= self.threshold():
            self.calm.append(loss)
            self.suspect = 0
            return
        self.suspect += 1
        if loss > self.lowest and self.suspect >= self.patience:
            raise Diverged(
                f"The loss has been above {self.threshold():.3f} for {self.suspect} steps, up to step {step:,}, and is "
                f"{loss:.3f}; before it was {median(self.calm):.3f}."
            )
        if self.suspect >= (self.calm.maxlen or 0):
            raise Diverged(
                f"The loss has been above {self.threshold():.3f} for {self.suspect} steps, up to step {step:,}, and is "
                f"{loss:.3f}; guessing every token costs {self.guessing:.3f}."
            )

    def threshold(self) -> float:
        """The loss above which a step is suspect, in nats."""
        return min(self.lowest, self._worth())

    def is_sound(self, loss: float) -> bool:
        """Whether weights with this loss are worth a checkpoint."""
        return loss <= self._worth()

    def finish(self, loss: float) -> str:
        """Look at the last steps and at the `loss` under the final weights; raises Diverged where the model predicts
        worse than guessing. Returns what the trend has to remark, or ''."""
        if not loss < math.inf:
            raise Diverged(f"The loss under the final weights is {loss}.")
        if self.first is None:
            return ""
        last = fmean(list(self.recent)[-max(1, len(self.recent) // 2) :])
        few = 0.0 if self._is_fresh else SLACK  # in fine-tuning a handful of answers
        if last > self._final() or loss - few > self._final():
            raise Diverged(
                f"The loss ends at {max(last, loss):.3f}, and guessing every token costs {self.guessing:.3f}: the "
                f"model is worse than an untrained one; it began with {self.first:.3f}."
            )
        return self.trend.remark()

    def _usual(self) -> float:
        """The bound by the recent losses, in nats; infinite until half the window is known."""
        if len(self.calm) * 2 < (self.calm.maxlen or 0):
            return math.inf
        middle = median(self.calm)
        deviation = median(abs(loss - middle) for loss in self.calm)
        return middle + max(self.margin, 6 * deviation)

    def _worth(self) -> float:
        """The bound by what the model is worth, in nats."""
        return max(self.guessing, self.guessing if self.first is None else self.first) + SLACK

    @property
    def _is_fresh(self) -> bool:
        """Whether training began with weights that guess."""
        return self.first is not None and abs(self.first - self.guessing) <= ROUNDING

    def _final(self) -> float:
        """The largest loss to end with: guessing's. A stage that began near it or above has to have had the steps to
        fall."""
        falls = math.isfinite(self.margin) and len(self.recent) >= self.patience
        guessing = self.guessing + ROUNDING
        return guessing if self._is_fresh or falls or self.first is None else max(guessing, self.first + SLACK)

    def state(self) -> dict[str, Any]:
        """The guard's part of a checkpoint."""
        return {
            "calm": list(self.calm),
            "suspect": self.suspect,
            "recent": list(self.recent),
            "first": self.first,
            "lowest": None if math.isinf(self.lowest) else self.lowest,
            "norm": [self.norm, self.same] if self.same else None,
            "trend": self.trend.state(),
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from a checkpoint's state, of a version before too; from {} as at the beginning."""
        for kept, values in ((self.calm, state.get("calm", ())), (self.recent, state.get("recent", ()))):
            kept.clear()
            kept.extend(values)
        self.suspect = state.get("suspect", 0)
        self.first = state.get("first")
        lowest = state.get("lowest")
        self.lowest = math.inf if lowest is None else lowest
        self.norm, self.same = state.get("norm") or (math.nan, 0)
        self.trend.restore(state.get("trend", ()))
