"""A measured process as it is told from outside: one step at a time, with its time, its CPU time and its page faults.

    paced = Paced()
    task = paced.read_task()
    paced.stamp("import torch")
    while True:
        paced.boundary(lambda: work)  # answers for the last step, then waits; raises Ended when that was all
        step()

Commands are lines on standard input (`step`, `profile`, `end`), answers are lines of JSON on standard output. What
libraries print goes to standard error.
"""

from __future__ import annotations

import json
import os
import re
import resource
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

STATUS = Path("/proc/self/status")
CLEAR = Path("/proc/self/clear_refs")
RESET_PEAK = "5"  # what the kernel takes for: forget the largest memory so far


class Ended(Exception):
    """Nothing more is asked for."""


class Paced:
    """The commands and answers of one measured process."""

    def __init__(self) -> None:
        self._answers = os.fdopen(os.dup(1), "w")
        os.dup2(2, 1)
        self.parts: dict[str, float] = {}  # seconds of each part of the start, in order
        self._last = time.monotonic()
        self._begun: dict[str, float] | None = None
        self._profile: tuple[ExitStack, Callable[[], list[dict[str, Any]]]] | None = None

    def read_task(self) -> dict[str, Any]:
        """The task, which is the first line; the time since this process was started is the first part."""
        task = json.loads(sys.stdin.readline() or "{}")
        self._last = task.get("started", self._last)
        self.stamp("interpreter")
        return task

    def stamp(self, name: str) -> None:
        """The part of the start that ends here."""
        now = time.monotonic()
        self.parts[name] = self.parts.get(name, 0.0) + now - self._last
        self._last = now

    def skip(self) -> None:
        """Forget the time since the last stamp: it is part of the measurement, not of a start."""
        self._last = time.monotonic()

    def answer(self, values: Mapping[str, Any]) -> None:
        """Tell who measures."""
        self._answers.write(json.dumps(values) + "\n")
        self._answers.flush()

    def boundary(self, work: Callable[[], Mapping[str, float]]) -> None:
        """Between two steps: answer for the last one, which was so much `work`, and wait for the next to be wanted.

        To find out how much it was is no part of the step.
        """
        synchronize()
        if self._begun is None:
            self.stamp("first step")
            self.answer({"parts": self.parts})
            forget_peak()
        else:
            answer: dict[str, Any] = {name: value - self._begun[name] for name, value in usage().items()}
            answer |= {"peak_memory": peak_memory(), **work()}
            if self._profile is not None:
                running, costs = self._profile
                running.close()
                answer["costs"] = costs()
                self._profile = None
            self.answer(answer)
        command = sys.stdin.readline().strip()
        if command == "profile":
            from nanochat.bench.costs import profiled

            self._profile = profiled()
        elif command != "step":
            raise Ended
        self._begun = usage()


def usage() -> dict[str, float]:
    """Seconds and page faults of this process so far."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    return {
        "seconds": time.monotonic(),
        "cpu_seconds": used.ru_utime + used.ru_stime,
        "system_seconds": used.ru_stime,
        "minor_faults": float(used.ru_minflt),
    }


def synchronize() -> None:
    """Wait until a GPU, where one computes, has done what it was given."""
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_initialized():
        torch.cuda.synchronize()


def forget_peak() -> None:
    """From here on `peak_memory` counts anew, where the kernel can do that."""
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_initialized():
        torch.cuda.reset_peak_memory_stats()
    with suppress(OSError):
        CLEAR.write_text(RESET_PEAK)


def peak_memory() -> float:
    """The largest memory in bytes: a GPU's where one computes, else this process's."""
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_initialized():
        return float(torch.cuda.max_memory_allocated())
    with suppress(OSError):
        found = re.search(r"^VmHWM:\s+(\d+) kB", STATUS.read_text(), re.MULTILINE)
        if found:
            return float(found[1]) * 1024
    scale = 1 if sys.platform == "darwin" else 1024
    return float(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss) * scale
