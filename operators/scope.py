"""The scope of one reconciliation: what it works on, and what it has found out so far.

    scope = Scope(services, ready, found, refused, now, steady, event)
    if scope.storage(lambda: ready.attempts.save()): ...

The functions of `operators.reconciliation`, `operators.sharing` and `operators.actions` take it.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Protocol

from nanochat.spec.errors import StorageError
from operators import metrics, status
from operators.claimants import Want
from operators.index import Owned
from operators.kube_error import Object
from operators.kueue import Queues
from operators.observation import AttemptObservation
from operators.run_state import Ready
from operators.services import Services

log = logging.getLogger(__name__)


class EventOf(Protocol):
    """Emits an Event about the pipeline."""

    def __call__(self, level: str, reason: str, message: str) -> None: ...


@dataclass(slots=True)
class Scope:
    """A single pass over a pipeline that is ready. `refused` says why a change of the declaration was not accepted; of
    `now`, seconds since 1970, the clock may be set, of `steady` not."""

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
    observations: dict[str, AttemptObservation] = field(default_factory=dict)  # by job
    elsewhere: Mapping[str, str] = field(default_factory=dict)  # missing key -> who makes it, for whom it waits
    wants: dict[str, Want] = field(default_factory=dict)  # stage that could start, but waits for that -> its keys

    @property
    def namespace(self) -> str:
        """The pipeline's namespace."""
        return self.found["metadata"]["namespace"]

    @property
    def is_news(self) -> bool:
        """Whether the declaration is another than the one that the status tells of."""
        return (self.found.get("status") or {}).get("observedGeneration") != self.found["metadata"]["generation"]

    @property
    def is_retried(self) -> bool:
        """Whether a retry is asked for that was not carried out yet."""
        asked = status.retry_asked(self.found)
        return bool(asked) and asked != (self.found.get("status") or {}).get("retriedAt")

    def storage(self, operation: Callable[[], object]) -> bool:
        """Do something that needs storage, unless it was found out of reach in this pass; whether it was done."""
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
