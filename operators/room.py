"""Room for elastic stages (`operators.elastic`): attempts give up nodes that they wait for in vain, and take them back.

    adapt(scope)

Whether there is room for more nodes only the scheduler and Kueue know. So they are asked by a second job, which does
nothing: its pods are as many as nodes are missing, of the attempt's shape, and spread over nodes with those of the
attempt. A cluster that grows by itself does so for them. Once they are placed the attempt saves a checkpoint and stops,
and the next one takes their place.

Which jobs are there the API server tells, and what follows a stop is in its record, so that a controller may be killed
at any instant; patience then begins anew.
"""

from __future__ import annotations

from dataclasses import replace

from nanochat.pipeline.planner import RESIZED, Start, Stop
from operators import actions, observation
from operators.attempts import JobAttempt, is_room
from operators.elastic import QUEUED, ROOM, Elastic, Room
from operators.job_backend import JobRequest
from operators.kube_error import KubeError
from operators.scope import Scope


def adapt(scope: Scope) -> None:
    """Stop the attempts that are to have another number of nodes, and hold room for those that are to grow."""
    ready, needed, jobs = scope.ready, set[str](), scope.owned.jobs
    running = {record.job for record in ready.attempts.open()} | jobs.keys()
    ready.lacking = {name: since for name, since in ready.lacking.items() if name in running}
    ready.held = {name: since for name, since in ready.held.items() if name in running}
    for record in ready.attempts.open():
        stage = ready.elastic(record)
        if stage is None:
            continue
        wanted = _wanted(scope, record, stage)
        room = _room(scope, record, wanted.name)
        if record.decided is None and not (scope.refused or scope.trouble):  # else nothing would follow
            record = _resize(scope, record, stage, stage.resized(room))
        grows = record.resize > record.nodes or (record.decided is None and _may_grow(scope, record, stage))
        old = wanted.name in jobs and jobs[wanted.name].ended and room.free_for >= stage.patience
        if grows and not old:
            needed.add(wanted.name)
            if wanted.name not in jobs and record.decided is None:
                _hold(scope, wanted)
    for name, job in jobs.items():
        if is_room(name) and name not in needed and not job.meta.deleting:
            scope.services.backend.delete(job)


def _wanted(scope: Scope, record: JobAttempt, stage: Elastic) -> JobRequest:
    """The job that holds room for the nodes that an attempt lacks."""
    lacking = stage.most - record.nodes
    launch = Start(record.stage, record.number, (), record.device_batch_size, record.memory, nodes=lacking)
    return replace(actions.request(scope, launch), beside=record.job)


def _room(scope: Scope, record: JobAttempt, name: str) -> Room:
    """The room that an attempt has found, and the job of this name for it."""
    ready, steady, observed = scope.ready, scope.steady, scope.observations[record.job]
    waiting, job = observed.waiting, scope.owned.jobs.get(name)
    if waiting is not None and waiting.wait in ROOM and observed.placed < record.nodes:
        since = ready.lacking.setdefault(record.job, steady)
        return Room(record.nodes, observed.placed, steady - since, waiting.wait in QUEUED)
    ready.lacking.pop(record.job, None)
    if waiting is not None or job is None:
        return Room(record.nodes)
    free = observation.placed(pod for pod in scope.owned.pods if pod.maker == job.meta.uid)
    known, since = ready.held.get(name, (free, steady))
    ready.held[name] = free, since if known == free else steady
    return Room(record.nodes, free=free, free_for=steady - ready.held[name][1])


def _resize(scope: Scope, record: JobAttempt, stage: Elastic, nodes: int | None) -> JobAttempt:
    """Replace an attempt by one with another number of nodes, if there is one."""
    if nodes is None:
        return record
    attempts = scope.ready.attempts
    attempts.put(replace(record, resize=nodes))
    actions.stop(scope, Stop(record.stage, record.number, RESIZED), stage.reason(record, nodes))
    return attempts.get(record.stage, record.number)


def _may_grow(scope: Scope, record: JobAttempt, stage: Elastic) -> bool:
    """Whether an attempt could do with more nodes, and has run for long enough for the one before not to be in vain."""
    begun = record.running_since is not None and scope.ready.heartbeat(record, scope.steady).begun
    return begun and record.nodes < stage.most and record.ran(scope.now) >= stage.patience


def _hold(scope: Scope, wanted: JobRequest) -> None:
    """Ask for room. Where the API server refuses that the attempt goes on as it is."""
    index, backend = scope.services.index, scope.services.backend
    try:
        # The answer to an earlier request may have been lost: the job exists, and the index tells of none.
        job = index.job(scope.namespace, scope.ready.uid, wanted.name) or backend.create(wanted)
        if job is None:
            name = f"{backend.resource.kind} {scope.namespace}/{wanted.name}"
            raise KubeError(f"{name} exists and is not this pipeline's: delete it", status=409)
        index.jobs.put(job)
    except KubeError as error:
        if error.status == 0:  # no answer came
            raise
        scope.event("Warning", "RoomRefused", f"{wanted.launch.stage} cannot ask for more nodes: {error.said}")
