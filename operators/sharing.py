"""One pipeline at the table of claims (`operators.claims`): what it takes, for what it waits, when it makes room.

sharing.take(scope, starts)               # before anything is started: whether others make some of it
sharing.settle(scope)                     # at the end of the pass
for record, why in sharing.yielding(scope): ...
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import replace

from nanochat.pipeline.planner import Start
from operators import resources
from operators.attempts import JobAttempt
from operators.claimants import Claimant, Want
from operators.scope import Scope


def take(scope: Scope, starts: Sequence[Start]) -> bool:
    """Take the keys of what would be started; whether another pipeline makes some of them."""
    known = len(scope.elsewhere)
    for start in starts:
        want = _want(scope, start.stage, [out.key for out in start.outputs])
        waits = scope.services.claims.take(_claimant(scope), want, scope.steady)
        if waits:
            scope.elsewhere, scope.wants[start.stage] = {**scope.elsewhere, **waits}, want
    return len(scope.elsewhere) > known


def settle(scope: Scope) -> None:
    """Tell the others what this pipeline makes now, and for what it waits."""
    running = [
        record
        for record in scope.ready.attempts.open()
        if not (record.job in scope.observations and scope.observations[record.job].clear)
    ]
    making = {key for record in running for key in record.keys}
    runs = any(record.running_since is not None for record in running)
    scope.services.claims.settle(_claimant(scope), making, list(scope.wants.values()), runs=runs)


def yielding(scope: Scope) -> Iterator[tuple[JobAttempt, str]]:
    """The attempts that do not get to run while another pipeline waits for what they make, and why they do not."""
    ready, stuck = scope.ready, dict[str, float]()
    for record in ready.attempts.open():
        observed, job = scope.observations[record.job], scope.owned.jobs.get(record.job)
        known = record.decided is None and record.stage in ready.accepted.graph.stages
        if not (known and observed.is_stuck and observed.waiting):
            continue
        stuck[record.job] = since = ready.stuck.get(record.job, scope.steady)
        want = _want(scope, record.stage, record.keys)
        if job is None or not job.suspended:  # it was admitted: another may well gain by its place
            want = replace(want, place=None)
        if scope.services.claims.yield_to(_claimant(scope), want, scope.steady - since):
            yield record, observed.waiting.message
    ready.stuck = stuck


def _want(scope: Scope, stage: str, keys: Collection[str]) -> Want:
    spec, place = scope.ready.accepted.spec, None
    if spec.queue:
        settings = resources.pod_settings(scope.services.config, spec, stage)
        place = (scope.namespace, spec.queue, spec.priority, resources.nodes(spec, stage), settings.model_dump_json())
    return Want(frozenset(keys), place)


def _claimant(scope: Scope) -> Claimant:
    """This pipeline, as the others meet it."""
    accepted = scope.ready.accepted
    return Claimant.of(scope.found, root=accepted.profile.root, profile=accepted.spec.store)
