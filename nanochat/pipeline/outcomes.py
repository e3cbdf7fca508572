"""Outcomes: how an attempt ended, from exit codes and the ranks' own outcomes."""

from __future__ import annotations

import errno
import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace
from enum import StrEnum
from pathlib import Path
from typing import Any

from nanochat.parse.json_text import read_json
from nanochat.storage.records import RECORD, Count, Seconds, checked

EXIT_STOPPED = 143  # asked to stop, and a checkpoint is saved
LAST_LINES, LAST_CHARACTERS = 3, 500  # of a log, in a message
KILLED_IN_POD = "a process was killed because the pod's memory is used up"
KILLED_HERE = "a process was killed because the memory of this machine, or of its control group, is used up"
EXIT_DISK_FULL = 28  # the disk is full, so that even the outcome could not be written


class Reason(StrEnum):
    """The outcomes of design section 5, by the reason that status carries."""

    SUCCEEDED = "Succeeded"
    PREEMPTED = "Preempted"
    OUT_OF_MEMORY = "OutOfMemory"
    STALLED = "Stalled"
    INFRASTRUCTURE = "Infrastructure"
    DIVERGED = "Diverged"
    USER_ERROR = "UserError"
    ERROR = "Error"  # a fault of the program: tried again, counted


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a launch ended."""

    reason: Reason
    message: str = ""
    detail: str = ""
    rank: Count | None = None
    time: Seconds = 0.0
    host: bool = False  # out of the host's memory, not of the device's
    peer_lost: bool = False  # a collective operation failed: most often because another rank was gone

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_dict(cls, data: Any) -> Outcome:
        """The outcome of JSON values; ValueError where they make none."""
        return checked(cls, data)


def write_outcome(path: Path, outcome: Outcome) -> bool:
    """Write an outcome, whole or not at all; False where the disk is full."""
    scratch = path.with_suffix(".tmp")
    try:
        scratch.write_text(json.dumps(outcome.to_dict()))
        scratch.replace(path)
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        return False
    return True


def read_outcome(path: Path) -> Outcome | None:
    """The outcome in a file; None where there is none."""
    try:
        with path.open("rb") as file:
            return Outcome.from_dict(read_json(file.read(RECORD + 1), limit=RECORD))
    except (OSError, ValueError):
        return None


def earliest_cause(outcomes: Iterable[Outcome], *, asked_to_stop: bool = False) -> Outcome | None:
    """The cause among the ranks' outcomes.

    Peers that lost a collective or were stopped because one failed are consequences: the earliest failure that is
    neither decides, then the earliest lost peer, then a stop, then success. In a launch that was asked to stop, a
    lost peer is one that stopped first.
    """
    lost, stopped = (2, 1) if asked_to_stop else (1, 2)
    order = {Reason.SUCCEEDED: 3, Reason.PREEMPTED: stopped}
    ranked = sorted(outcomes, key=lambda o: (order.get(o.reason, lost if o.peer_lost else 0), o.time))
    return ranked[0] if ranked else None


def from_exit(
    code: int,
    outcomes: Iterable[Outcome],
    *,
    processes: int = 1,
    first: int = 0,
    begun: int = 0,
    asked_to_stop: bool = False,
    last_words: str = "",
) -> Outcome:
    """The outcome of a launch whose process ended with `code` (negative: killed by that signal) and these last words.

    Its ranks are the `processes` from `first` on; under torchrun, whose code tells nothing, `begun` of them are known
    to have begun.
    """
    told = list(outcomes)
    cause = earliest_cause(told, asked_to_stop=asked_to_stop)
    if code == 0:
        return Outcome(reason=Reason.SUCCEEDED)
    if code == EXIT_DISK_FULL:
        return Outcome(reason=Reason.USER_ERROR, message="the disk is full: free space, then run again")
    consequence = cause is None or cause.reason in (Reason.SUCCEEDED, Reason.PREEMPTED) or cause.peer_lost
    if consequence and len(told) < processes and (told or begun):
        silent = sorted(set(range(first, first + processes)) - {outcome.rank for outcome in told})
        return Outcome(
            reason=Reason.INFRASTRUCTURE,
            message=f"rank {silent[0]} ended without a word: killed by hand, by the kernel for memory, or by a crash",
            rank=silent[0],
        )
    if cause is not None and cause.reason is not Reason.SUCCEEDED:
        return cause
    if code == EXIT_STOPPED:
        return Outcome(reason=Reason.PREEMPTED, message="stopped")
    if code in (-9, 137):
        return Outcome(reason=Reason.INFRASTRUCTURE, message="killed by SIGKILL (by hand, or by the kernel for memory)")
    if code < 0:
        return Outcome(reason=Reason.INFRASTRUCTURE, message=f"killed by signal {-code}")
    said = f": {last_words}; see the log" if last_words else ", without a word"
    return Outcome(reason=Reason.ERROR, message=f"exit code {code}{said}")


def blamed_on_memory(outcome: Outcome, *, kills: int, pod: bool) -> Outcome:
    """The outcome of a launch in whose time the kernel killed `kills` processes for memory, in a pod or outside.

    They explain an end without a word and a lost peer, and no exception: they may have been another program's, or
    children that the stage does without.
    """
    unexplained = not outcome.detail or outcome.peer_lost
    if kills <= 0 or not unexplained or outcome.reason not in (Reason.INFRASTRUCTURE, Reason.ERROR):
        return outcome
    message = KILLED_IN_POD if pod else KILLED_HERE
    return replace(outcome, reason=Reason.OUT_OF_MEMORY, message=message, host=True)


def last_lines(text: str) -> str:
    """The last lines of a log as the end of a sentence; '' where it is empty."""
    return " | ".join([line.strip() for line in text.splitlines() if line.strip()][-LAST_LINES:])[-LAST_CHARACTERS:]
