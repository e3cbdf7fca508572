"""Reconciles one pipeline: admit, observe, plan, act, report. All starts from what the API server and storage hold.

    reconciler = PipelineReconciler(namespace, name, services)
    delay = reconciler.reconcile()          # seconds until the next look at the latest; None when the pipeline is gone

Nothing that matters is only in memory: a controller that is killed at any instant goes on with the same attempts.
"""

from __future__ import annotations

import logging
import time
from contextlib import suppress
from dataclasses import dataclass, field

from kubernetes.client import V1ObjectReference

from nanochat.pipeline.planner import Phase, Status
from nanochat.spec.chatpipeline import API_VERSION, KIND
from nanochat.spec.errors import NanochatError, StorageError, UserError
from operators import metrics, status
from operators.admission import admit_object
from operators.index import read_pipeline
from operators.kube_client import Object
from operators.kueue import queue_state
from operators.reconciliation import ARTIFACT_SECONDS, Reconciliation, Services
from operators.run_state import NotAdmitted, Ready, RunSnapshot

log = logging.getLogger(__name__)

ACTIVE_SECONDS = 5.0  # between looks while something runs
IDLE_SECONDS = 60.0
TROUBLE_SECONDS = 10.0


class PipelineReconciler:
    """The reconciler of a name; a pipeline that was deleted and made again is another run."""

    def __init__(self, namespace: str, name: str, services: Services) -> None:
        self.namespace, self.name, self.services = namespace, name, services
        self.run: Run | None = None

    @property
    def snapshot(self) -> RunSnapshot | None:
        """The run after the last reconciliation; None where there is none that was admitted."""
        return self.run.snapshot if self.run else None

    def reconcile(self) -> float | None:
        """Look and act once."""
        found, claims = self.services.index.pipeline(self.namespace, self.name), self.services.claims
        if self.run is not None and (found is None or found["metadata"]["uid"] != self.run.uid):
            claims.drop(self.run.uid)
            self.run.end()
            self.run = None
        if found is None:
            return None
        if self.run is None:
            meta = found["metadata"]
            self.run = Run(self.namespace, self.name, meta["uid"], self.services)
            claims.expect(meta["uid"], self.name, meta["creationTimestamp"])
        if found["metadata"].get("deletionTimestamp"):
            claims.settle(self.run.uid)
            return ACTIVE_SECONDS
        try:
            return self.run.reconcile(found, time.time(), time.monotonic())
        finally:
            claims.settle(self.run.uid, *self.run.claimed)


@dataclass(slots=True)
class Run:
    """One pipeline, by its uid. `claimed` is a store's root, and the keys there that it makes."""

    namespace: str
    name: str
    uid: str
    services: Services
    claimed: tuple[str, frozenset[str]] = ("", frozenset())
    snapshot: RunSnapshot | None = None
    _state: NotAdmitted | Ready = field(default_factory=NotAdmitted)
    _generation: int = 0  # of the declaration that was accepted last

    def reconcile(self, found: Object, now: float, steady: float) -> float:
        """Admit, observe, plan, act and report; returns the seconds until the next look at the latest.

        `now` is seconds since 1970 by a clock that may be set, `steady` seconds by one that may not.
        """
        state, refused = self._admit(found)
        self._state = state
        if isinstance(state, NotAdmitted):
            self.claimed = ("", frozenset())
            if state.trouble:
                self._report(found, status.unreachable(found, state.trouble, now))
                return TROUBLE_SECONDS
            self._report(found, status.refused(found, state.refused, now))
            return IDLE_SECONDS
        reconciliation = Reconciliation(self.services, state, found, refused, now, steady, self._event)
        planned = reconciliation.run()
        self.claimed = (state.accepted.profile.root, state.claim(planned))
        self.snapshot = state.snapshot()
        self._report(found, self._status(reconciliation, planned))
        return _delay(state, planned, reconciliation.trouble, now)

    def end(self) -> None:
        """The pipeline is gone: nothing holds what its run needs any more, and its folder says so."""
        if isinstance(self._state, Ready):
            self.services.leases.let_go(self._state.store, self._state.paths.root)
            with suppress(NanochatError):
                self._state.mark_deleted()

    def _admit(self, found: Object) -> tuple[NotAdmitted | Ready, str]:
        """Take in the declaration where it changed. Of a change that is refused the reason is returned beside the
        state, which goes on with the last declaration that was good."""
        state, generation = self._state, found["metadata"]["generation"]
        if isinstance(state, Ready) and self._generation == generation:
            return state, ""
        try:
            accepted = admit_object(found, self.services.config, self.services.cluster)
            if isinstance(state, Ready):
                state.admit(accepted, self.services.cache)
            else:
                state = Ready.open(self.uid, accepted, self.services.cache)
        except UserError as error:
            return (state, error.message) if isinstance(state, Ready) else (NotAdmitted(refused=error.message), "")
        except StorageError as error:
            metrics.errors.labels(kind="storage").inc()
            log.warning("storage: %s", error.message)
            return NotAdmitted(trouble=error.message), ""
        self._generation = generation
        return state, ""

    # ---- reporting ------------------------------------------------------------------------------------------

    def _status(self, reconciliation: Reconciliation, planned: Status) -> Object:
        found, ready = reconciliation.found, reconciliation.ready
        workloads = (reconciliation.queues.of(job) for job in reconciliation.owned.jobs.values())
        told_before = status.condition(found.get("status"), status.SERVING) is not None
        inputs = status.StatusInputs(
            accepted=ready.accepted,
            planned=planned,
            attempts=ready.attempts.all(),
            progress=ready.progress,
            explanations=ready.outputs.explanations,
            scores=ready.outputs.scores,
            refused=reconciliation.refused,
            trouble=reconciliation.trouble,
            queue=queue_state(next((workload for workload in workloads if workload), None)),
            run=ready.paths.root,
            serving=self.services.serving(ready.paths.root, told_before=told_before),
        )
        return status.build(found, inputs, self.services.access, reconciliation.now)

    def _report(self, found: Object, told: Object) -> None:
        """Patch the object's status where it changed; an Event at each new phase."""
        before = found.get("status") or {}
        if status.same(before, told):
            return
        patched = self.services.cluster.patch_status(self.namespace, self.name, told, uid=self.uid)
        if patched is not None:
            self.services.index.pipelines.put(read_pipeline(patched))
        if told.get("phase") != before.get("phase"):
            level = "Warning" if told.get("phase") == Phase.FAILED else "Normal"
            self._event(level, str(told["phase"]), told.get("message") or f"the pipeline is {told['phase']}")
        serving = status.condition(told, status.SERVING)
        if serving is not None and serving != status.condition(before, status.SERVING):
            level = "Warning" if serving[1] in ("Refused", "RolloutFailed") else "Normal"
            self._event(level, serving[1], serving[2])

    def _event(self, level: str, reason: str, message: str) -> None:
        log.info("%s: %s", reason, message)
        reference = V1ObjectReference(
            api_version=API_VERSION, kind=KIND, namespace=self.namespace, name=self.name, uid=self.uid
        )
        self.services.events.emit(reference, level, reason, message)


def _delay(state: Ready, planned: Status, trouble: str, now: float) -> float:
    if trouble:
        return TROUBLE_SECONDS
    if state.attempts.open():
        return ACTIVE_SECONDS
    ends = [item.until - now for item in planned.stages if item.until is not None]
    waits = any(item.phase in (Phase.WAITING, Phase.QUEUED) for item in planned.stages)
    return max(0.5, min([ARTIFACT_SECONDS if waits else IDLE_SECONDS, *ends]))
