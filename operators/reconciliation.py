"""One reconciliation of a pipeline that is ready: observe, plan, act. What it did is told by `operators.reconciler`.

    planned = reconcile(Scope(services, ready, found, refused, now, steady, event))

What is done about attempts is in `operators.actions`, what is agreed with other pipelines in `operators.sharing`.
"""

from __future__ import annotations

import time
from dataclasses import replace

from nanochat.pipeline.attempts import confirmed
from nanochat.pipeline.outcomes import Outcome, Reason
from nanochat.pipeline.planner import MADE, YIELDED, Action, Attempt, Observed, Phase, Start, Status, Stop, plan
from nanochat.pipeline.run_status import RunStatus
from nanochat.pipeline.spending import Spending, check_budget, is_spent
from nanochat.spec.pods import hide_values
from nanochat.tracking.rest import light_registry
from operators import actions, metrics, observation, resources, room, sharing, status
from operators.attempts import JobAttempt
from operators.elastic import Elastic
from operators.index import Owned
from operators.scope import Scope
from operators.suspicion import blame

ARTIFACT_SECONDS = 30.0  # between looks for artifacts that others may have made
UNLIMITED = 1 << 30  # stages side by side: the cluster's scheduler and quotas decide


def reconcile(scope: Scope) -> Status:
    """Observe, plan and act; returns where the pipeline stands."""
    ready = scope.ready
    _observe(scope)
    for record, why in sharing.yielding(scope):
        actions.stop(scope, Stop(record.stage, record.number, YIELDED), f"it could not start: {why}")
    room.adapt(scope)
    decided, planned = _plan_held(scope)
    ready.phase = planned.phase
    starts = {action.stage for action in decided if isinstance(action, Start)}
    told = ready.refusals
    ready.refusals = {stage: why for stage, why in told.items() if stage in starts}
    for action in decided:
        if isinstance(action, Stop):
            actions.stop(scope, action)
        else:
            scope.storage(lambda action=action: actions.begin(scope, action))
    if ready.refusals or told:
        _, planned = plan(ready.accepted.graph, ready.accepted.spec, _observed(scope), scope.now)
    _stop_dropped(scope)
    actions.clean(scope)
    sharing.settle(scope)
    planned = ready.outputs.remarked(planned)
    scope.storage(lambda: _keep(scope, planned))
    return planned


def is_over(scope: Scope, planned: Status) -> bool:
    """Whether nothing is left to do before something about the pipeline is new; ended jobs may be left."""
    suspended = planned.phase is Phase.SUSPENDED and not (scope.owned.jobs or scope.owned.pods)
    ended = planned.phase in status.DONE or suspended
    untidy = any(not record.cleaned and record.job not in scope.owned.jobs for record in scope.ready.attempts.all())
    return ended and not (untidy or scope.trouble or scope.refused or scope.ready.attempts.open())


# ---- observing -------------------------------------------------------------------------------------------------------


def _observe(scope: Scope) -> None:
    ready = scope.ready
    _look(scope)
    for record in ready.attempts.open():
        _take_in(scope, record)
    _take_retry(scope)
    scope.storage(lambda: _find_outputs(scope))
    for record in ready.attempts.open():
        scope.storage(lambda record=record: ready.outputs.look(record.keys))
    for record in ready.attempts.open():
        told = scope.storage(lambda record=record: ready.take_progress(record, scope.steady))
        if not told or record.running_since is None:
            ready.excuse_silence(record, scope.steady)


def _take_retry(scope: Scope) -> None:
    """Where a retry is asked for, the attempts that have ended count no more, and all outputs are looked for."""
    ready = scope.ready
    if scope.is_retried:
        ready.attempts.retire()
        ready.outputs.forget()
        ready.looked = 0.0
        scope.storage(ready.outputs.set_damaged_aside)
        scope.storage(ready.attempts.save)


def _look(scope: Scope) -> None:
    """Jobs, pods and the observations of all attempts that run.

    News in the index is looked at again in the API server, for only there jobs and pods are in step.
    """
    index, ready = scope.services.index, scope.ready
    _take_owned(scope, index.owned(scope.namespace, ready.uid))
    running = ready.attempts.open()
    if any(observation.has_news(record, scope.observations[record.job], scope.now) for record in running):
        _take_owned(scope, index.read(scope.namespace, ready.uid, running))
    for remark in ready.attempts.take_remarks():
        scope.event("Warning", "RecordSetAside", remark)
    for record in ready.attempts.open():
        observed = scope.observations[record.job]
        elastic = ready.elastic(record)
        spares = elastic is not None and elastic.spares(record, observed)
        scope.observations[record.job] = ready.waits.follow(
            scope.services.cluster, record, observed, scope.now, scope.steady, spares=spares
        )


def _take_owned(scope: Scope, owned: Owned) -> None:
    """Adopt jobs that have no record yet, and observe all attempts that run."""
    for job in owned.jobs.values():
        scope.ready.attempts.adopt(job, scope.ready.accepted.graph)
        record = next((r for r in scope.ready.attempts.open() if r.job == job.meta.name), None)
        if record is not None and record.job_uid != job.meta.uid:
            scope.ready.attempts.put(replace(record, job_uid=job.meta.uid))
    if any(job.queue for job in owned.jobs.values()):
        scope.queues = scope.services.index.queues(scope.namespace)
    scope.owned = owned
    scope.observations = {
        record.job: observation.observe(
            record, owned.jobs.get(record.job), owned.pods_of(record), scope.now, scope.queues
        )
        for record in scope.ready.attempts.open()
    }


def _take_in(scope: Scope, record: JobAttempt) -> None:
    """Take in what was seen of an attempt; end it when it is over and nothing of it can still run."""
    observed = scope.observations[record.job]
    record = scope.ready.attempts.put(observation.updated(record, observed, scope.now))
    decided = record.decided or observed.outcome
    if decided is None:
        return
    if observed.clear:
        scope.storage(lambda: _conclude(scope, record, decided))
    else:
        actions.delete(scope, scope.ready.attempts.put(replace(record, decided=decided)))


def _conclude(scope: Scope, record: JobAttempt, outcome: Outcome) -> None:
    """Record how an attempt ended. Reads storage first: where that fails, the next reconciliation does it."""
    ready, outputs, keys = scope.ready, scope.ready.outputs, set(record.keys)
    outputs.refresh(out for node in ready.accepted.graph.nodes for out in node.outputs if out.key in keys)
    made_all = bool(keys) and keys <= outputs.present
    if record.stopping != MADE:
        outcome = Outcome(reason=Reason.SUCCEEDED) if made_all else confirmed(outcome, made_all=False)
    if outcome.reason is not Reason.SUCCEEDED and record.stage in ready.accepted.graph.stages:
        outputs.recheck_inputs(record.stage)
    before = ready.attempts.reached(record.stage, before=record.number)
    reached = outputs.reached(record.stage, record.keys, before=before)
    ready.take_progress(record, scope.steady)
    state = ready.progress.get(record.stage)
    ended = record.end(outcome, reached=reached, now=scope.now, before=before, step=state.step if state else 0)
    against = record.blame if outcome.reason is Reason.STALLED else blame(record, outcome, ())
    record = ready.attempts.put(replace(ended, blame=against))
    metrics.attempt_ended(record, outcome)
    level = "Normal" if outcome.reason in (Reason.SUCCEEDED, Reason.PREEMPTED) else "Warning"
    scope.event(level, str(outcome.reason), f"{record.stage} attempt {record.number}: {outcome.message or 'ended'}")
    ready.looked = 0.0
    if against:
        suspicion = scope.services.suspicion
        suspicion.learn(ready.uid, ready.attempts.all())
        scores = suspicion.scores(scope.now)
        said = ", ".join(f"{node} ({scores.get(node, 0.0):g})" for node in against)
        scope.event("Warning", "NodeSuspected", f"{record.stage} attempt {record.number} speaks against {said}")


def _find_outputs(scope: Scope) -> None:
    ready = scope.ready
    if ready.looked and scope.steady - ready.looked < ARTIFACT_SECONDS:
        return
    since = scope.services.leases.since(ready.store, ready.paths.root) or 0.0
    since = time.monotonic() if scope.is_retried else since
    ready.outputs.refresh(since=since)
    if ready.looked == 0.0:
        done = (scope.found.get("status") or {}).get("phase") in status.DONE
        if scope.is_news or scope.is_retried or not done:  # what was released long ago is left as it is
            ready.outputs.forget_outdated(since=since)
            ready.outputs.check_release(light_registry(ready.accepted.profile.tracking or ""))
        ready.outputs.explain()
    ready.looked = scope.steady


# ---- planning --------------------------------------------------------------------------------------------------------


def _plan_held(scope: Scope) -> tuple[list[Action], Status]:
    """Plan, with the run named in the store's lease unless it has ended: what it needs is then not removed."""
    leases, store, run = scope.services.leases, scope.ready.store, scope.ready.paths.root
    decided, planned = _plan(scope)
    if planned.phase in status.DONE:
        leases.let_go(store, run)
    elif leases.since(store, run) is None and scope.storage(lambda: leases.hold(store, run)):
        scope.ready.looked = 0.0  # what was seen before may be gone
        scope.ready.outputs.present.clear()
        scope.storage(lambda: _find_outputs(scope))
        decided, planned = _plan(scope)
    return decided, planned


def _plan(scope: Scope) -> tuple[list[Action], Status]:
    """Plan, claim what would be made, and then look for it: another may have made it since the last look."""
    accepted, outputs = scope.ready.accepted, scope.ready.outputs
    scope.elsewhere, scope.wants = {}, {}
    while True:
        decided, planned = plan(accepted.graph, accepted.spec, _observed(scope), scope.now)
        starts = [action for action in decided if isinstance(action, Start)]
        if sharing.take(scope, starts):
            continue
        wanted, known = [out for start in starts for out in start.outputs], len(outputs.present)
        scope.storage(lambda wanted=wanted: outputs.refresh(wanted))
        if len(outputs.present) == known:
            return decided, planned


def _observed(scope: Scope) -> Observed:
    accepted, outputs = scope.ready.accepted, scope.ready.outputs
    hold = scope.refused and f"the change was refused: {scope.refused}"
    hold = hold or (scope.trouble and f"waits for storage: {scope.trouble}")
    made = _made(scope)
    spec = accepted.spec
    spent = check_budget(spec.budget, Spending.of(scope.ready.attempts.all(), spec.cost.gpu_hour, scope.now))
    return Observed(
        present=frozenset(outputs.present) | (made if scope.trouble else frozenset()),  # unseen is not gone
        made=made,
        attempts={
            stage: [_attempt(scope, record) for record in scope.ready.attempts.of(stage)]
            for stage in accepted.graph.stages
        },
        slots={"cpu": UNLIMITED, "gpu": UNLIMITED},
        suspended=spec.suspend or is_spent(spent),
        because=spent if is_spent(spent) and not spec.suspend else None,
        cancelled=spec.cancel,
        elsewhere=scope.elsewhere,
        memory_limits=resources.memory_limits(scope.services.config, spec, accepted.graph),
        hold=hold,
        refusals=scope.ready.refusals,
        nodes={
            stage: elastic.next_nodes(scope.ready.attempts.last(stage))
            for stage in accepted.graph.stages
            if (elastic := Elastic.of(spec, stage))
        },
    )


def _made(scope: Scope) -> frozenset[str]:
    """The keys that the run had made when it ended, by the status; none where it is to go on."""
    told = scope.found.get("status") or {}
    if told.get("phase") not in status.DONE or scope.is_news or scope.is_retried:
        return frozenset()
    stages = [item for item in told.get("stages") or () if item["phase"] in (Phase.SUCCEEDED, Phase.CACHED)]
    return frozenset(key for item in stages for key in (item.get("keys") or {}).values())


def _attempt(scope: Scope, record: JobAttempt) -> Attempt:
    """An attempt as the planner sees it: its silence counts from when its pods began to run."""
    outputs = {out.key for out in scope.ready.accepted.graph.node(record.stage).outputs}
    observed = scope.observations.get(record.job)
    runs = record.outcome is None
    waiting = observed.waiting if runs and observed else None
    elastic = scope.ready.elastic(record) if runs else None
    heartbeat = scope.ready.heartbeat(record, scope.steady) if runs else None
    return record.observed(
        silence=scope.steady - heartbeat.heard if heartbeat else 0.0,
        begun=heartbeat is None or heartbeat.begun,
        stopping=runs and record.decided is not None,
        waiting=elastic.told(record, observed) if elastic and observed else waiting,
        remark=elastic.remark(record) if elastic else None,
        stale=not outputs.issuperset(record.keys) or (runs and _is_outdated(scope, record)),
        made=runs and scope.ready.outputs.others_made(record.keys, record.launches),
    )


def _is_outdated(scope: Scope, record: JobAttempt) -> bool:
    """Whether an attempt does not get to run, and would be another one by now: an edit may be what mends it."""
    observed, node = scope.observations.get(record.job), scope.ready.accepted.graph.node(record.stage)
    if not record.form or observed is None or not observed.is_stuck:
        return False
    outputs = tuple(out for out in node.outputs if out.key in record.keys)
    elastic = scope.ready.elastic(record)
    nodes = elastic.within(record.nodes) if elastic else None
    start = Start(record.stage, record.number, outputs, record.device_batch_size, record.memory, nodes)
    return scope.services.backend.form(actions.request(scope, start)) != record.form


# ---- acting ----------------------------------------------------------------------------------------------------------


def _stop_dropped(scope: Scope) -> None:
    """Stop attempts of stages that an edit took out of the pipeline."""
    for record in scope.ready.attempts.open():
        if record.stage not in scope.ready.accepted.graph.stages and record.decided is None:
            actions.stop(scope, Stop(record.stage, record.number, "edited"))


def _keep(scope: Scope, planned: Status) -> None:
    """Store the records, the declaration and the status, where they changed."""
    ready = scope.ready
    ready.attempts.save()
    pipeline, graph, records = ready.accepted.pipeline, ready.accepted.graph, ready.attempts.all()
    document = RunStatus.of(pipeline, graph, planned, ready.outputs.explanations, ready.progress, records)
    if ready.status_file.differs(document):
        ready.store.write_json(ready.paths.pipeline, hide_values(pipeline.to_yaml_dict()))
        ready.status_file.write(document)
