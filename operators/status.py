"""The status of a pipeline: the object's, and the same for the run's folder.

`build` is pure. The status stays small: the last attempts are in it, the rest are in the run's folder.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Protocol

from nanochat.pipeline.planner import Phase, Status
from nanochat.pipeline.sentences import Said
from nanochat.pipeline.spending import BudgetSaid, Spending, check_budget, is_spent
from nanochat.spec.chatpipeline import RETRY
from nanochat.tracking.progress import State
from nanochat.tracking.quantities import duration
from operators.admission import Accepted
from operators.attempts import JobAttempt
from operators.kube_error import Object
from operators.suspicion import MOST_NODES

ATTEMPTS = 20  # in status; all are in the run's folder
LONGEST = 1000  # characters of a message
NODES = 64  # of an attempt
LIVE = (Phase.RUNNING, Phase.STOPPING)  # phases in which a stage makes progress
DONE = (Phase.SUCCEEDED, Phase.FAILED, Phase.CANCELLED)
PROGRESS = (
    "progress",
    "eta",
    "loss",
    "gpuHours",
    "cost",
    "lostCost",
    "waitingCost",
)  # fields that change while stages run, of the pipeline
STAGE_PROGRESS = ("step", "total", "pause", "rate", "loss", "eta")  # and of a stage
# what the status says of it, the time -> service, token and expiresAt
AccessOf = Callable[[Mapping[str, str] | None, float], Mapping[str, str] | None]
SERVING, REACHABLE, BUDGET = "Serving", "StorageReachable", "WithinBudget"  # conditions


class ServingOf(Protocol):
    """The condition Serving of the run in a folder: status, reason, message."""

    def __call__(self, run: str, *, told_before: bool) -> tuple[str, str, str] | None: ...


def no_access(before: Mapping[str, str] | None, now: float) -> None:
    """Where the HTTP endpoint is not served."""


def no_serving(run: str, *, told_before: bool) -> None:
    """Where no inference server follows the registry."""


@dataclass(frozen=True, slots=True)
class StatusInputs:
    """Findings of a reconciliation."""

    accepted: Accepted
    planned: Status
    attempts: Sequence[JobAttempt]
    progress: Mapping[str, State]
    explanations: Mapping[str, str]
    scores: Mapping[str, Mapping[str, float]]  # trained stage -> metrics of its evaluation
    refused: str
    trouble: str  # why storage cannot be reached, if it could not be for a while
    current: bool  # whether it was reached this time
    queue: Mapping[str, str] | None
    run: str
    serving: tuple[str, str, str] | None = None


def retry_asked(found: Object) -> str | None:
    """The value of the annotation that asks for a retry, as the status repeats it once the retry is carried out."""
    return (found["metadata"].get("annotations") or {}).get(RETRY, "")[:LONGEST] or None


def build(found: Object, inputs: StatusInputs, access: AccessOf, now: float) -> Object:
    """The whole status. Fields that no longer hold are None, which a merge patch removes."""
    meta, before, planned = found["metadata"], found.get("status") or {}, inputs.planned
    accepted, spec = inputs.accepted, inputs.accepted.spec
    current = _current(planned, inputs.progress)
    runs = current and planned.of(current).phase in LIVE
    state = inputs.progress.get(current) if runs else None  # of one that waits it is of long ago
    started = min((r.started for r in inputs.attempts), default=None)
    spent = Spending.of(inputs.attempts, spec.cost.gpu_hour, now)
    finished = planned.phase in DONE
    return {
        "observedGeneration": before.get("observedGeneration") if inputs.refused else meta["generation"],
        "phase": str(planned.phase),
        "message": _message(inputs)[:LONGEST] or None,
        "stage": current or None,
        "progress": f"{state.step}/{state.total}" if state and state.total else None,
        "eta": duration(state.eta) if state and state.eta is not None else None,
        "loss": f"{_loss(state):.3f}" if state and _loss(state) is not None else None,
        "core": _core(inputs.scores),
        "started": to_time(started),
        "finished": (before.get("finished") or to_time(now)) if finished else None,
        "run": inputs.run,
        "retriedAt": retry_asked(found) if inputs.current else before.get("retriedAt"),
        "gpuHours": round(spent.gpu_hours, 3),
        "cost": round(spent.cost, 2),
        "lostCost": round(spent.lost, 2) or None,
        "waitingCost": round(spent.waiting, 2) or None,
        "horizon": {name: _plain(value) for name, value in accepted.graph.horizon.summary().items()},
        "stages": [_stage(item, inputs, now) for item in planned.stages],
        "attempts": [_attempt(r) for r in inputs.attempts[-ATTEMPTS:]],
        "profile": {
            "root": accepted.profile.root,
            "endpoint": accepted.profile.endpoint,
            "region": accepted.profile.region,
            "anonymous": accepted.profile.anonymous,
            "tracking": accepted.profile.tracking,
            "secret": accepted.profile.secret,
            "serviceAccount": accepted.profile.service_account,
        },
        "access": access(before.get("access"), now),
        "queue": {name: text[:LONGEST] for name, text in inputs.queue.items()} if inputs.queue else None,
        "conditions": _conditions(
            before.get("conditions") or [],
            meta["generation"],
            now,
            {
                "Accepted": ("False", "Refused", inputs.refused)
                if inputs.refused
                else ("True", "Accepted", accepted.remark),
                **_reachable(inputs),
                "Succeeded": _succeeded(planned),
                **_within_budget(before, check_budget(spec.budget, spent)),
                **({SERVING: inputs.serving} if inputs.serving else {}),
            },
        ),
    }


def _message(inputs: StatusInputs) -> str:
    """The sentence that people see first: what keeps the pipeline from its end, and what would help."""
    planned = inputs.planned
    said = inputs.refused or inputs.trouble or planned.message
    if planned.phase is Phase.FAILED and not (inputs.refused or inputs.trouble):
        meta = inputs.accepted.pipeline.metadata
        again = f"; once that is mended: nanochat retry {meta.name} -n {meta.namespace}"
        return said[: LONGEST - len(again)] + again
    return said or _why(planned) or _serving_trouble(inputs.serving) or inputs.accepted.remark


def refused(found: Object, why: str, now: float) -> Object:
    """The status of a pipeline that never passed the checks."""
    meta, before = found["metadata"], (found.get("status") or {}).get("conditions") or []
    before = [item for item in before if item.get("reason") != "Slow"]  # nothing is asked of the store any more
    return {
        "observedGeneration": meta["generation"],
        "phase": str(Phase.FAILED),
        "message": why[:LONGEST],
        "conditions": _conditions(before, meta["generation"], now, {"Accepted": ("False", "Refused", why)}),
    }


def unreachable(found: Object, why: str, now: float) -> Object:
    """The status while the run's records cannot be read: nothing is known but this."""
    meta, before = found["metadata"], found.get("status") or {}
    conditions = {REACHABLE: ("False", "Unreachable", why)}
    return {
        "phase": before.get("phase") or str(Phase.WAITING),
        "message": f"storage cannot be reached: {why}"[:LONGEST],
        "conditions": _conditions(before.get("conditions") or [], meta["generation"], now, conditions),
    }


def slow(found: Object, seconds: float, now: float) -> Object:
    """The changes in the status while a reconciliation takes long."""
    meta, before = found["metadata"], (found.get("status") or {}).get("conditions") or []
    why = (
        f"the store or the API server has kept the controller waiting for {seconds:.0f} s: stages that run go on, and "
        "what is due is done when it answers"
    )
    wanted = {REACHABLE: ("Unknown", "Slow", why)}
    return {"message": why, "conditions": _conditions(before, meta["generation"], now, wanted)}


def broken(error: Exception) -> Object:
    """The change in the status where a fault of the controller keeps it from going on; the next pass takes it back."""
    kind = type(error).__name__
    return {"message": f"a fault of the controller ({kind}) keeps this pipeline from going on: its log says where"}


def at_rest(found: Object, access: AccessOf, serving: tuple[str, str, str] | None, now: float) -> Object:
    """The changes in the status of a pipeline that is at rest."""
    meta, before = found["metadata"], found.get("status") or {}
    wanted = {SERVING: serving} if serving else {}
    return {
        "access": access(before.get("access"), now),
        "message": _message_at_rest(before, serving),
        "conditions": _conditions(before.get("conditions") or [], meta["generation"], now, wanted),
    }


def _message_at_rest(before: Object, serving: tuple[str, str, str] | None) -> str | None:
    """The message of a pipeline at rest: what is wrong with its model in the chat API, for as long as it is."""
    told, message = condition(before, SERVING), before.get("message")
    if serving is not None and before.get("phase") == Phase.SUCCEEDED:
        if trouble := _serving_trouble(serving):
            return trouble[:LONGEST]
        if told is not None and message == told[2]:
            return None
    return message


def _serving_trouble(serving: tuple[str, str, str] | None) -> str:
    """The sentence on the chat API that people have to know; '' where all is well."""
    return serving[2] if serving and serving[1] in ("Damaged", "Refused", "RolloutFailed", "NotReady") else ""


def condition(status: Object | None, name: str) -> tuple[str, str, str] | None:
    """Status, reason and message of a condition."""
    found = next((item for item in (status or {}).get("conditions") or [] if item["type"] == name), None)
    return None if found is None else (found["status"], found.get("reason", ""), found.get("message", ""))


def same(before: Object, told: Object) -> bool:
    """Whether a patch with `told` would change nothing."""
    return all(_bare(before.get(name)) == _bare(value) for name, value in told.items())


def is_progress(before: Object, told: Object) -> bool:
    """Whether a patch with `told` would change nothing but how far stages got, which need not be told at once."""
    return same(_without_progress(before), _without_progress(told))


def _without_progress(told: Object) -> Object:
    stages = [{k: v for k, v in stage.items() if k not in STAGE_PROGRESS} for stage in told.get("stages") or ()]
    return {k: v for k, v in told.items() if k not in PROGRESS} | ({"stages": stages} if "stages" in told else {})


def _bare(value: object) -> object:
    """A value as the API server keeps it: without what is None."""
    if isinstance(value, Mapping):
        return {str(k): _bare(v) for k, v in value.items() if v is not None}
    if isinstance(value, (list, tuple)):
        return [_bare(item) for item in value]
    return value


def _stage(item: Any, inputs: StatusInputs, now: float) -> Object:
    own = [r for r in inputs.attempts if r.stage == item.stage]
    state = inputs.progress.get(item.stage)
    live = state if item.phase in LIVE else None
    return {
        "name": item.stage,
        "phase": str(item.phase),
        "reason": item.reason or None,
        "message": item.message[:LONGEST] or None,
        "why": inputs.explanations.get(item.stage, "")[:LONGEST] or None,
        "attempts": item.attempts,
        "step": live.step if live else None,
        "total": live.total if live else None,
        "pause": live.pause[:LONGEST] or None if live else None,
        "rate": ", ".join(f"{value:,.4g} {unit}" for unit, value in live.rates.items())[:LONGEST] if live else None,
        "loss": round(loss, 4) if (loss := _loss(live)) is not None else None,
        "eta": round(live.eta) if live and live.eta is not None else None,
        "started": to_time(own[0].started if own else None),
        "ended": to_time(own[-1].ended if own else None),
        "keys": {out.ref: out.key for out in inputs.accepted.graph.node(item.stage).outputs[:50]},
    }


def _attempt(record: JobAttempt) -> Object:
    return {
        "stage": record.stage,
        "number": record.number,
        "job": record.job,
        "reason": str(record.outcome.reason) if record.outcome else "Running",
        "message": (record.outcome.message if record.outcome else record.stopping)[:LONGEST] or None,
        "started": to_time(record.started),
        "ended": to_time(record.ended),
        "nodes": list(record.hosts)[:NODES],
        "nodeCount": record.nodes,
        "suspects": list(record.blame)[:MOST_NODES] or None,
        "batch": record.device_batch_size,
    }


def _current(planned: Status, progress: Mapping[str, State]) -> str:
    """The stage that people look at: of those that run the one that trains, else the first that is under way."""
    active = [item.stage for item in planned.stages if item.phase in (*LIVE, Phase.PENDING)] or [
        item.stage for item in planned.stages if item.outside or item.phase in (Phase.RETRYING, Phase.FAILED)
    ]
    return next((s for s in active if not s.startswith("eval-")), active[0] if active else "")


def _why(planned: Status) -> str:
    """The message of the first stage that waits for something outside the pipeline."""
    pending = (Phase.PENDING, Phase.RETRYING)
    waiting = [i for i in planned.stages if i.message and (i.outside or i.reason or i.phase in pending)]
    return f"{waiting[0].stage}: {waiting[0].message}" if waiting else ""


def _loss(state: State | None) -> float | None:
    if state is None or not state.losses:
        return None
    return state.losses.get("loss", next(iter(state.losses.values())))


def _core(scores: Mapping[str, Mapping[str, float]]) -> str | None:
    value = scores.get("base", {}).get("core")
    return None if value is None else f"{value:.4f}"


def _reachable(inputs: StatusInputs) -> dict[str, tuple[str, str, str]]:
    """The condition of storage, which one failure does not change."""
    if inputs.trouble:
        return {REACHABLE: ("False", "Unreachable", inputs.trouble)}
    return {REACHABLE: ("True", "Reached", "")} if inputs.current else {}


def _within_budget(before: Object, told: Said | None) -> dict[str, tuple[str, str, str]]:
    """The condition of the budget; where there is none any more, nothing is said of the former one."""
    if told is None and condition(before, BUDGET) is None:
        return {}
    told = told or BudgetSaid.WITHIN.of()
    return {BUDGET: ("False" if is_spent(told) else "True", told.reason, told.message)}


def _succeeded(planned: Status) -> tuple[str, str, str]:
    if planned.phase in DONE:
        ok = planned.phase is Phase.SUCCEEDED
        return ("True" if ok else "False", str(planned.phase), planned.message)
    return ("Unknown", str(planned.phase), planned.message)


def _conditions(
    before: Sequence[Object], generation: int, now: float, wanted: Mapping[str, tuple[str, str, str]]
) -> list[Object]:
    """Conditions with the time of their last change of state; those not named stay as they are."""
    known = {item["type"]: item for item in before}
    for name, (value, reason, message) in wanted.items():
        old = known.get(name)
        changed = old is None or old["status"] != value
        known[name] = {
            "type": name,
            "status": value,
            "reason": reason,
            "message": message[:LONGEST],
            "observedGeneration": generation,
            "lastTransitionTime": to_time(now) if changed or old is None else old["lastTransitionTime"],
        }
    return [known[name] for name in sorted(known)]


def to_time(seconds: float | None) -> str | None:
    """RFC 3339 in UTC, whole seconds."""
    return None if seconds is None else datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def _plain(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
