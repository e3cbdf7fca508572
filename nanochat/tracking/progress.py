"""The progress of a launch: where its stage stands, for progress bars, status and the heartbeat.

    progress = Progress(store, f"{run}/progress/base", stage="base", launch=launch)
    progress.update(phase="training", step=12, total=400, losses={"loss": 3.2}, rates={"tokens/s": 9800.0})
    progress.close()
    state = read_progress(store, f"{run}/progress/base", launch)

Each launch has a file of its own, so that one that is stopped and the one that follows it never share one. It is
written at most every couple of seconds, in the background and in one piece, and only when the stage reported something:
its time is the time of the last sign of life.
"""

from __future__ import annotations

import logging
import math
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from typing import Any

from nanochat.spec.errors import NanochatError
from nanochat.storage import Store
from nanochat.storage.failures import Damaged
from nanochat.storage.records import Count, Number, Seconds, checked, read_object
from nanochat.tracking.background import Ticker
from nanochat.tracking.dates import Dates

log = logging.getLogger(__name__)

LARGEST = 64 << 10  # bytes
_ETA_WINDOW = 120.0  # seconds of progress that the estimate is made from


@dataclass(frozen=True, slots=True)
class State:
    """Contents of the file."""

    stage: str
    launch: str
    phase: str = ""  # one or two words: "training", "evaluating"
    step: Count = 0
    total: Count | None = None
    rates: Mapping[str, Number] = field(default_factory=dict)  # unit -> value, for example "tokens/s"
    losses: Mapping[str, Number] = field(default_factory=dict)
    eta: Seconds | None = None  # seconds to the end, where it can be told
    time: Seconds = 0.0  # seconds since the epoch
    warnings: tuple[str, ...] = ()  # sentences that people should read: damage that was passed over
    pause: str = ""  # what is done while no step is: "measuring CORE, task 3 of 22"


def read_progress(store: Store, folder: str, launch: str) -> State | None:
    """The state of a launch, by the folder of its stage; None where there is none that makes sense.

    StorageError where it is out of reach.
    """
    for path in (
        _path(folder, launch),
        f"{folder}.json",
    ):  # the latter is from a version before, for all launches of the stage
        with suppress(Damaged, ValueError):
            found = read_object(store, path, LARGEST)
            state = None if found is None else checked(State, found)
            if state is not None and state.launch == launch:
                return state
    return None


def _path(folder: str, launch: str) -> str:
    return f"{folder}/{launch}.json"


class Progress:
    """Writes one launch's progress. `update` returns at once."""

    def __init__(
        self,
        store: Store,
        folder: str,
        *,
        stage: str,
        launch: str,
        enabled: bool = True,
        interval: float = 2.0,
        clock: Callable[[], float] | None = None,
        passed: Callable[[], float] = time.monotonic,
    ) -> None:
        """`folder` is that of the stage under the store's root; `enabled` is False on all ranks but 0."""
        self._store = store
        self._path = _path(folder, launch)
        self._clock, self._passed = clock or Dates(), passed
        self._enabled = enabled
        self._fields: dict[str, Any] = {"stage": stage, "launch": launch}
        self._state = State(stage=stage, launch=launch)
        self._steps: deque[tuple[float, int]] = deque(maxlen=1000)
        self._dirty = False
        self._lock = threading.Lock()
        self._write_lock = threading.Lock()
        self._warned = False
        self._ticker = Ticker(f"progress-{stage}", self.write, lambda: interval) if enabled else None

    @property
    def state(self) -> State:
        """The state as it was reported last."""
        return self._state

    def update(
        self,
        *,
        phase: str | None = None,
        step: int | None = None,
        total: int | None = None,
        rates: Mapping[str, float] | None = None,
        losses: Mapping[str, float] | None = None,
        pause: str | None = None,
    ) -> None:
        """Report progress; what is not given stays. A new phase begins at step 0 of an unknown total. A pause, which
        '' ends, has no rates and no estimate, and those of before are none of the steps after it."""
        if not self._enabled:
            return
        with self._lock:
            now = self._passed()
            if phase is not None and phase != self._fields.get("phase"):
                self._fields.update(phase=phase, step=0, total=None, rates={}, pause="")
                self._steps.clear()
            if pause is not None:
                self._fields.update(pause=pause, rates={})
                self._steps.clear()
            if total is not None:
                self._fields["total"] = int(total)
            if step is not None:
                self._fields["step"] = int(step)
                self._steps.append((now, int(step)))
            if rates is not None:
                self._fields["rates"] = _finite(rates)
            if losses is not None:
                self._fields["losses"] = _finite(losses)
            self._state = State(**self._fields, eta=self._eta(now), time=self._clock())
            self._dirty = True

    def warn(self, sentence: str) -> None:
        """Report something that went wrong and was got over, once; it stays to the launch's end."""
        if not self._enabled or sentence in self._state.warnings:
            return
        with self._lock:
            self._fields["warnings"] = (*self._state.warnings, sentence)
        self.update()

    def write(self) -> None:
        """Write the state if it is new; a failure is warned of once and tried again with the next."""
        with self._write_lock:
            with self._lock:
                state, dirty, self._dirty = self._state, self._dirty, False
            if not dirty:
                return
            try:
                self._store.write_json(self._path, asdict(state))
            except (NanochatError, OSError) as error:
                self._dirty = True
                if not self._warned:
                    log.warning("the progress could not be written: %s", error)
                    self._warned = True

    def close(self) -> None:
        """Write the last state and stop."""
        if self._ticker is not None:
            self._ticker.close()
            self._ticker = None
        self.write()

    def _eta(self, now: float) -> float | None:
        total = self._fields.get("total")
        if total is None or len(self._steps) < 2:
            return None
        while len(self._steps) > 2 and self._steps[0][0] < now - _ETA_WINDOW:
            self._steps.popleft()
        (start, first), (end, last) = self._steps[0], self._steps[-1]
        if last <= first or end <= start:
            return None
        return max(0.0, (total - last) * (end - start) / (last - first))


def _finite(values: Mapping[str, float]) -> dict[str, float]:
    return {name: float(value) for name, value in values.items() if math.isfinite(value)}
