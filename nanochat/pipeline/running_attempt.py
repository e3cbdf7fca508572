"""An attempt that runs on this machine: its launcher's process, from its start to its outcome.

running = RunningAttempt.start(record, work, 2, start_child)     # `work` holds the plan
running.stop("suspended", grace=60)
code = running.process.poll()
if code is not None:
    running.end()
    outcome = running.outcome(code)
"""

from __future__ import annotations

import signal
import time
from dataclasses import dataclass, field, replace
from pathlib import Path

from nanochat.pipeline.attempts import AttemptRecord
from nanochat.pipeline.forking import Child, StartChild
from nanochat.pipeline.launcher import read_last_lines, read_outcomes
from nanochat.pipeline.orphan import LAUNCHER, PLAN, end_launches
from nanochat.pipeline.outcomes import Outcome, Reason, blamed_on_memory, from_exit, read_outcome
from nanochat.pipeline.standstill import Standstill, standstill_of
from nanochat.runtime.cgroup import kernel_kills


@dataclass(slots=True)
class RunningAttempt:
    """An attempt and its process. Times are of the monotonic clock."""

    record: AttemptRecord
    process: Child
    work: Path
    processes: int
    heard: float = field(default_factory=time.monotonic)  # when it gave its last sign of life
    begun: bool = False  # it has made a step
    stop_at: float | None = None  # when its grace is over
    kills: int = field(default_factory=kernel_kills)  # processes that the kernel had killed for memory at its start
    stood: Standstill = field(default_factory=Standstill)  # its ranks, when it was stopped as stalled

    @classmethod
    def start(cls, record: AttemptRecord, work: Path, processes: int, start_child: StartChild) -> RunningAttempt:
        """Start the launcher of the plan in `work`."""
        arguments = ["-m", LAUNCHER, str(work / PLAN)]
        process = start_child(arguments, log=work / "launcher.log", variables={})
        return cls(record, process, work, processes)

    @property
    def silence(self) -> float:
        """Seconds since its last sign of life."""
        return time.monotonic() - self.heard

    def stop(self, reason: str, *, grace: float) -> None:
        """Ask it to save a checkpoint and end; one that shows no sign of life is killed at once."""
        self.record, self.stop_at = replace(self.record, stopping=reason), time.monotonic() + grace
        if reason == "stalled":
            self.record = replace(self.record, silent=self.silence)
            self.stood = standstill_of(self.work, range(self.processes))
            self.process.kill()
        else:
            self.process.send_signal(signal.SIGTERM)

    def end(self) -> None:
        """Kill what lives of it, stopped processes too, and let its lifeline go."""
        self.process.kill()
        end_launches(self.work)
        self.process.wait()
        if self.process.stdin is not None:
            self.process.stdin.close()

    def outcome(self, code: int) -> Outcome:
        """How it ended, by its process's exit code and what its launcher and ranks left in the work folder."""
        if self.record.stopping == "stalled":
            return Outcome(reason=Reason.STALLED, message=f"no sign of life; it was stopped{self.stood.sentence}")
        asked = bool(self.record.stopping)
        outcome = read_outcome(self.work / "outcome.json")
        if outcome is None and asked and code == -signal.SIGTERM:
            return Outcome(reason=Reason.PREEMPTED, message="stopped while it started")
        if outcome is None:
            ranks = read_outcomes(self.work)
            said = read_last_lines(self.work / "launch.log")
            outcome = from_exit(code, ranks, processes=self.processes, asked_to_stop=asked, last_words=said)
            outcome = blamed_on_memory(outcome, kills=kernel_kills() - self.kills, pod=False)
        return outcome
