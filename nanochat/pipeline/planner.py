"""The planner: a pure function from what was declared and observed to what to do next.

`plan(graph, spec, observed, now)` has no clock, no network and no state of its own: the local runner and the
controller carry out its actions and feed it what they see. Asked again with the same input, it says the same.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum

from nanochat.pipeline.graph import Graph, Node, Output
from nanochat.pipeline.outcomes import Outcome, Reason
from nanochat.pipeline.resolve import scaling
from nanochat.pipeline.sentences import Said
from nanochat.spec.pipeline import TRAINING, PipelineSpec
from nanochat.spec.stages import ComputeStage
from nanochat.spec.training import BaseStage, MidStage, SftStage

# Stages whose outputs a user wants for themselves; the others run where one of these needs them.
GOALS = frozenset({"base", "mid", "sft", "rl", "eval-base", "eval-mid", "eval-sft", "eval-rl", "report", "release"})
STAGES = GOALS | {"dataset", "tokenizer", "tokens"}

# Why an attempt was stopped, where that is no fault of its own: it never counts as a failed one.
SUSPENDED, CANCELLED, EDITED, YIELDED, MADE = "suspended", "cancelled", "edited", "yielded", "made by another run"
RESIZED = "resized"  # the next attempt has another number of nodes
ASKED = frozenset({SUSPENDED, CANCELLED, EDITED, YIELDED, MADE, RESIZED})

MOST_NAMED = 3  # of those that a stage waits for
MOST_DOUBLED = 30  # times that a delay doubles

_ORDER = {"eval": 1, "report": 2, "release": 3}


class Phase(StrEnum):
    """Where a stage, or the whole pipeline, stands."""

    CACHED = "Cached"  # its output was there before
    SUCCEEDED = "Succeeded"
    RUNNING = "Running"
    PENDING = "Pending"  # started, and its machines are not there yet
    STOPPING = "Stopping"
    WAITING = "Waiting"  # for its inputs
    QUEUED = "Queued"  # for a free place in its pool
    RETRYING = "Retrying"  # after a delay
    FAILED = "Failed"
    BLOCKED = "Blocked"  # a stage before it failed
    UNSELECTED = "Unselected"  # not part of this run (--only, --from)
    UNNEEDED = "Unneeded"  # nothing that has to run needs it
    SUSPENDED = "Suspended"
    CANCELLED = "Cancelled"


# Phases of a stage that is at work or will be; of several the first says what the whole pipeline does.
UNDER_WAY = (Phase.RUNNING, Phase.STOPPING, Phase.PENDING, Phase.RETRYING, Phase.QUEUED)


@dataclass(frozen=True, slots=True)
class Attempt:
    """One attempt of a stage as it was observed."""

    number: int
    device_batch_size: int
    ended: float | None = None  # in seconds since 1970, by a clock that may have been set since
    outcome: Outcome | None = None  # None while it runs
    silence: float = 0.0  # seconds since its last sign of life, by a clock that nobody sets
    begun: bool = True  # its present launch has made a step
    former: bool = False  # it had ended when the run was begun again or tried again, so it counts no more
    stopping: bool = False
    asked: str = ""  # why it was stopped, if it was
    made: bool = False  # another run has made all that it makes
    reached: int = 0  # newest checkpoint's step, or outputs made: whether the attempt got further than the last
    waiting: Said | None = None  # why its processes do not run yet: then its silence is no stall
    stale: bool = False  # it makes what an edit has since replaced: it is stopped, and counts for nothing
    memory: float = 1.0  # factor on the host memory that it asked for
    remark: Said | None = None  # what is to be told of it while it runs
    processes: int = 1  # of all nodes


@dataclass(frozen=True, slots=True)
class Observed:
    """Everything that was observed of a run."""

    present: frozenset[str]  # keys of committed artifacts
    made: frozenset[str] = frozenset()  # keys that the run had made when it ended: it makes them anew only when asked
    attempts: Mapping[str, Sequence[Attempt]] = field(default_factory=dict)
    slots: Mapping[str, int] = field(default_factory=lambda: {"cpu": 1, "gpu": 1})
    selected: frozenset[str] | None = None  # stages that may run; None is all
    suspended: bool = False
    because: Said | None = None  # why it is suspended, where nobody asked for it
    cancelled: bool = False
    elsewhere: Mapping[str, str] = field(default_factory=dict)  # missing key -> that another makes it: the message
    memory_limits: Mapping[str, float] = field(default_factory=dict)  # stage -> largest factor; 1 where not named
    hold: str = ""  # why nothing may start at the moment; what runs goes on
    refusals: Mapping[str, Said] = field(default_factory=dict)  # stage -> why it could not be started the last time
    nodes: Mapping[str, int] = field(default_factory=dict)  # stage -> of the next attempt; as declared where not named


@dataclass(frozen=True, slots=True)
class Start:
    """Start an attempt."""

    stage: str
    attempt: int
    outputs: tuple[Output, ...]
    device_batch_size: int
    memory: float = 1.0
    nodes: int | None = None  # None is as many as are declared


@dataclass(frozen=True, slots=True)
class Stop:
    """Ask an attempt to save a checkpoint and end."""

    stage: str
    attempt: int
    reason: str


@dataclass(frozen=True, slots=True)
class StageStatus:
    """Where a stage stands, and why."""

    stage: str
    phase: Phase
    message: str = ""
    attempts: int = 0
    until: float | None = None  # when a delay ends
    outside: bool = False  # it waits for something outside the pipeline
    gone: bool = False  # it had succeeded, and what it made is gone
    reason: str = ""  # of the message, for programs


@dataclass(frozen=True, slots=True)
class Status:
    """Where the pipeline stands."""

    phase: Phase
    stages: tuple[StageStatus, ...]
    message: str = ""

    def of(self, stage: str) -> StageStatus:
        return next(item for item in self.stages if item.stage == stage)


Action = Start | Stop


def plan(graph: Graph, spec: PipelineSpec, observed: Observed, now: float) -> tuple[list[Action], Status]:
    """The actions that are due now, and the status."""
    wanted = required_outputs(graph, replace(observed, present=observed.present | observed.made))
    actions: list[Action] = []
    statuses: dict[str, StageStatus] = {}
    used: dict[str, int] = {}
    for node in graph.nodes:
        if _running(observed, node.stage):
            used[node.pool] = used.get(node.pool, 0) + 1
    # Training before evaluation: an evaluation runs beside the next stage, never before it.
    for node in sorted(graph.nodes, key=lambda n: _ORDER.get(n.stage.split("-")[0], 0)):
        status, action = _stage(graph, node, spec, observed, wanted.get(node.stage, ()), statuses, now)
        if isinstance(action, Start):
            if used.get(node.pool, 0) >= observed.slots.get(node.pool, 1):
                status, action = StageStatus(node.stage, Phase.QUEUED, "waits for a free place", status.attempts), None
            else:
                used[node.pool] = used.get(node.pool, 0) + 1
        if action is not None:
            actions.append(action)
        statuses[node.stage] = status
    ordered = tuple(statuses[stage] for stage in graph.stages)
    return actions, _overall(ordered, observed)


def required_outputs(graph: Graph, observed: Observed) -> dict[str, tuple[Output, ...]]:
    """The missing outputs that each stage has to make: the goals', and what the stages that make those read."""
    wanted: dict[str, tuple[Output, ...]] = {}
    refs: set[str] = set()
    for node in reversed(graph.nodes):
        selected = observed.selected is None or node.stage in observed.selected
        goal = node.stage in GOALS and selected
        missing = tuple(
            out
            for out in node.outputs
            if out.key not in observed.present
            and (goal or out.ref in refs or (selected and observed.selected is not None))
        )
        if missing:
            wanted[node.stage] = missing
            if selected:
                refs.update(node.needs)
    return wanted


def _running(observed: Observed, stage: str) -> Attempt | None:
    attempts = observed.attempts.get(stage, ())
    return attempts[-1] if attempts and attempts[-1].outcome is None else None


def _stage(
    graph: Graph,
    node: Node,
    spec: PipelineSpec,
    observed: Observed,
    missing: tuple[Output, ...],
    statuses: Mapping[str, StageStatus],
    now: float,
) -> tuple[StageStatus, Action | None]:
    stage, attempts = node.stage, observed.attempts.get(node.stage, ())
    count = len(attempts)
    current = _running(observed, stage)
    if current is not None:
        return _watch(stage, current, spec, observed, count)
    if not missing:
        gone = [out.ref for out in node.outputs if stage in GOALS and out.key in observed.made - observed.present]
        if gone:
            message = f"{gone[0]} is gone or damaged: `nanochat retry` makes it anew"
            return StageStatus(stage, Phase.SUCCEEDED, message, count, gone=True), None
        if any(out.key not in observed.present for out in node.outputs):
            if observed.selected is not None and stage not in observed.selected:
                return StageStatus(stage, Phase.UNSELECTED, "not part of this run", count), None
            return StageStatus(stage, Phase.UNNEEDED, "nothing that runs needs it", count), None
        made = any(a.outcome and a.outcome.reason is Reason.SUCCEEDED and not (a.stale or a.former) for a in attempts)
        return StageStatus(stage, Phase.SUCCEEDED if made else Phase.CACHED, "", count), None
    if observed.cancelled:
        return StageStatus(stage, Phase.CANCELLED, "cancelled", count), None
    if observed.selected is not None and stage not in observed.selected:
        return StageStatus(stage, Phase.UNSELECTED, f"its output is missing: run it with --only {stage}", count), None
    limit = observed.memory_limits.get(stage, 1.0)
    decision = decide_retry(
        _with_used_rows(attempts, spec, stage), spec, memory_limit=limit, rows=_has_rows(spec, stage)
    )
    if decision.failure:
        return StageStatus(stage, Phase.FAILED, decision.failure, count), None
    for earlier in graph.before(stage):
        if earlier not in statuses:
            continue
        before = statuses[earlier]
        needs_it = any(out.ref in node.needs and out.key not in observed.present for out in graph.node(earlier).outputs)
        if needs_it and before.phase in (Phase.FAILED, Phase.BLOCKED, Phase.UNSELECTED):
            unselected = before.phase is Phase.UNSELECTED
            why = f"needs {earlier}: run it with --only {earlier}" if unselected else f"needs {earlier}"
            return StageStatus(stage, Phase.BLOCKED, why, count), None
    absent = sorted(ref for ref, key in node.needs.items() if key not in observed.present)
    if absent:
        makers = dict.fromkeys(graph.maker(ref) for ref in absent)
        return StageStatus(stage, Phase.WAITING, f"waits for {', '.join(makers)}", count), None
    if observed.suspended:
        said = observed.because or Said("", "suspended")
        return StageStatus(stage, Phase.SUSPENDED, said.message, count, reason=said.reason), None
    if observed.hold:
        return StageStatus(stage, Phase.WAITING, observed.hold, count, outside=True), None
    if decision.ended <= now < decision.not_before:  # what ended in the future ended before the clock was set back
        return StageStatus(stage, Phase.RETRYING, decision.why, count, until=decision.not_before), None
    others = sorted({observed.elsewhere[out.key] for out in missing if out.key in observed.elsewhere})
    if others:
        last = attempts[-1] if attempts else None
        own = (
            f"; its own attempt ended: {last.outcome.message}"
            if last and last.outcome and last.asked == YIELDED
            else ""
        )
        return StageStatus(stage, Phase.WAITING, "; ".join(others[:MOST_NAMED]) + own, count, outside=True), None
    size = decision.device_batch_size or _batch_size(spec, stage)
    number = attempts[-1].number + 1 if attempts else 1
    start = Start(stage, number, missing, size, memory=decision.memory, nodes=observed.nodes.get(stage))
    if stage in observed.refusals:
        said = observed.refusals[stage]
        return StageStatus(stage, Phase.PENDING, said.message, count, reason=said.reason), start
    return StageStatus(stage, Phase.RUNNING, decision.why, count + 1), start


def _watch(
    stage: str, attempt: Attempt, spec: PipelineSpec, observed: Observed, count: int
) -> tuple[StageStatus, Action | None]:
    """A running attempt: leave it, or stop it."""
    if attempt.stopping:
        saves = attempt.asked in ASKED and attempt.begun and stage in TRAINING
        return StageStatus(stage, Phase.STOPPING, "saves a checkpoint" if saves else "ends", count), None
    reason = CANCELLED if observed.cancelled else SUSPENDED if observed.suspended else ""
    reason = reason or (EDITED if attempt.stale else MADE if attempt.made else "")
    if reason:
        return StageStatus(stage, Phase.STOPPING, reason, count), Stop(stage, attempt.number, reason)
    if attempt.waiting:
        said = attempt.waiting
        return StageStatus(stage, Phase.PENDING, said.message, count, reason=said.reason), None
    limit = spec.retries.stall_seconds
    if attempt.silence > (limit if attempt.begun else max(limit, spec.retries.start_seconds)):
        message = f"no sign of life for {attempt.silence:.0f} s"
        return StageStatus(stage, Phase.STOPPING, message, count), Stop(stage, attempt.number, "stalled")
    remark = attempt.remark or Said("", "")
    return StageStatus(stage, Phase.RUNNING, remark.message, count, reason=remark.reason), None


def _batch_size(spec: PipelineSpec, stage: str) -> int:
    settings = spec.of_stage(stage)
    return settings.device_batch_size if isinstance(settings, ComputeStage) else 1


def _has_rows(spec: PipelineSpec, stage: str) -> bool:
    return isinstance(spec.of_stage(stage), ComputeStage)


def _with_used_rows(attempts: Sequence[Attempt], spec: PipelineSpec, stage: str) -> Sequence[Attempt]:
    """The attempts with the rows that they trained on at a time: a process has no more of them than its part of a step.

    In rl and in evaluations the number of slots counts, which is the setting's.
    """
    match settings := spec.of_stage(stage):
        case BaseStage():
            rows = scaling(spec).batch_tokens // spec.model.sequence_length
        case MidStage():
            rows = settings.total_batch_tokens // spec.model.sequence_length
        case SftStage():
            rows = settings.rows_per_step
        case _:
            return attempts
    return [replace(a, device_batch_size=min(a.device_batch_size, math.ceil(rows / a.processes))) for a in attempts]


@dataclass(frozen=True, slots=True)
class Retry:
    """The consequence of the attempts so far."""

    failure: str = ""  # why the stage has failed for good
    ended: float = 0.0  # the last attempt
    not_before: float = 0.0
    device_batch_size: int | None = None
    memory: float = 1.0
    why: str = ""


def decide_retry(
    attempts: Sequence[Attempt],
    spec: PipelineSpec,
    *,
    memory_limit: float = 1.0,
    rows: bool = True,
) -> Retry:
    """Whether and when a stage is tried again, from the outcomes of its attempts.

    An attempt counts against the limit unless it, or one after it, got further than all before it, or it was stopped or
    taken away. What is taken away again and again is tried again after growing delays. Where the host's
    memory ran out the request doubles up to `memory_limit` times the first one; else the rows at a time halve,
    if the stage has `rows` at all.
    """
    ended = [_Ended(a, a.outcome, a.ended or 0.0) for a in attempts if a.outcome is not None and not a.stale]
    if not ended:
        return Retry()
    memory, size, last = _memory(ended, memory_limit), _halved(ended, memory_limit), ended[-1]
    if last.attempt.former:
        return Retry(device_batch_size=max(size, 1) if size is not None else None, memory=memory)
    reason, message = last.outcome.reason, last.outcome.message
    if reason in (Reason.USER_ERROR, Reason.DIVERGED):
        return Retry(failure=message)
    if reason is Reason.OUT_OF_MEMORY:
        if memory > last.attempt.memory:
            return Retry(
                device_batch_size=size, memory=memory, why=f"out of memory: again with {memory:g} times as much"
            )
        if not rows:
            return Retry(
                failure=f"out of memory: give the stage more memory, in a pod by a larger memory request ({message})"
            )
        if size is not None and size < 1:
            return Retry(
                failure=f"out of memory with one row at a time: use a smaller model or sequence length ({message})"
            )
        return Retry(device_batch_size=size, memory=memory, why=f"out of memory: again with {size} rows at a time")
    failed, taken = _in_vain(ended)
    if failed > spec.retries.limit:
        return Retry(failure=f"{message} ({failed} attempts without progress)")
    why = f"again after: {message}"
    delays = taken - 1 if reason is Reason.PREEMPTED else failed
    if delays <= 0 or last.was_asked or reason is Reason.STALLED:
        return Retry(device_batch_size=size, memory=memory, why=why)
    doubled = min(delays - 1, MOST_DOUBLED)
    delay = min(spec.retries.delay_seconds * 2**doubled, spec.retries.max_delay_seconds)
    return Retry(ended=last.at, not_before=last.at + delay, device_batch_size=size, memory=memory, why=why)


@dataclass(frozen=True, slots=True)
class _Ended:
    """An attempt that has ended, how and when."""

    attempt: Attempt
    outcome: Outcome
    at: float

    @property
    def ran_out(self) -> bool:
        """Whether memory ran out."""
        return self.outcome.reason is Reason.OUT_OF_MEMORY

    @property
    def was_asked(self) -> bool:
        """Whether it was asked to end, by no fault of its own."""
        return self.attempt.asked in ASKED

    def more_helps(self, limit: float) -> bool:
        """Whether it is answered by more of the host's memory."""
        return self.ran_out and self.outcome.host and self.attempt.memory < limit


def _in_vain(ended: Sequence[_Ended]) -> tuple[int, int]:
    """How many attempts failed, and how many were taken away, since one got further than all before it."""
    failed, taken, best = 0, 0, 0
    for each in ended:
        reached = each.attempt.reached
        if reached > best and not each.attempt.former:
            failed = taken = 0
        elif each.outcome.reason is Reason.PREEMPTED:
            taken += not (each.attempt.former or each.was_asked)
        elif not (each.attempt.former or each.ran_out or each.was_asked):
            failed += 1
        best = max(best, reached)
    return failed, taken


def _memory(ended: Sequence[_Ended], limit: float) -> float:
    """The factor on the memory request: twice the largest that did not suffice, up to the limit."""
    factors = [min(2 * each.attempt.memory, limit) for each in ended if each.more_helps(limit)]
    return max([1.0, *(each.attempt.memory for each in ended), *factors])


def _halved(ended: Sequence[_Ended], limit: float) -> int | None:
    """The device batch size that memory allowed so far: half of the smallest that did not fit; None if all fit."""
    sizes = [each.attempt.device_batch_size for each in ended if each.ran_out and not each.more_helps(limit)]
    return min(sizes) // 2 if sizes else None


def _overall(stages: tuple[StageStatus, ...], observed: Observed) -> Status:
    phases = {item.phase for item in stages}
    failed = [item for item in stages if item.phase is Phase.FAILED]
    active = [phase for phase in UNDER_WAY if phase in phases]
    if observed.cancelled:
        return Status(Phase.STOPPING if active else Phase.CANCELLED, stages, "cancelled")
    if active:
        return Status(Phase.RUNNING if active[0] is Phase.STOPPING else active[0], stages, "")
    if failed:
        return Status(Phase.FAILED, stages, f"{failed[0].stage}: {failed[0].message}")
    if observed.suspended and Phase.SUSPENDED in phases:
        return Status(Phase.SUSPENDED, stages, observed.because.message if observed.because else "suspended")
    blocked = [item for item in stages if item.phase is Phase.BLOCKED]
    if blocked:
        return Status(Phase.FAILED, stages, f"{blocked[0].stage} {blocked[0].message}")
    waiting = next((item for item in stages if item.phase is Phase.WAITING), None)
    if waiting is not None:
        return Status(Phase.WAITING, stages, f"{waiting.stage}: {waiting.message}")
    gone = next((item for item in stages if item.gone), None)
    return Status(Phase.SUCCEEDED, stages, f"{gone.stage}: {gone.message}" if gone else "")
