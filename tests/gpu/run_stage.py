"""One rank of one stage as `nanochat.stages` runs it, which may be asked to stop: python run_stage.py PLAN [STEPS].

It stops at the first chance after so many steps of training.
"""

from __future__ import annotations

import sys

from nanochat.stages import __main__ as entry
from nanochat.stages.context import StopFlag


class StopAfter(StopFlag):
    """Set once training has asked, before each of its steps, more than `steps` times."""

    def __init__(self, steps: int) -> None:
        super().__init__()
        self.left = steps

    def __bool__(self) -> bool:
        self.left -= 1
        return self.left < 0


if __name__ == "__main__":
    if len(sys.argv) > 2:
        steps = int(sys.argv.pop())
        entry.StopFlag = lambda: StopAfter(steps)
    entry.main()
