"""One reconciliation of a pipeline that is ready: observe, plan, act. What it did is told by `operators.reconciler`.

    reconciliation = Reconciliation(services, ready, found, refused, now, event)
    reconciliation.run()

The order makes that a controller may be killed at any instant: the plan is stored and the job created before an attempt
is recorded, and a job without a record is adopted by its annotation.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol

from nanochat.pipeline.attempts import confirmed
from nanochat.pipeline.outcomes import Outcome, Reason
from nanochat.pipeline.planner import MADE, YIELDED, Action, Attempt, Observed, Phase, Start, Status, Stop, plan
from nanochat.pipeline.run_status import RunStatus
from nanochat.pipeline.standstill import Standstill, named_ranks, read_standstill
from nanochat.spec.errors import StorageError
from nanochat.spec.pods import hide_values
from nanochat.tracking.rest import light_registry
from operators import metrics, observation, pod_template, resources, status
from operators.admission import Graphs
from operators.attempts import JobAttempt
from operators.claims import Claimant, Claims, Want
from operators.cluster import Cluster
from operators.config import Config
from operators.events import Events
from operators.index import Index, Owned
from operators.job_backend import JobBackend, JobRequest
from operators.kube_client import KubeError, Object
from operators.kueue import Queues
from operators.run_state import Ready
from operators.sentences import End, Wait
from operators.store_leases import StoreLeases
from operators.stores import Stores
from operators.suspicion import Suspicion, blame

log = logging.getLogger(__name__)

ARTIFACT_SECONDS = 30.0  # between looks for artifacts that others may have made
UNLIMITED = 1 << 30  # stages side by side: the cluster's scheduler and quotas decide
STALLED_GRACE = 1  # seconds: a rank that is stopped saves nothing
DELETED_AT_ONCE = 20  # attempts that are tidied in one pass


@dataclass(frozen=True, slots=True)
class Services:
    """The services that all reconcilers share."""

    cluster: Cluster
    index: Index
    backend: JobBackend
    config: Config
    claims: Claims
    events: Events
    stores: Stores
    graphs: Graphs = field(default_factory=Graphs)
    leases: StoreLeases = field(default_factory=StoreLeases)
    suspicion: Suspicion = field(default_factory=Suspicion)
    access: status.AccessOf = status.no_access
    serving: status.ServingOf = status.no_serving


class EventOf(Protocol):
    """Emits an Event about the pipeline."""

    def __call__(self, level: str, reason: str, message: str) -> None: ...


@dataclass(slots=True)
class Reconciliation:
    """A single pass. `refused` says why a change of the declaration was not accepted; of `now`, seconds since 1970,
    the clock may be set, of `steady` not."""

    services: Services
    ready: Ready
    found: Object
    refused: str
    now: float
    steady: float
    event: EventOf
    trouble: str = ""  # why storage cannot be reached now
    queues: Queues = field(default_factory=Queues)
    owned: Owned = field(default_factory=lambda: Owned({}, ()))
    observations: dict[str, observation.AttemptObservation] = field(default_factory=dict)  # by job
    elsewhere: Mapping[str, str] = field(default_factory=dict)  # missing key -> who makes it, for whom it waits
    wants: dict[str, Want] = field(default_factory=dict)  # stage that could start, but waits for that -> its keys

    def run(self) -> Status:
        """Observe, plan and act; returns where the pipeline stands."""
        self._observe()
        self._make_room()
        actions, planned = self._plan_held()
        self.ready.phase = planned.phase
        starts = {action.stage for action in actions if isinstance(action, Start)}
        told = self.ready.refusals
        self.ready.refusals = {stage: why for stage, why in told.items() if stage in starts}
        for action in actions:
            if isinstance(action, Stop):
                self._stop(action)
            else:
                self._storage(lambda action=action: self._begin(action))
        if self.ready.refusals or told:
            _, planned = plan(self.ready.accepted.graph, self.ready.accepted.spec, self._observed(), self.now)
        self._stop_dropped()
        self._clean()
        self._settle()
        planned = self.ready.outputs.remarked(planned)
        self._storage(lambda: self._keep(planned))
        return planned

    def is_over(self, planned: Status) -> bool:
        """Whether nothing is left to do before something about the pipeline is new; ended jobs may be left."""
        suspended = planned.phase is Phase.SUSPENDED and not (self.owned.jobs or self.owned.pods)
        ended = planned.phase in status.DONE or suspended
        untidy = any(not record.cleaned and record.job not in self.owned.jobs for record in self.ready.attempts.all())
        return ended and not (untidy or self.trouble or self.refused or self.ready.attempts.open())

    def _storage(self, operation: Callable[[], object]) -> bool:
        """Do something that needs storage, unless it was found out of reach in this pass."""
        if self.trouble:
            return False
        try:
            operation()
        except StorageError as error:
            self.trouble = error.message
            metrics.errors.labels(kind="storage").inc()
            log.warning("storage: %s", error.message)
            return False
        return True

    # ---- observing ------------------------------------------------------------------------------------------

    def _observe(self) -> None:
        ready = self.ready
        self._look()
        for record in ready.attempts.open():
            self._take_in(record)
        self._take_retry()
        self._storage(self._find_outputs)
        for record in ready.attempts.open():
            self._storage(lambda record=record: ready.outputs.look(record.keys))
        for record in ready.attempts.open():
            told = self._storage(lambda record=record: ready.take_progress(record, self.steady))
            if not told or record.running_since is None:
                ready.excuse_silence(record, self.steady)

    @property
    def _is_retried(self) -> bool:
        """Whether a retry is asked for that was not carried out yet."""
        asked = status.retry_asked(self.found)
        return bool(asked) and asked != (self.found.get("status") or {}).get("retriedAt")

    def _take_retry(self) -> None:
        """Where a retry is asked for, the attempts that have ended count no more, and all outputs are looked for."""
        if self._is_retried:
            self.ready.attempts.retire()
            self.ready.outputs.forget()
            self.ready.looked = 0.0
            self._storage(self.ready.outputs.set_damaged_aside)
            self._storage(self.ready.attempts.save)

    def _look(self) -> None:
        """Jobs, pods and the observations of all attempts that run.

        News in the index is looked at again in the API server, for only there jobs and pods are in step.
        """
        index, namespace = self.services.index, self.found["metadata"]["namespace"]
        self._take_owned(index.owned(namespace, self.ready.uid))
        running = self.ready.attempts.open()
        if any(observation.has_news(record, self.observations[record.job], self.now) for record in running):
            self._take_owned(index.read(namespace, self.ready.uid))
        for remark in self.ready.attempts.take_remarks():
            self.event("Warning", "RecordSetAside", remark)
        for record in self.ready.attempts.open():
            observed = self.observations[record.job]
            followed = self.ready.waits.follow(self.services.cluster, record, observed, self.now, self.steady)
            self.observations[record.job] = followed

    def _take_owned(self, owned: Owned) -> None:
        """Adopt jobs that have no record yet, and observe all attempts that run."""
        for job in owned.jobs.values():
            self.ready.attempts.adopt(job, self.ready.accepted.graph)
            record = next((r for r in self.ready.attempts.open() if r.job == job.meta.name), None)
            if record is not None and record.job_uid != job.meta.uid:
                self.ready.attempts.put(replace(record, job_uid=job.meta.uid))
        if any(job.queue for job in owned.jobs.values()):
            self.queues = self.services.index.queues(self.found["metadata"]["namespace"])
        self.owned = owned
        self.observations = {
            record.job: observation.observe(
                record,
                owned.jobs.get(record.job),
                owned.pods_of(record),
                self.now,
                self.queues,
            )
            for record in self.ready.attempts.open()
        }

    def _take_in(self, record: JobAttempt) -> None:
        """Take in what was seen of an attempt; end it when it is over and nothing of it can still run."""
        observed = self.observations[record.job]
        record = self.ready.attempts.put(observation.updated(record, observed, self.now))
        decided = record.decided or observed.outcome
        if decided is None:
            return
        if observed.clear:
            self._storage(lambda: self._conclude(record, decided))
        else:
            self._end(self.ready.attempts.put(replace(record, decided=decided)))

    def _conclude(self, record: JobAttempt, outcome: Outcome) -> None:
        """Record how an attempt ended. Reads storage first: where that fails, the next reconciliation does it."""
        ready, outputs, keys = self.ready, self.ready.outputs, set(record.keys)
        outputs.refresh(out for node in ready.accepted.graph.nodes for out in node.outputs if out.key in keys)
        made_all = bool(keys) and keys <= outputs.present
        if record.stopping != MADE:
            outcome = Outcome(reason=Reason.SUCCEEDED) if made_all else confirmed(outcome, made_all=False)
        if outcome.reason is not Reason.SUCCEEDED and record.stage in ready.accepted.graph.stages:
            outputs.recheck_inputs(record.stage)
        before = ready.attempts.reached(record.stage, before=record.number)
        reached = outputs.reached(record.stage, record.keys, before=before)
        ready.take_progress(record, self.steady)
        against = record.blame if outcome.reason is Reason.STALLED else blame(record, outcome, ())
        record = ready.attempts.put(replace(record.end(outcome, reached=reached, now=self.now), blame=against))
        useful = reached > before or outcome.reason is Reason.SUCCEEDED
        metrics.attempt_ended(record, outcome, lost=0.0 if useful else record.used)
        level = "Normal" if outcome.reason in (Reason.SUCCEEDED, Reason.PREEMPTED) else "Warning"
        self.event(level, str(outcome.reason), f"{record.stage} attempt {record.number}: {outcome.message or 'ended'}")
        ready.looked = 0.0
        if against:
            suspicion = self.services.suspicion
            suspicion.learn(ready.uid, ready.attempts.all())
            scores = suspicion.scores(self.now)
            said = ", ".join(f"{node} ({scores.get(node, 0.0):g})" for node in against)
            self.event("Warning", "NodeSuspected", f"{record.stage} attempt {record.number} speaks against {said}")

    def _find_outputs(self) -> None:
        ready = self.ready
        if ready.looked and self.steady - ready.looked < ARTIFACT_SECONDS:
            return
        since = self.services.leases.since(ready.store, ready.paths.root) or 0.0
        ready.outputs.refresh(since=time.monotonic() if self._is_retried else since)
        if ready.looked == 0.0:
            done = (self.found.get("status") or {}).get("phase") in status.DONE
            if self._is_news or self._is_retried or not done:  # what was released long ago is left as it is
                ready.outputs.forget_outdated()
                ready.outputs.check_release(light_registry(ready.accepted.profile.tracking or ""))
            ready.outputs.explain()
        ready.looked = self.steady

    # ---- planning -------------------------------------------------------------------------------------------

    def _plan_held(self) -> tuple[list[Action], Status]:
        """Plan, with the run named in the store's lease unless it has ended: what it needs is then not removed."""
        leases, store, run = self.services.leases, self.ready.store, self.ready.paths.root
        actions, planned = self._plan()
        if planned.phase in status.DONE:
            leases.let_go(store, run)
        elif leases.since(store, run) is None and self._storage(lambda: leases.hold(store, run)):
            self.ready.looked = 0.0  # what was seen before may be gone
            self.ready.outputs.present.clear()
            self._storage(self._find_outputs)
            actions, planned = self._plan()
        return actions, planned

    def _plan(self) -> tuple[list[Action], Status]:
        """Plan, claim what would be made, and then look for it: another may have made it since the last look."""
        accepted, outputs = self.ready.accepted, self.ready.outputs
        self.elsewhere, self.wants = {}, {}
        while True:
            actions, planned = plan(accepted.graph, accepted.spec, self._observed(), self.now)
            starts = [action for action in actions if isinstance(action, Start)]
            if self._claim(starts):
                continue
            wanted, known = [out for start in starts for out in start.outputs], len(outputs.present)
            self._storage(lambda wanted=wanted: outputs.refresh(wanted))
            if len(outputs.present) == known:
                return actions, planned

    def _claim(self, starts: Sequence[Start]) -> bool:
        """Take the keys of what would be started; whether another pipeline makes some of them."""
        known = len(self.elsewhere)
        for start in starts:
            want = self._want(start.stage, [out.key for out in start.outputs])
            waits = self.services.claims.take(self.claimant, want, self.steady)
            if waits:
                self.elsewhere, self.wants[start.stage] = {**self.elsewhere, **waits}, want
        return len(self.elsewhere) > known

    def _want(self, stage: str, keys: Collection[str]) -> Want:
        accepted, config = self.ready.accepted, self.services.config
        spec, place = accepted.spec, None
        if spec.queue:
            namespace, settings = accepted.pipeline.metadata.namespace, resources.pod_settings(config, spec, stage)
            place = (namespace, spec.queue, spec.priority, resources.nodes(spec, stage), settings.model_dump_json())
        return Want(frozenset(keys), place)

    def _settle(self) -> None:
        """Tell the others what this pipeline makes now, and for what it waits."""
        running = [
            record
            for record in self.ready.attempts.open()
            if not (record.job in self.observations and self.observations[record.job].clear)
        ]
        making = {key for record in running for key in record.keys}
        runs = any(record.running_since is not None for record in running)
        self.services.claims.settle(self.claimant, making, list(self.wants.values()), runs=runs)

    @property
    def claimant(self) -> Claimant:
        """This pipeline, as the others meet it."""
        accepted = self.ready.accepted
        return Claimant.of(self.found, root=accepted.profile.root, profile=accepted.spec.store)

    def _observed(self) -> Observed:
        accepted, outputs = self.ready.accepted, self.ready.outputs
        hold = self.refused and f"the change was refused: {self.refused}"
        hold = hold or (self.trouble and f"waits for storage: {self.trouble}")
        return Observed(
            present=frozenset(outputs.present),
            made=self._made(),
            attempts={
                stage: [self._attempt(record) for record in self.ready.attempts.of(stage)]
                for stage in accepted.graph.stages
            },
            slots={"cpu": UNLIMITED, "gpu": UNLIMITED},
            suspended=accepted.spec.suspend,
            cancelled=accepted.spec.cancel,
            elsewhere=self.elsewhere,
            memory_limits=resources.memory_limits(self.services.config, accepted.spec, accepted.graph),
            hold=hold,
            refusals=self.ready.refusals,
        )

    def _made(self) -> frozenset[str]:
        """The keys that the run had made when it ended, by the status; none where it is to go on."""
        told = self.found.get("status") or {}
        if told.get("phase") not in status.DONE or self._is_news or self._is_retried:
            return frozenset()
        stages = [item for item in told.get("stages") or () if item["phase"] in (Phase.SUCCEEDED, Phase.CACHED)]
        return frozenset(key for item in stages for key in (item.get("keys") or {}).values())

    @property
    def _is_news(self) -> bool:
        """Whether the declaration is another than the one that the status tells of."""
        return (self.found.get("status") or {}).get("observedGeneration") != self.found["metadata"]["generation"]

    def _attempt(self, record: JobAttempt) -> Attempt:
        """An attempt as the planner sees it: its silence counts from when its pods began to run."""
        outputs = {out.key for out in self.ready.accepted.graph.node(record.stage).outputs}
        observed = self.observations.get(record.job)
        runs = record.outcome is None
        heartbeat = self.ready.heartbeat(record, self.steady) if runs else None
        return record.observed(
            silence=self.steady - heartbeat.heard if heartbeat else 0.0,
            begun=heartbeat is None or heartbeat.begun,
            stopping=runs and record.decided is not None,
            waiting=observed.waiting if runs and observed else None,
            stale=not outputs.issuperset(record.keys) or (runs and self._is_outdated(record)),
            made=runs and self.ready.outputs.others_made(record.keys, record.launches),
        )

    def _is_outdated(self, record: JobAttempt) -> bool:
        """Whether an attempt does not get to run, and would be another one by now: an edit may be what mends it."""
        observed, node = self.observations.get(record.job), self.ready.accepted.graph.node(record.stage)
        if not record.form or observed is None or not observed.is_stuck:
            return False
        outputs = tuple(out for out in node.outputs if out.key in record.keys)
        start = Start(record.stage, record.number, outputs, record.device_batch_size, record.memory)
        return self.services.backend.form(self._request(start)) != record.form

    # ---- acting ---------------------------------------------------------------------------------------------

    def _request(self, launch: Start) -> JobRequest:
        ready, services = self.ready, self.services
        return JobRequest(
            uid=ready.uid,
            accepted=ready.accepted,
            launch=launch,
            run=ready.paths.root,
            config=services.config,
            started=self.now,
            avoid=services.suspicion.scores(self.now),
        )

    def _begin(self, action: Start) -> None:
        """Start an attempt. Where the API server refuses its objects that is a wait, which ends like any other."""
        ready = self.ready
        try:
            self._start(action)
            ready.refusals.pop(action.stage, None)
        except KubeError as error:
            if error.status == 0:  # no answer came
                raise
            kind, name = self.services.backend.resource.plural, self._request(action).name
            wait = Wait.NO_JOBS if error.is_unserved else Wait.NO_JOB if error.is_passing else Wait.JOB_REFUSED
            waiting = wait.of(kind=kind, why=error.said)
            ready.refusals[action.stage] = waiting
            outcome = ready.waits.of_job(name, waiting, self.now, self.steady)
            if outcome is not None:
                record = JobAttempt(stage=action.stage, number=action.attempt, started=self.now)
                ready.attempts.put(record.end(outcome, reached=0, now=self.now))
                del ready.refusals[action.stage]

    def _start(self, action: Start) -> None:
        ready, services, namespace = self.ready, self.services, self.found["metadata"]["namespace"]
        request = self._request(action)
        # The answer to an earlier request may have been lost: the job exists, and the index may not tell of it yet.
        for job in services.index.read(namespace, ready.uid).jobs.values():
            ready.attempts.adopt(job, ready.accepted.graph)
        if any(record.job == request.name for record in ready.attempts.open()):
            return
        backend, job_plan = services.backend, pod_template.plan_of(request)
        ready.store.write(ready.paths.plan(action.stage, action.attempt), job_plan.encode())
        # A reconciliation that was cut short may have left another, for settings that have changed since.
        services.cluster.replace_config_map(pod_template.build_config_map(request, job_plan), owner=ready.uid)
        try:
            job = backend.create(request)
        except KubeError as error:
            if not error.is_passing:  # there is no job; without an answer there may be one
                services.claims.refuse(ready.uid, [out.key for out in action.outputs])
            raise
        if job is None:
            services.claims.refuse(ready.uid, [out.key for out in action.outputs])
            name = f"{backend.resource.kind} {namespace}/{request.name}"
            raise KubeError(f"{name} exists and is not this pipeline's: delete it", status=409)
        services.index.jobs.put(job)
        ready.attempts.adopt(job, ready.accepted.graph)
        ready.attempts.save()
        ready.progress.pop(action.stage, None)  # of the attempt before
        self.event("Normal", "Started", f"{action.stage} attempt {action.attempt}")

    def _make_room(self) -> None:
        """End attempts that do not get to run while another pipeline waits for what they make."""
        ready, stuck = self.ready, {}
        for record in ready.attempts.open():
            observed, job = self.observations[record.job], self.owned.jobs.get(record.job)
            known = record.decided is None and record.stage in ready.accepted.graph.stages
            if not (known and observed.is_stuck and observed.waiting):
                continue
            stuck[record.job] = since = ready.stuck.get(record.job, self.steady)
            want = self._want(record.stage, record.keys)
            if job is None or not job.suspended:  # it was admitted: another may well gain by its place
                want = replace(want, place=None)
            if self.services.claims.yield_to(self.claimant, want, self.steady - since):
                why = f"it could not start: {observed.waiting.message}"
                self._stop(Stop(record.stage, record.number, YIELDED), why)
        ready.stuck = stuck

    def _stop(self, action: Stop, message: str = "") -> None:
        attempts = self.ready.attempts
        record = attempts.get(action.stage, action.attempt)
        decided = Outcome(Reason.PREEMPTED, message or action.reason)
        if action.reason == "stalled":
            own, stood = [pod for pod in self.owned.pods if pod.job == record.job], self._who_stood(record)
            decided = End.STALLED_ON.outcome(ranks=", ".join(stood.values())) if stood else End.STALLED.outcome()
            decided = observation.lost_node(own, self.now) or decided
            record = replace(record, blame=blame(record, decided, list(stood)))
        record = attempts.put(replace(record, stopping=action.reason, decided=replace(decided, time=self.now)))
        self._storage(attempts.save)  # what was decided outlives this process
        self.event("Normal", "Stopping", f"{action.stage} attempt {action.attempt}: {action.reason}")
        self._end(record)

    def _who_stood(self, record: JobAttempt) -> dict[str, str]:
        """The ranks of a silent attempt for which the others wait, by node; none where that is not known."""
        ready, seen = self.ready, dict[str, Standstill]()

        def read() -> None:
            for index, uid in record.pods.items():
                path = ready.paths.standstill(record.stage, record.launch_of(uid))
                seen[index] = read_standstill(ready.store, path)

        alone = len(record.pods) == 1  # then the others are on the same node
        if not self._storage(read) or not any(each.waits or (alone and each.waiting) for each in seen.values()):
            return {}
        stood = {record.placement.get(index, ""): each.standing for index, each in seen.items() if not each.waits}
        return {node: f"{named_ranks(stood[node])} on {node}" for node in sorted(stood) if node}

    def _stop_dropped(self) -> None:
        """Stop attempts of stages that an edit took out of the pipeline."""
        for record in self.ready.attempts.open():
            if record.stage not in self.ready.accepted.graph.stages and record.decided is None:
                self._stop(Stop(record.stage, record.number, "edited"))

    def _end(self, record: JobAttempt) -> None:
        """Delete what is left of an attempt that is over.

        A stalled one's pods go first, and by our hand alone: whoever deletes a pod first sets its grace, and others
        would give it that of a stop, in which its node is held. Where this process ends in between, the next one goes
        on with it.
        """
        cluster, job = self.services.cluster, self.owned.jobs.get(record.job)
        stalled = record.stopping == "stalled"
        if stalled and job is not None and not job.meta.deleting:
            self.services.backend.keep_pods(job)
        for pod in self.owned.pods_of(record):
            if stalled and not (pod.meta.deleting and pod.meta.grace <= STALLED_GRACE):
                cluster.delete_pod(pod, grace=STALLED_GRACE)
            elif job is None and not pod.meta.deleting:
                cluster.delete_pod(pod)
        if job is not None and not job.meta.deleting:
            self.services.backend.delete(job)

    def _clean(self) -> None:
        """Delete the jobs of attempts that are over: at once if they still run, else when their time has passed."""
        ready, jobs, asked = self.ready, self.owned.jobs, 0
        for record in ready.attempts.all():
            if record.outcome is None or record.cleaned or asked == DELETED_AT_ONCE:
                continue
            job = jobs.get(record.job)
            if job is None:
                namespace = self.found["metadata"]["namespace"]
                self.services.cluster.delete_config_map(namespace, record.job, owner=ready.uid)
                ready.attempts.put(replace(record, cleaned=True))
                asked += 1
            elif not job.meta.deleting:
                over = self.now - (record.ended or 0.0) >= ready.accepted.spec.job_ttl_seconds
                if over or not job.ended:
                    self.services.backend.delete(job)
                    asked += 1

    def _keep(self, planned: Status) -> None:
        """Store the records, the declaration and the status, where they changed."""
        ready = self.ready
        ready.attempts.save()
        pipeline, graph, records = ready.accepted.pipeline, ready.accepted.graph, ready.attempts.all()
        document = RunStatus.of(pipeline, graph, planned, ready.outputs.explanations, ready.progress, records)
        if ready.status_file.differs(document):
            ready.store.write_json(ready.paths.pipeline, hide_values(pipeline.to_yaml_dict()))
            ready.status_file.write(document)
