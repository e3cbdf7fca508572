"""What the end of an attempt means: one outcome from exit codes and the ranks' own words."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from enum import StrEnum
from typing import Any

EXIT_STOPPED = 143  # asked to stop, and a checkpoint is saved


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
    rank: int | None = None
    time: float = 0.0

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Outcome:
        known = {name: data[name] for name in ("message", "detail", "rank", "time") if name in data}
        return cls(reason=Reason(data["reason"]), **known)


def earliest_cause(outcomes: Iterable[Outcome]) -> Outcome | None:
    """The cause among the ranks' outcomes.

    Peers that lost a collective or were stopped because one failed are consequences: the earliest failure that is
    neither decides, then the earliest lost peer, then a stop, then success.
    """
    order = {Reason.SUCCEEDED: 3, Reason.PREEMPTED: 2}
    ranked = sorted(outcomes, key=lambda o: (order.get(o.reason, 1 if _is_peer_loss(o) else 0), o.time))
    return ranked[0] if ranked else None


def _is_peer_loss(outcome: Outcome) -> bool:
    text = f"{outcome.message} {outcome.detail}".lower()
    return any(word in text for word in ("connection closed by peer", "connection reset by peer", "gloo", "nccl"))


def from_exit(code: int, outcomes: Iterable[Outcome]) -> Outcome:
    """The outcome of a launch whose process ended with `code` (negative: killed by that signal)."""
    cause = earliest_cause(outcomes)
    if code == 0:
        return Outcome(reason=Reason.SUCCEEDED)
    if cause is not None and cause.reason is not Reason.SUCCEEDED:
        return cause
    if code == EXIT_STOPPED:
        return Outcome(reason=Reason.PREEMPTED, message="stopped")
    if code in (-9, 137):
        return Outcome(reason=Reason.INFRASTRUCTURE, message="killed by SIGKILL (by hand, or by the kernel for memory)")
    if code < 0:
        return Outcome(reason=Reason.INFRASTRUCTURE, message=f"killed by signal {-code}")
    return Outcome(reason=Reason.ERROR, message=f"exit code {code}; see the log")
