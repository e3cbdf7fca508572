"""Reconciles one pipeline: observe, plan, act, report. Each time starts from what the API server and storage hold.

    reconciler = PipelineReconciler(namespace, name, services)
    delay = reconciler.reconcile()          # seconds until the next look at the latest; None when the pipeline is gone

Nothing that matters is only in memory: a controller that is killed at any instant goes on with the same attempts. The
order makes it so: the plan is stored and the job created before an attempt is recorded, and a job without a record is
adopted by its annotation.
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from pathlib import Path
from typing import Any

from nanochat.pipeline.explain import explain_miss
from nanochat.pipeline.graph import TRAINING, Output
from nanochat.pipeline.outcomes import Outcome, Reason
from nanochat.pipeline.planner import (
    Action,
    Attempt,
    Observed,
    Phase,
    Start,
    Status,
    Stop,
    plan,
    required_outputs,
)
from nanochat.pipeline.runs import RunPaths
from nanochat.spec.chatpipeline import API_VERSION, KIND, RETRY
from nanochat.spec.errors import StorageError, UserError
from nanochat.storage.artifacts import Artifacts
from nanochat.storage.opening import open_store
from nanochat.storage.store import Profile
from nanochat.tracking.progress import State, read_progress
from operators import jobs, metrics, observation, resources, status
from operators.admission import Accepted, accept
from operators.attempts import Attempts, Record
from operators.claims import Claims
from operators.cluster import Cluster, ClusterError, Object
from operators.config import Config
from operators.events import Events

log = logging.getLogger(__name__)

ACTIVE_SECONDS = 5.0  # between looks while something runs
IDLE_SECONDS = 60.0
TROUBLE_SECONDS = 10.0
ARTIFACT_SECONDS = 30.0  # between looks for artifacts that others may have made
UNLIMITED = 1 << 30  # stages side by side: the cluster's scheduler and quotas decide
STALLED_GRACE = 1  # seconds: a rank that is stopped saves nothing
SUSPECT = (Reason.STALLED, Reason.INFRASTRUCTURE)  # outcomes after which other nodes are tried first
ACTIVE = (Phase.RUNNING, Phase.PENDING, Phase.STOPPING, Phase.RETRYING, Phase.WAITING, Phase.QUEUED)


@dataclass(frozen=True, slots=True)
class Services:
    """What all loops share."""

    cluster: Cluster
    config: Config
    claims: Claims
    events: Events
    cache: Path
    access: status.AccessOf = status.no_access
    serving: status.ServingOf = status.no_serving


@dataclass(slots=True)
class RunSnapshot:
    """What one reconciliation came to; the HTTP endpoint and the metrics read it."""

    uid: str
    accepted: Accepted
    artifacts: Artifacts
    paths: RunPaths
    phase: Phase
    attempts: tuple[tuple[str, float | None], ...] = ()  # job and end of each


class PipelineReconciler:
    """The loop of a name; a pipeline that was deleted and made again is another run."""

    def __init__(self, namespace: str, name: str, services: Services) -> None:
        self.namespace, self.name, self.services = namespace, name, services
        self.run: Run | None = None

    @property
    def view(self) -> RunSnapshot | None:
        return self.run.view if self.run else None

    def reconcile(self) -> float | None:
        """Look and act once."""
        found = self.services.cluster.pipeline(self.namespace, self.name)
        if self.run is not None and (found is None or found["metadata"]["uid"] != self.run.uid):
            self.services.claims.drop(self.run.uid)
            self.run = None
        if found is None:
            return None
        if self.run is None:
            meta = found["metadata"]
            self.run = Run(self.namespace, self.name, meta["uid"], self.services)
            self.services.claims.expect(meta["uid"], self.name, meta["creationTimestamp"])
        if found["metadata"].get("deletionTimestamp"):
            self.services.claims.settle(self.run.uid)
            return ACTIVE_SECONDS
        try:
            return self.run.reconcile(found, time.time())
        finally:
            self.services.claims.settle(self.run.uid, *self.run.claimed)


@dataclass(slots=True)
class Run:
    """One pipeline, by its uid."""

    namespace: str
    name: str
    uid: str
    services: Services
    claimed: tuple[str, frozenset[str]] = ("", frozenset())
    view: RunSnapshot | None = None
    accepted: Accepted | None = None
    attempts: Attempts | None = None
    present: set[str] = field(default_factory=set)
    progress: dict[str, State] = field(default_factory=dict)
    heartbeats: dict[str, tuple[float, float]] = field(default_factory=dict)  # job -> (said, heard)
    explanations: dict[str, str] = field(default_factory=dict)
    scores: dict[str, Any] = field(default_factory=dict)
    trouble: str = ""  # why storage cannot be reached in this reconciliation
    _source: tuple[Any, ...] = ()
    _looked: float = 0.0
    _stored: bytes = b""

    # ---- reconciling ------------------------------------------------------------------------------------------

    def reconcile(self, found: Object, now: float) -> float:
        """Observe, plan, act, tell; returns the seconds until the next look at the latest."""
        refused = self._accept(found)
        if self.accepted is None:
            self.claimed = ("", frozenset())
            self._report(found, status.refused(found, refused, now))
            return IDLE_SECONDS
        accepted, cluster = self.accepted, self.services.cluster
        self.trouble = ""
        # Pods first: one that Kueue has removed is then seen with its job suspended.
        pods = cluster.pods(self.namespace, self.uid)
        jobs_found = {job["metadata"]["name"]: job for job in cluster.jobs(self.namespace, self.uid)}
        workloads = cluster.workloads(self.namespace) if accepted.spec.queue else []
        if not self._load(jobs_found.values()):
            self._report(found, status.unreachable(found, self.trouble, now))
            return TROUBLE_SECONDS
        assert self.attempts is not None
        observations = {
            record.job: observation.observe(
                record,
                jobs_found.get(record.job),
                [pod for pod in pods if observation.job_of(pod) == record.job],
                now,
                observation.workload_of(jobs_found.get(record.job), workloads),
            )
            for record in self.attempts.open()
        }
        for record in self.attempts.open():
            self._take_in(record, observations[record.job], jobs_found.get(record.job), pods, now)
        self._storage(lambda: self._observe_artifacts(accepted, now))
        for record in self.attempts.open():
            if not self._storage(lambda record=record: self._take_progress(record, now)):
                # Its news cannot reach us: that is no silence, nor is it one when storage is just back.
                self.heartbeats[record.job] = (self.heartbeats.get(record.job, (0.0, 0.0))[0], now)
        actions, planned = self._plan(found, accepted, observations, refused, now)
        self._claim(accepted, planned)
        for action in actions:
            if isinstance(action, Stop):
                self._stop(action, jobs_found, pods, now)
            else:
                self._storage(lambda action=action: self._launch(accepted, action, now))
        self._stop_dropped(accepted, jobs_found, pods, now)
        self._clean(accepted, jobs_found, now)
        self._storage(lambda: self._keep(accepted, planned))
        assert self.view is not None
        self.view.attempts = tuple((record.job, record.ended) for record in self.attempts.all())
        self.view.phase = planned.phase
        inputs = status.StatusInputs(
            accepted=accepted,
            planned=planned,
            records=self.attempts.all(),
            progress=self.progress,
            explanations=self.explanations,
            scores=self.scores,
            refused=refused,
            trouble=self.trouble,
            queue=observation.queue_state(
                next((w for w in (observation.workload_of(j, workloads) for j in jobs_found.values()) if w), None)
            ),
            run=self.view.paths.root,
            serving=self.services.serving(
                self.view.paths.root, told_before=status.condition(found.get("status"), status.SERVING) is not None
            ),
        )
        self._report(found, status.build(found, inputs, self.services.access, now))
        return self._delay(planned, now)

    def _plan(
        self,
        found: Object,
        accepted: Accepted,
        observations: Mapping[str, observation.AttemptObservation],
        refused: str,
        now: float,
    ) -> tuple[list[Action], Status]:
        """Plan, and look once more for what would be made: another pipeline may have made it since the last look."""
        while True:
            observed = self._observed(found, accepted, observations, refused, now)
            actions, planned = plan(accepted.graph, accepted.spec, observed, now)
            wanted = [out for action in actions if isinstance(action, Start) for out in action.outputs]
            known = len(self.present)
            self._storage(lambda wanted=wanted: self._find(wanted))
            if len(self.present) == known:
                return actions, planned

    def _accept(self, found: Object) -> str:
        """Take in the declaration where it changed; returns why it was refused, or ''. Then the last good one stays."""
        source = (found["metadata"]["generation"], found["metadata"]["uid"])
        if self._source == source and self.accepted is not None:
            return ""
        try:
            self.accepted = accept(found, self.services.config, self.services.cluster)
        except UserError as error:
            return error.message
        self._source, self._looked, self.explanations = source, 0.0, {}
        profile = self.accepted.profile
        store = open_store(
            Profile(root=profile.root, endpoint=profile.endpoint, region=profile.region, anonymous=profile.anonymous),
            patient=False,
            credentials=Path(profile.credentials) if profile.credentials else None,
        )
        self.view = RunSnapshot(
            uid=self.uid,
            accepted=self.accepted,
            artifacts=Artifacts(store, self.services.cache),
            paths=RunPaths.of(namespace=self.namespace, name=self.name, uid=self.uid),
            phase=self.view.phase if self.view else Phase.WAITING,
        )
        return ""

    def _storage(self, operation: Callable[[], object]) -> bool:
        """Do something that needs storage, unless it was found out of reach in this reconciliation."""
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

    def _load(self, found: Iterable[Object]) -> bool:
        """The records of all attempts, once; jobs that have none yet are adopted. False while storage is away."""
        if self.attempts is None:

            def load() -> None:
                assert self.view is not None
                self.attempts = Attempts.load(self.view.artifacts.store, self.view.paths)

            if not self._storage(load):
                return False
        assert self.attempts is not None
        for job in found:
            self.attempts.adopt(job, self.uid)
        return True

    def _take_in(
        self,
        record: Record,
        observed: observation.AttemptObservation,
        job: Object | None,
        pods: list[Object],
        now: float,
    ) -> None:
        """Take in what was seen of an attempt; end it when it is over and nothing of it can still run."""
        assert self.attempts is not None
        record = self.attempts.put(record.with_observation(observed, now))
        decided = record.decided or observed.outcome
        if decided is None:
            return
        if record.decided is None and not observed.clear:
            record = self.attempts.put(replace(record, decided=decided))
        if not observed.clear:
            self._end(record, job, pods)
            return
        self._storage(lambda: self._conclude(record, decided, now))

    def _end(self, record: Record, job: Object | None, pods: list[Object]) -> None:
        """Delete what is left of an attempt that is over."""
        cluster, quick = self.services.cluster, record.stopping == "stalled"
        if job is not None and not job["metadata"].get("deletionTimestamp"):
            cluster.delete_job(self.namespace, record.job)
        for pod in pods:
            meta = pod["metadata"]
            if observation.job_of(pod) != record.job:
                continue
            if quick and meta.get("deletionGracePeriodSeconds") != STALLED_GRACE:
                cluster.delete_pod(self.namespace, meta["name"], uid=meta["uid"], grace=STALLED_GRACE)
            elif job is None and not meta.get("deletionTimestamp"):
                cluster.delete_pod(self.namespace, meta["name"], uid=meta["uid"])

    def _conclude(self, record: Record, outcome: Outcome, now: float) -> None:
        """Record how an attempt ended. Reads storage first: where that fails, the next reconciliation does it."""
        assert self.attempts is not None and self.accepted is not None
        keys = set(record.keys)
        self._find([out for node in self.accepted.graph.nodes for out in node.outputs if out.key in keys])
        if keys and keys <= self.present:
            outcome = Outcome(reason=Reason.SUCCEEDED)
        elif outcome.reason is Reason.SUCCEEDED:
            outcome = Outcome(reason=Reason.ERROR, message="the stage ended without committing all of its outputs")
        if outcome.reason is not Reason.SUCCEEDED:
            self._find_inputs(record.stage)
        before = max((r.reached for r in self.attempts.of(record.stage) if r.number < record.number), default=0)
        reached = self._reached(record, before)
        self._take_progress(record, now)
        record = self.attempts.end(record, outcome, reached=reached, now=now)
        useful = reached > before or outcome.reason is Reason.SUCCEEDED
        metrics.attempt_ended(record, lost=0.0 if useful else record.used)
        level = "Normal" if outcome.reason in (Reason.SUCCEEDED, Reason.PREEMPTED) else "Warning"
        self._event(level, str(outcome.reason), f"{record.stage} attempt {record.number}: {outcome.message or 'ended'}")
        self._looked = 0.0

    def _reached(self, record: Record, before: int) -> int:
        """How far the stage is: the newest whole checkpoint's step, or the number of its outputs."""
        assert self.view is not None
        made = sum(key in self.present for key in record.keys)
        if record.stage not in TRAINING or made:
            return max(before, made)
        store, folder = self.view.artifacts.store, f"checkpoints/{record.stage}/{record.keys[0]}"
        names = [name for name in store.children(folder) if store.exists(f"{folder}/{name}/manifest.json")]
        return max([before, *(int(name.split("-")[1]) for name in names)])

    def _observe_artifacts(self, accepted: Accepted, now: float) -> None:
        if now - self._looked < ARTIFACT_SECONDS:
            return
        first = self._looked == 0.0
        self._find([out for node in accepted.graph.nodes for out in node.outputs])
        assert self.view is not None
        if first:
            for node in accepted.graph.nodes:
                missing = [out for out in node.outputs if out.key not in self.present]
                if missing and node.stage not in self.explanations:
                    self.explanations[node.stage] = explain_miss(self.view.artifacts, missing, total=len(node.outputs))
        self._looked = now

    def _find(self, outputs: Sequence[Output]) -> None:
        assert self.view is not None
        wanted = [(out.kind, out.key) for out in outputs if out.key not in self.present]
        for (kind, key), manifest in self.view.artifacts.find_all(wanted).items():
            self.present.add(key)
            if kind == "evaluation":
                self.scores[str(manifest.metadata.get("stage", ""))] = manifest.metadata

    def _find_inputs(self, stage: str) -> None:
        """Look again at what a stage reads: what it found damaged is set aside, and its maker has to run again."""
        assert self.view is not None and self.accepted is not None
        if stage not in self.accepted.graph.stages:
            return
        needs = {(ref.split("/", 1)[0], key) for ref, key in self.accepted.graph.node(stage).needs.items()}
        found = self.view.artifacts.find_all(needs)
        self.present -= {key for _, key in needs - found.keys()}

    def _take_progress(self, record: Record, now: float) -> None:
        """The progress of a running attempt. Its heartbeat is when the news was heard here: clocks may differ."""
        assert self.view is not None
        state = read_progress(self.view.artifacts.store, self.view.paths.progress(record.stage))
        if state is None or state.launch not in record.launches:
            return
        said, _ = self.heartbeats.get(record.job, (0.0, 0.0))
        if state.time != said:
            self.heartbeats[record.job] = (state.time, now)
        self.progress[record.stage] = state

    def _observed(
        self,
        found: Object,
        accepted: Accepted,
        observations: Mapping[str, observation.AttemptObservation],
        refused: str,
        now: float,
    ) -> Observed:
        assert self.attempts is not None
        claims, store = self.services.claims, accepted.profile.root
        missing = [out.key for node in accepted.graph.nodes for out in node.outputs if out.key not in self.present]
        older = claims.unsettled(self.uid)
        hold = refused and f"the change was refused: {refused}"
        hold = hold or (self.trouble and f"storage cannot be reached: {self.trouble}")
        hold = hold or (f"waits to see what pipeline {older}, which is older, makes" if older else "")
        return Observed(
            present=frozenset(self.present),
            attempts={
                stage: [self._attempt(record, accepted, observations, now) for record in self.attempts.of(stage)]
                for stage in accepted.graph.stages
            },
            slots={"cpu": UNLIMITED, "gpu": UNLIMITED},
            suspended=accepted.spec.suspend,
            cancelled=accepted.spec.cancel,
            retry_at=_retry_at(found),
            elsewhere=claims.elsewhere(self.uid, store, missing),
            memory_limits=resources.memory_limits(self.services.config, accepted.spec, accepted.graph),
            hold=hold,
        )

    def _attempt(
        self, record: Record, accepted: Accepted, observations: Mapping[str, observation.AttemptObservation], now: float
    ) -> Attempt:
        outputs = {out.key for out in accepted.graph.node(record.stage).outputs}
        heartbeat = self.heartbeats.get(record.job, (0.0, 0.0))[1]
        return Attempt(
            number=record.number,
            started=record.running_since or record.started,
            device_batch_size=record.device_batch_size,
            ended=record.ended,
            outcome=record.outcome,
            heartbeat=heartbeat,
            stopping=record.decided is not None and record.outcome is None,
            reached=record.reached,
            waiting=observations[record.job].waiting if record.outcome is None and record.job in observations else "",
            stale=not outputs.issuperset(record.keys),
            memory=record.memory,
        )

    def _claim(self, accepted: Accepted, planned: Status) -> None:
        """What this pipeline makes or is about to make, for the others to wait for."""
        active = {item.stage for item in planned.stages if item.phase in ACTIVE}
        needed = required_outputs(accepted.graph, Observed(present=frozenset(self.present)))
        keys = frozenset(out.key for stage, outs in needed.items() if stage in active for out in outs)
        self.claimed = (accepted.profile.root, keys)

    # ---- acting ---------------------------------------------------------------------------------------------

    def _launch(self, accepted: Accepted, action: Start, now: float) -> None:
        assert self.attempts is not None and self.view is not None
        request = jobs.JobRequest(
            uid=self.uid,
            accepted=accepted,
            launch=action,
            run=self.view.paths.root,
            config=self.services.config,
            started=now,
            avoid=self._suspects(action.stage),
        )
        config_map, job = jobs.build(request)
        cluster, meta = self.services.cluster, job["metadata"]
        self.view.artifacts.store.write(
            self.view.paths.plan(action.stage, action.attempt), config_map["data"]["plan.json"].encode()
        )
        if not cluster.create_config_map(config_map):
            # A reconciliation that was cut short left it, maybe for settings that have changed since.
            cluster.delete_config_map(self.namespace, meta["name"])
            if not cluster.create_config_map(config_map):
                raise ClusterError(f"cannot replace ConfigMap {self.namespace}/{meta['name']}")
        if not cluster.create_job(job):
            raise ClusterError(
                f"PyTorchJob {self.namespace}/{meta['name']} exists and is not this pipeline's: delete it"
            )
        self.attempts.adopt(job, self.uid)
        self.attempts.save()
        self._event("Normal", "Started", f"{action.stage} attempt {action.attempt}")

    def _suspects(self, stage: str) -> tuple[str, ...]:
        """Nodes of the last attempt, if it ended in a way that a bad node explains."""
        assert self.attempts is not None
        last = next(iter(reversed(self.attempts.of(stage))), None)
        suspect = last is not None and last.outcome is not None and last.outcome.reason in SUSPECT
        return last.hosts if last is not None and suspect else ()

    def _stop(self, action: Stop, jobs_found: Mapping[str, Object], pods: list[Object], now: float) -> None:
        assert self.attempts is not None
        record = next(r for r in self.attempts.of(action.stage) if r.number == action.attempt)
        reason = Reason.STALLED if action.reason == "stalled" else Reason.PREEMPTED
        message = "no sign of life; it was stopped" if action.reason == "stalled" else action.reason
        decided = Outcome(reason=reason, message=message, time=now)
        record = self.attempts.put(replace(record, stopping=action.reason, decided=decided))
        self._storage(self.attempts.save)  # what was decided outlives this process
        self._event("Normal", "Stopping", f"{action.stage} attempt {action.attempt}: {action.reason}")
        self._end(record, jobs_found.get(record.job), pods)

    def _stop_dropped(
        self, accepted: Accepted, jobs_found: Mapping[str, Object], pods: list[Object], now: float
    ) -> None:
        """Stop attempts of stages that an edit took out of the pipeline."""
        assert self.attempts is not None
        for record in self.attempts.open():
            if record.stage not in accepted.graph.stages and record.decided is None:
                stop = Stop(record.stage, record.number, "edited")
                self._stop(stop, jobs_found, pods, now)

    def _clean(self, accepted: Accepted, jobs_found: Mapping[str, Object], now: float) -> None:
        """Delete the jobs of attempts that are over: at once if they still run, else when their time has passed."""
        assert self.attempts is not None
        ended = {record.job: record for record in self.attempts.all() if record.outcome is not None}
        for name, job in jobs_found.items():
            record = ended.get(name)
            if record is None or job["metadata"].get("deletionTimestamp"):
                continue
            over = now - (record.ended or 0.0) >= accepted.spec.job_ttl_seconds
            if over or not observation.is_finished(job):
                self.services.cluster.delete_job(self.namespace, name)
        for record in ended.values():
            gone = record.job not in jobs_found and not record.cleaned
            if gone:
                self.services.cluster.delete_config_map(self.namespace, record.job)
                self.attempts.put(replace(record, cleaned=True))

    # ---- telling --------------------------------------------------------------------------------------------

    def _keep(self, accepted: Accepted, planned: Status) -> None:
        """Store the records, the declaration and the status, where they changed."""
        assert self.attempts is not None and self.view is not None
        self.attempts.save()
        store, paths = self.view.artifacts.store, self.view.paths
        document = status.document(accepted, planned, self.attempts.all(), self.explanations, self.progress)
        text = json.dumps(document).encode()
        if text != self._stored:
            store.write_json(paths.pipeline, accepted.pipeline.to_yaml_dict())
            store.write(paths.status, text)
            self._stored = text

    def _report(self, found: Object, told: Object) -> None:
        """Patch the object's status where it changed; an Event at each new phase."""
        before = found.get("status") or {}
        if status.same(before, told):
            return
        self.services.cluster.patch_status(self.namespace, self.name, told, uid=self.uid)
        if told.get("phase") != before.get("phase"):
            level = "Warning" if told.get("phase") == Phase.FAILED else "Normal"
            self._event(level, str(told["phase"]), told.get("message") or f"the pipeline is {told['phase']}")
        serving = status.condition(told, status.SERVING)
        if serving is not None and serving != status.condition(before, status.SERVING):
            level = "Warning" if serving[1] in ("Refused", "RolloutFailed") else "Normal"
            self._event(level, serving[1], serving[2])

    def _event(self, level: str, reason: str, message: str) -> None:
        log.info("%s: %s", reason, message)
        reference = {
            "apiVersion": API_VERSION,
            "kind": KIND,
            "namespace": self.namespace,
            "name": self.name,
            "uid": self.uid,
        }
        self.services.events.emit(reference, level, reason, message)

    def _delay(self, planned: Status, now: float) -> float:
        assert self.attempts is not None
        if self.trouble:
            return TROUBLE_SECONDS
        if self.attempts.open():
            return ACTIVE_SECONDS
        ends = [item.until - now for item in planned.stages if item.until is not None]
        waits = any(item.phase in (Phase.WAITING, Phase.QUEUED) for item in planned.stages)
        return max(0.5, min([ARTIFACT_SECONDS if waits else IDLE_SECONDS, *ends]))


def _retry_at(found: Object) -> float:
    """When a retry was asked for; 0 where it never was or the annotation is not a time."""
    text = (found["metadata"].get("annotations") or {}).get(RETRY, "")
    try:
        return datetime.fromisoformat(text).timestamp() if text else 0.0
    except ValueError:
        return 0.0
