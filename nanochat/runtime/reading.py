"""Numbers that a device computes, read once they are there: meanwhile the host gives it what comes next.

reading = Reading(loss, norm)    # begins to copy them; the device goes on
...                              # the next step is begun
loss, norm = reading.values()    # waits for these numbers, not for what was begun since
"""

from __future__ import annotations

import torch
from torch import Tensor


class Reading:
    """The copy to the host of a few tensors of one number each, all on one device."""

    def __init__(self, *numbers: Tensor) -> None:
        """On a CPU they are there at once, and Apple's GPU is waited for: only CUDA's copies have an order."""
        self._numbers = [each.detach().to("cpu", non_blocking=each.is_cuda, copy=True) for each in numbers]
        self._copied: torch.cuda.Event | None = None
        if any(each.is_cuda for each in numbers):
            self._copied = torch.cuda.Event()
            self._copied.record()

    @property
    def is_whole(self) -> bool:
        """Whether the numbers were there when it was made."""
        return self._copied is None

    def values(self) -> list[float]:
        """The numbers, once they are there."""
        if self._copied is not None:
            self._copied.synchronize()
        return [float(each) for each in self._numbers]
