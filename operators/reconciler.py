"""Reconciles one pipeline: admit, observe, plan, act, report. All starts from what the API server and storage hold.

    reconciler = PipelineReconciler(namespace, name, services)
    delay = reconciler.reconcile()          # seconds until the next look at the latest; None where none is needed
    reconciler.run is None                  # the pipeline is gone

Nothing that matters is only in memory: a controller that is killed at any instant goes on with the same attempts.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field

from kubernetes.client import V1ObjectReference

from nanochat.pipeline.initial_model import check_initial_model
from nanochat.pipeline.planner import UNDER_WAY, Phase, Status
from nanochat.pipeline.runs import RunPaths
from nanochat.spec.chatpipeline import API_VERSION, KIND
from nanochat.spec.errors import NanochatError, StorageError, UserError
from operators import metrics, status
from operators.admission import admit_object
from operators.attempts import is_room
from operators.index import read_pipeline
from operators.kube_error import KubeError, Object
from operators.kueue import queue_state
from operators.reconciliation import ARTIFACT_SECONDS, is_over, reconcile
from operators.rest import Rest, is_told_at_rest, read_rest
from operators.run_state import NotAdmitted, Ready, RunSnapshot, mark_deleted
from operators.scope import Scope
from operators.services import Services

log = logging.getLogger(__name__)

ACTIVE_SECONDS = 5.0  # between looks while something runs
IDLE_SECONDS = 60.0
TROUBLE_SECONDS = 10.0
FAILURES = 3  # in a row before it is said that storage cannot be reached: once may be a busy machine
FAILURE_SECONDS = 2.0  # between these


class PipelineReconciler:
    """The reconciler of a name; a pipeline that was deleted and made again is another run."""

    def __init__(self, namespace: str, name: str, services: Services) -> None:
        self.namespace, self.name, self.services = namespace, name, services
        self.run: Run | None = None

    @property
    def snapshot(self) -> RunSnapshot | None:
        """The run after the last reconciliation; None where there is none that was admitted."""
        return self.run.snapshot if self.run else None

    def expect(self, found: Object) -> None:
        """The pipeline was seen and will be reconciled: its run is named in leases from the next one on."""
        meta = found["metadata"]
        if (found.get("status") or {}).get("phase") not in status.DONE:
            run = RunPaths.of(namespace=self.namespace, name=self.name, uid=meta["uid"])
            self.services.leases.expect(run.root)

    def is_stale(self) -> bool:
        """Whether it has to be looked at though nothing about it is new: what it was refused for may be gone, and the
        token in its status is good for two days."""
        run = self.run
        return run is not None and (run.snapshot is None or run.access != self.services.access(run.access, time.time()))

    def tell_slow(self, seconds: float) -> None:
        """Say that a reconciliation takes long, or waits for one that does, unless its store is not needed or that is
        known to be away."""
        found = self.services.index.pipeline(self.namespace, self.name)
        if found is None or is_told_at_rest(found.body):
            return
        run = self.run or Run(self.namespace, self.name, found.meta.uid, self.services)
        if found.meta.uid == run.uid:
            run.tell_slow(found.body, seconds)

    def reconcile(self) -> float | None:
        """Look and act once."""
        found, claims = self.services.index.pipeline(self.namespace, self.name), self.services.claims
        if self.run is not None and (found is None or found.meta.uid != self.run.uid):
            claims.drop(self.run.uid)
            self.run.end()
            self.run = None
        if found is None:
            return None
        if self.run is None:
            self.run = Run(self.namespace, self.name, found.meta.uid, self.services)
        if found.meta.deleting:
            claims.drop(self.run.uid)
            return ACTIVE_SECONDS
        try:
            return self.run.reconcile(found.body, time.time(), time.monotonic())
        except NanochatError:
            raise
        except Exception as error:
            with suppress(KubeError):  # the log has all of it
                self.run.report(found.body, status.broken(error))
            raise


@dataclass(slots=True)
class Run:
    """One pipeline, by its uid."""

    namespace: str
    name: str
    uid: str
    services: Services
    snapshot: RunSnapshot | None = None
    access: Mapping[str, str] | None = None  # to the HTTP endpoint, as told
    _state: NotAdmitted | Ready | Rest = field(default_factory=NotAdmitted)
    _generation: int = 0  # of the declaration that was accepted last
    _failures: int = 0  # passes in a row in which storage could not be reached
    _reporting: threading.Lock = field(default_factory=threading.Lock)

    def reconcile(self, found: Object, now: float, steady: float) -> float | None:
        """Admit, observe, plan, act and report; returns the seconds until the next look at the latest, None where there
        is nothing to do before something about the pipeline is new.

        `now` is seconds since 1970 by a clock that may be set, `steady` seconds by one that may not.
        """
        if self._rests(found, now):
            return self._stay(found, now)
        state, refused = self._admit(found)
        self._state = state
        if isinstance(state, NotAdmitted):
            if state.trouble:
                if self._lasts(state.trouble):
                    self.report(found, status.unreachable(found, state.trouble, now))
                return self._next_try()
            self.report(found, status.refused(found, state.refused, now))
            return None
        scope = Scope(self.services, state, found, refused, now, steady, self._event)
        planned = reconcile(scope)
        self.snapshot = state.snapshot()
        self.report(found, self._status(scope, planned))
        if is_over(scope, planned):
            due = state.due(scope.owned.jobs)
            self._state, self._generation = Rest.of(found, self.snapshot, scope.owned, due), 0
            return None if due is None else max(ACTIVE_SECONDS, due - now)
        return self._next_try() if scope.trouble else _delay(state, planned, now)

    def tell_slow(self, found: Object, seconds: float) -> None:
        """Say that the reconciliation under way takes long: where it fails after that, it did for long enough."""
        self._failures = max(self._failures, FAILURES - 1)
        if (status.condition(found.get("status"), status.REACHABLE) or ("",))[0] != "False":
            with suppress(KubeError):  # where it is over by now its status is another, and this one comes too late
                self.report(found, status.slow(found, seconds, time.time()), only=found["metadata"]["resourceVersion"])

    def _lasts(self, trouble: str) -> bool:
        """Whether storage could not be reached several times in a row; to be asked once in each pass."""
        self._failures = self._failures + 1 if trouble else 0
        return self._failures >= FAILURES

    def _next_try(self) -> float:
        return TROUBLE_SECONDS if self._failures >= FAILURES else FAILURE_SECONDS

    def _rests(self, found: Object, now: float) -> bool:
        """Whether the pipeline is at rest, and nothing about it is new."""
        services, owned = self.services, self.services.index.owned(self.namespace, self.uid)
        if self.snapshot is None and isinstance(self._state, NotAdmitted):  # this controller sees it for the first time
            self._state = read_rest(found, owned, services.config, services.stores) or self._state
        if not isinstance(self._state, Rest):
            return False
        if self._state.is_over(found, owned, now):
            self._state = NotAdmitted()
            return False
        self.snapshot = self._state.snapshot
        return True

    def _stay(self, found: Object, now: float) -> float | None:
        """Keep a pipeline at rest: what others need to know of it is told."""
        assert isinstance(self._state, Rest)
        services, run = self.services, self._state.snapshot
        self.report(found, status.at_rest(found, services.access, self._serving(found, run.paths.root), now))
        try:
            if run.phase not in status.DONE:
                services.leases.hold(run.store, run.paths.root)
        except StorageError as error:
            log.warning("storage: %s", error.message)
            return TROUBLE_SECONDS
        return None if self._state.due is None else max(ACTIVE_SECONDS, self._state.due - now)

    def _serving(self, found: Object, run: str) -> tuple[str, str, str] | None:
        """The condition Serving that is due."""
        told_before = status.condition(found.get("status"), status.SERVING) is not None
        return self.services.serving(run, told_before=told_before)

    def end(self) -> None:
        """The pipeline is gone: nothing holds what its run needs any more, and its folder says so."""
        if self.snapshot is not None:
            self.services.leases.let_go(self.snapshot.store, self.snapshot.paths.root)
            with suppress(NanochatError):
                mark_deleted(self.snapshot.store, self.snapshot.paths)

    def _admit(self, found: Object) -> tuple[NotAdmitted | Ready, str]:
        """Take in the declaration where it changed. Of a change that is refused the reason is returned beside the
        state, which goes on with the last declaration that was good."""
        state, generation = self._state, found["metadata"]["generation"]
        if isinstance(state, Ready) and self._generation == generation:
            return state, ""
        try:
            accepted = admit_object(found, self.services.config, self.services.cluster, self.services.graphs)
            artifacts = self.services.stores.artifacts(accepted.profile)
            check_initial_model(accepted.spec, accepted.graph, artifacts)
            if isinstance(state, Ready):
                state.admit(accepted)
            else:
                state = Ready.open(self.uid, accepted, artifacts)
                self.services.suspicion.learn(self.uid, state.attempts.all())
        except UserError as error:
            return (state, error.message) if isinstance(state, Ready) else (NotAdmitted(refused=error.message), "")
        except StorageError as error:
            metrics.errors.labels(kind="storage").inc()
            log.warning("storage: %s", error.message)
            return NotAdmitted(trouble=error.message), ""
        self._generation = generation
        return state, ""

    # ---- reporting ------------------------------------------------------------------------------------------

    def _status(self, scope: Scope, planned: Status) -> Object:
        found, ready = scope.found, scope.ready
        workloads = (scope.queues.of(job) for name, job in scope.owned.jobs.items() if not is_room(name))
        inputs = status.StatusInputs(
            accepted=ready.accepted,
            planned=planned,
            attempts=ready.attempts.all(),
            progress=ready.progress,
            explanations=ready.outputs.explanations,
            scores=ready.outputs.scores,
            refused=scope.refused,
            trouble=scope.trouble if self._lasts(scope.trouble) else "",
            current=not scope.trouble,
            queue=queue_state(next((workload for workload in workloads if workload), None)),
            run=ready.paths.root,
            serving=self._serving(found, ready.paths.root),
        )
        return status.build(found, inputs, self.services.access, scope.now)

    def report(self, found: Object, told: Object, *, only: str = "") -> None:
        """Patch the object's status where it changed, with progress alone now and then; an Event where the pipeline
        begins, waits, or ends. Given `only`, a resourceVersion, no later state of the object is changed."""
        self.access = told.get("access", self.access)
        with self._reporting:
            before = self._latest(found).get("status") or {}
            if status.same(before, told):
                return
            if status.is_progress(before, told) and not self.services.progress.take(self.uid):
                return
            patched = self.services.cluster.patch_status(self.namespace, self.name, told, uid=self.uid, only=only)
            if patched is not None:
                self.services.index.pipelines.put(read_pipeline(patched))
        phases = {told.get("phase", before.get("phase")), before.get("phase")}
        if len(phases) > 1 and not phases <= {*UNDER_WAY}:
            level = "Warning" if told.get("phase") == Phase.FAILED else "Normal"
            self._event(level, str(told["phase"]), told.get("message") or f"the pipeline is {told['phase']}")
        budget = status.condition(told, status.BUDGET)
        if budget is not None and budget[2] and budget[1:] != (status.condition(before, status.BUDGET) or ())[1:]:
            self._event("Warning", budget[1], budget[2])
        serving = status.condition(told, status.SERVING)
        if serving is not None and serving != status.condition(before, status.SERVING):
            level = "Warning" if serving[1] in ("Damaged", "Refused", "RolloutFailed", "NotReady") else "Normal"
            self._event(level, serving[1], serving[2])

    def _latest(self, found: Object) -> Object:
        """The newest state of the object: its status may have been told slow meanwhile."""
        known = self.services.index.pipeline(self.namespace, self.name)
        newer = known is not None and known.meta.version > int(found["metadata"]["resourceVersion"])
        return known.body if known is not None and newer else found

    def _event(self, level: str, reason: str, message: str) -> None:
        log.info("%s: %s", reason, message)
        reference = V1ObjectReference(
            api_version=API_VERSION, kind=KIND, namespace=self.namespace, name=self.name, uid=self.uid
        )
        self.services.events.emit(reference, level, reason, message)


def _delay(state: Ready, planned: Status, now: float) -> float:
    if state.attempts.open() or any(why.wait.patience is not None for why in state.refusals.values()):
        return ACTIVE_SECONDS
    if state.refusals:
        return ARTIFACT_SECONDS
    ends = [item.until - now for item in planned.stages if item.until is not None]
    if ends:  # a look that is due is not put off, as others are where many pipelines wait
        return max(0.5, min(ARTIFACT_SECONDS - 1.0, *ends))
    waits = any(item.phase in (Phase.WAITING, Phase.QUEUED) for item in planned.stages)
    return ARTIFACT_SECONDS if waits else IDLE_SECONDS
