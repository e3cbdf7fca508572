"""A pipeline at rest: it has ended, or is suspended, and nothing of its attempts runs. No more than this is kept of it.

    rest = Rest.of(found, snapshot, owned, due)      # after a reconciliation
    rest = read_rest(found, config, stores)          # as its status tells a controller that has just begun
    rest.is_over(found, owned, now)                  # then the run is opened again

It costs no timer and no request until its object, its jobs or its pods are others.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

from nanochat.pipeline.outcomes import Reason
from nanochat.pipeline.planner import Phase
from nanochat.pipeline.runs import RunPaths
from nanochat.spec.errors import UserError
from operators import status
from operators.admission import profile_of
from operators.config import Config
from operators.index import DEFAULT_STORE, Owned
from operators.kube_error import Object
from operators.run_state import RunSnapshot, mark_of
from operators.stores import Stores

PHASES = (*status.DONE, Phase.SUSPENDED)
SUSPECT = (Reason.STALLED, Reason.INFRASTRUCTURE)  # outcomes whose records may speak against nodes: they are read


@dataclass(frozen=True, slots=True)
class Rest:
    """A pipeline as it was put away."""

    snapshot: RunSnapshot
    generation: int
    retried: str | None
    owned: frozenset[tuple[str, int]]  # uid and version of its jobs and pods
    due: float | None = None  # when the first of its jobs is to be deleted, in seconds since 1970

    @classmethod
    def of(cls, found: Object, snapshot: RunSnapshot, owned: Owned, due: float | None = None) -> Self:
        """The pipeline in `found`, with what is left of its attempts."""
        return cls(snapshot, found["metadata"]["generation"], status.retry_asked(found), _marks(owned), due)

    def is_over(self, found: Object, owned: Owned, now: float) -> bool:
        """Whether the run has to be looked at again."""
        seen = (found["metadata"]["generation"], status.retry_asked(found), _marks(owned))
        return seen != (self.generation, self.retried, self.owned) or (self.due is not None and now >= self.due)


def is_told_at_rest(found: Object) -> bool:
    """Whether the status of a pipeline is that of its declaration, and says that it rests."""
    meta, told, spec = found["metadata"], found.get("status") or {}, found.get("spec") or {}
    phase = str(told.get("phase"))
    run = RunPaths.of(namespace=meta["namespace"], name=meta["name"], uid=meta["uid"]).root
    return (
        phase in PHASES
        and (phase != Phase.SUSPENDED or spec.get("suspend") is True)
        and told.get("observedGeneration") == meta["generation"]
        and (told.get("run"), told.get("retriedAt")) == (run, status.retry_asked(found))
    )


def read_rest(found: Object, owned: Owned, config: Config, stores: Stores) -> Rest | None:
    """A pipeline whose status is current and says that it rests; None where there may be something to do."""
    meta, told, spec = found["metadata"], found.get("status") or {}, found.get("spec") or {}
    phase, attempts = str(told.get("phase")), told.get("attempts") or []
    rests = (
        is_told_at_rest(found)
        and all((status.condition(told, name) or ("",))[0] == "True" for name in ("Accepted", status.REACHABLE))
        and all(attempt.get("ended") and attempt["reason"] not in SUSPECT for attempt in attempts)
        and not (owned.jobs or owned.pods)
    )
    if not rests:
        return None
    try:
        profile = profile_of(told, spec.get("store") or DEFAULT_STORE, config)
    except UserError:
        return None
    made = [item.get("keys") or {} for item in told.get("stages") or [] if item["name"] == "report"]
    snapshot = RunSnapshot(
        namespace=meta["namespace"],
        name=meta["name"],
        uid=meta["uid"],
        artifacts=stores.artifacts(profile),
        tracking=profile.tracking or "",
        phase=Phase(phase),
        report=next(iter(made[0].values()), "") if made else "",
        began=bool(attempts),
        mark=mark_of(phase, [(attempt["job"], attempt["ended"]) for attempt in attempts]),
    )
    return Rest.of(found, snapshot, owned)


def _marks(owned: Owned) -> frozenset[tuple[str, int]]:
    return frozenset((item.meta.uid, item.meta.version) for item in (*owned.jobs.values(), *owned.pods))
