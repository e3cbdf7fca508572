"""Follows the waits of a run's attempts: asks for what only Events tell, and ends what waits for longer than it may.

    observed = waits.follow(cluster, record, observed, now, steady)      # with the outcome where patience is over
    outcome = waits.of_job(name, waiting, now, steady)                   # of a job that could not be created

How long each wait may last stands in `operators.sentences`. It is counted from when this controller saw it first, by a
clock that nobody sets. The API server is asked after some seconds of a wait, and then more and more seldom.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from nanochat.pipeline.outcomes import Outcome
from operators.attempts import JobAttempt
from operators.cluster import Cluster
from operators.objects import Condition
from operators.observation import AttemptObservation
from operators.sentences import End, Wait, Waiting

ASK_SECONDS = 10.0  # before the first question to the API server
MOST_SECONDS = 60.0  # between two of them
VOLUME_REASONS = ("FailedMount", "FailedAttachVolume", "FailedMapVolume")  # of the kubelet's Events


@dataclass(slots=True)
class _Clock:
    """One wait. Times are steady seconds."""

    wait: Wait
    since: float
    ask: float  # when the API server is asked next
    warning: Condition | None = None
    missing: bool = False  # what it waits with: the plan's ConfigMap, the LocalQueue, the training operator


class Waits:
    """The waits of one run, by job."""

    def __init__(self, namespace: str) -> None:
        self._namespace = namespace
        self._clocks: dict[str, _Clock] = {}

    def follow(
        self,
        cluster: Cluster,
        record: JobAttempt,
        observed: AttemptObservation,
        now: float,
        steady: float,
        *,
        spares: bool = False,
    ) -> AttemptObservation:
        """The observation with what Events add to its wait, or with an outcome where it lasted too long; what it
        `spares` it gives up by itself (`operators.elastic`)."""
        if observed.waiting is None:
            self._clocks.pop(record.job, None)
            return observed
        clock = self._clock(record.job, observed.waiting, steady)
        if steady >= clock.ask:
            clock.ask = steady + min(max(ASK_SECONDS, steady - clock.since), MOST_SECONDS)
            self._ask(cluster, record, observed, clock)
        waiting = _with_findings(observed.waiting, clock)
        if waiting.wait is Wait.MOUNT and clock.missing:
            outcome = End.PLAN_DELETED.outcome(time=now, name=record.job, **waiting.values)
        else:
            outcome = None if spares else _given_up(waiting, clock, now, steady)
        return replace(observed, waiting=None if outcome else waiting, outcome=outcome)

    def of_job(self, job: str, waiting: Waiting, now: float, steady: float) -> Outcome | None:
        """The outcome where a job could not be created for too long."""
        return _given_up(waiting, self._clock(job, waiting, steady), now, steady)

    def _clock(self, job: str, waiting: Waiting, steady: float) -> _Clock:
        known = self._clocks.get(job)
        if known is None or known.wait is not waiting.wait:
            known = self._clocks[job] = _Clock(waiting.wait, steady, steady + ASK_SECONDS)
        return known

    def _ask(self, cluster: Cluster, record: JobAttempt, observed: AttemptObservation, clock: _Clock) -> None:
        if clock.wait is Wait.QUEUE and observed.waiting is not None:
            clock.missing = not cluster.has_queue(self._namespace, str(observed.waiting.values["queue"]))
        if clock.wait is Wait.OPERATOR:
            clock.missing = True  # where it runs it takes a job up within a second
        if clock.wait in (Wait.PODS, Wait.STARTING):
            clock.warning = cluster.warning(self._namespace, observed.about)
        if clock.wait is Wait.STARTING:
            mounts = clock.warning is not None and clock.warning.reason in VOLUME_REASONS
            clock.missing = mounts and not cluster.has_config_map(self._namespace, record.job)


def _with_findings(waiting: Waiting, clock: _Clock) -> Waiting:
    """The wait as what was found out about it makes it."""
    warning, values = clock.warning, waiting.values
    if waiting.wait is Wait.QUEUE and clock.missing:
        return Wait.NO_QUEUE.of(**values)
    if waiting.wait is Wait.OPERATOR and clock.missing:
        return Wait.NO_OPERATOR.of()
    if warning is None:
        return waiting
    if waiting.wait is Wait.PODS:
        return Wait.PODS_REFUSED.of(why=warning.text)
    wait = Wait.MOUNT if warning.reason in VOLUME_REASONS else Wait.NODE
    return wait.of(**values, kind=warning.reason, why=warning.text)


def _given_up(waiting: Waiting, clock: _Clock, now: float, steady: float) -> Outcome | None:
    patience = waiting.wait.patience
    return waiting.given_up(now) if patience is not None and steady - clock.since >= patience else None
