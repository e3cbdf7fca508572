"""Carries out what was decided about attempts: begins them, stops them, deletes what is left of them.

    actions.begin(scope, start)
    actions.stop(scope, stop)
    actions.clean(scope)

The order makes that a controller may be killed at any instant: the plan is stored and the job created before an attempt
is recorded, and a job without a record is adopted by its annotation.
"""

from __future__ import annotations

from dataclasses import replace

from nanochat.pipeline.outcomes import Outcome, Reason
from nanochat.pipeline.planner import Start, Stop
from nanochat.pipeline.standstill import Standstill, named_ranks, read_standstill
from operators import observation, pod_template
from operators.attempts import JobAttempt
from operators.job_backend import JobRequest
from operators.kube_error import KubeError
from operators.scope import Scope
from operators.sentences import End, Wait
from operators.suspicion import blame

STALLED_GRACE = 1  # seconds: a rank that is stopped saves nothing
DELETED_AT_ONCE = 20  # attempts that are tidied in one pass


def request(scope: Scope, launch: Start) -> JobRequest:
    """All that the objects of an attempt are built from."""
    ready, services = scope.ready, scope.services
    return JobRequest(
        uid=ready.uid,
        accepted=ready.accepted,
        launch=launch,
        run=ready.paths.root,
        config=services.config,
        started=scope.now,
        avoid=services.suspicion.scores(scope.now),
    )


def begin(scope: Scope, action: Start) -> None:
    """Start an attempt. Where the API server refuses its objects that is a wait, which ends like any other."""
    ready = scope.ready
    try:
        _start(scope, action)
        ready.refusals.pop(action.stage, None)
    except KubeError as error:
        if error.status == 0:  # no answer came
            raise
        kind, name = scope.services.backend.resource.plural, request(scope, action).name
        wait = Wait.NO_JOBS if error.is_unserved else Wait.NO_JOB if error.is_passing else Wait.JOB_REFUSED
        waiting = wait.of(kind=kind, why=error.said)
        ready.refusals[action.stage] = waiting
        outcome = ready.waits.of_job(name, waiting, scope.now, scope.steady)
        if outcome is not None:
            record = JobAttempt(stage=action.stage, number=action.attempt, started=scope.now)
            ready.attempts.put(record.end(outcome, reached=0, now=scope.now))
            del ready.refusals[action.stage]


def _start(scope: Scope, action: Start) -> None:
    ready, services = scope.ready, scope.services
    wanted = request(scope, action)
    # The answer to an earlier request may have been lost, or the label: the job exists, and the index tells of none.
    job = services.index.job(scope.namespace, ready.uid, wanted.name)
    if job is not None:
        ready.attempts.adopt(job, ready.accepted.graph)
        return
    backend, job_plan = services.backend, pod_template.plan_of(wanted)
    ready.store.write(ready.paths.plan(action.stage, action.attempt), job_plan.encode())
    # A reconciliation that was cut short may have left another, for settings that have changed since.
    services.cluster.replace_config_map(pod_template.build_config_map(wanted, job_plan), owner=ready.uid)
    try:
        job = backend.create(wanted)
    except KubeError as error:
        if not error.is_passing:  # there is no job; without an answer there may be one
            services.claims.refuse(ready.uid, [out.key for out in action.outputs])
        raise
    if job is None:
        services.claims.refuse(ready.uid, [out.key for out in action.outputs])
        name = f"{backend.resource.kind} {scope.namespace}/{wanted.name}"
        raise KubeError(f"{name} exists and is not this pipeline's: delete it", status=409)
    services.index.jobs.put(job)
    ready.attempts.adopt(job, ready.accepted.graph)
    ready.attempts.save()
    ready.progress.pop(action.stage, None)  # of the attempt before
    scope.event("Normal", "Started", f"{action.stage} attempt {action.attempt}")


def stop(scope: Scope, action: Stop, message: str = "") -> None:
    """Decide how an attempt will have ended, and end it."""
    attempts = scope.ready.attempts
    record = attempts.get(action.stage, action.attempt)
    decided = Outcome(Reason.PREEMPTED, message or action.reason)
    if action.reason == "stalled":
        own, stood = [pod for pod in scope.owned.pods if pod.job == record.job], _who_stood(scope, record)
        decided = End.STALLED_ON.outcome(ranks=", ".join(stood.values())) if stood else End.STALLED.outcome()
        decided = observation.lost_node(own, scope.now) or decided
        silent = scope.steady - scope.ready.heartbeat(record, scope.steady).heard
        record = replace(record, blame=blame(record, decided, list(stood)), silent=max(0.0, silent))
    record = attempts.put(replace(record, stopping=action.reason, decided=replace(decided, time=scope.now)))
    scope.storage(attempts.save)  # what was decided outlives this process
    scope.event("Normal", "Stopping", f"{action.stage} attempt {action.attempt}: {action.reason}")
    delete(scope, record)


def _who_stood(scope: Scope, record: JobAttempt) -> dict[str, str]:
    """The ranks of a silent attempt for which the others wait, by node; none where that is not known."""
    ready, seen = scope.ready, dict[str, Standstill]()

    def read() -> None:
        for index, uid in record.pods.items():
            path = ready.paths.standstill(record.stage, record.launch_of(uid))
            seen[index] = read_standstill(ready.store, path)

    alone = len(record.pods) == 1  # then the others are on the same node
    if not scope.storage(read) or not any(each.waits or (alone and each.waiting) for each in seen.values()):
        return {}
    stood = {record.placement.get(index, ""): each.standing for index, each in seen.items() if not each.waits}
    return {node: f"{named_ranks(stood[node])} on {node}" for node in sorted(stood) if node}


def delete(scope: Scope, record: JobAttempt) -> None:
    """Delete what is left of an attempt that is over.

    A stalled one's pods go first, and by our hand alone: whoever deletes a pod first sets its grace, and others
    would give it that of a stop, in which its node is held. Where this process ends in between, the next one goes
    on with it.
    """
    cluster, job = scope.services.cluster, scope.owned.jobs.get(record.job)
    stalled = record.stopping == "stalled"
    if stalled and job is not None and not job.meta.deleting:
        scope.services.backend.keep_pods(job)
    for pod in scope.owned.pods_of(record):
        if stalled and not (pod.meta.deleting and pod.meta.grace <= STALLED_GRACE):
            cluster.delete_pod(pod, grace=STALLED_GRACE)
        elif job is None and not pod.meta.deleting:
            cluster.delete_pod(pod)
    if job is not None and not job.meta.deleting:
        scope.services.backend.delete(job)


def clean(scope: Scope) -> None:
    """Delete the jobs of attempts that are over: at once if they still run, else when their time has passed."""
    ready, jobs, asked = scope.ready, scope.owned.jobs, 0
    for record in ready.attempts.all():
        if record.outcome is None or record.cleaned or asked == DELETED_AT_ONCE:
            continue
        job = jobs.get(record.job) or scope.services.index.job(scope.namespace, ready.uid, record.job)
        if job is None:
            scope.services.cluster.delete_config_map(scope.namespace, record.job, owner=ready.uid)
            ready.attempts.put(replace(record, cleaned=True))
            asked += 1
        elif not job.meta.deleting:
            over = scope.now - (record.ended or 0.0) >= ready.accepted.spec.job_ttl_seconds
            if over or not job.ended:
                scope.services.backend.delete(job)
                asked += 1
