"""The journal: what a run measured, by stage, launch and step. It is the truth that reports and MLflow are made from.

Rank 0 of a launch writes pieces of JSON lines, `<run>/metrics/<stage>/<launch>/<n>.jsonl`, each written once and
never changed, every few seconds and at the end, so that a folder and S3 are used alike:

    journal = Journal(store, run, stage="base", launch=launch)
    journal.metrics(12, {"train/loss": 3.2, "train/tokens_per_second": 9800.0})
    journal.event("divergence", step=12, message="the loss is not finite")
    journal.flush()     # before a checkpoint is saved: no metric of a step that is not run again is ever lost
    journal.close()

`JournalReader(store, run).history("base")` merges the launches of a stage into its final lineage: a launch that
resumed at a checkpoint replaces what earlier launches wrote from its first step on.
"""

from __future__ import annotations

import json
import logging
import math
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

from pydantic import TypeAdapter

from nanochat.parse.json_text import read_json
from nanochat.spec.errors import NanochatError
from nanochat.storage import Store
from nanochat.storage.failures import Damaged
from nanochat.storage.records import Count, Seconds
from nanochat.tracking.background import Ticker
from nanochat.tracking.dates import Dates

log = logging.getLogger(__name__)

PIECE = 16 << 20  # bytes of a piece that are read at most;
PIECE_LINES = 20_000  # that are written, of some hundred bytes each
MOST_PIECES = 20_000  # of a stage
_TIME, _COUNT, _VALUES = TypeAdapter(Seconds), TypeAdapter(Count), TypeAdapter(dict[str, float])
_DATA = TypeAdapter(dict[str, Any])


@dataclass(frozen=True, slots=True)
class Point:
    """One value of one metric."""

    step: int
    time: float  # seconds since the epoch
    value: float  # may be NaN or infinite: a diverged loss is worth knowing


@dataclass(frozen=True, slots=True)
class Event:
    """Something that happened, in words."""

    kind: str
    step: int | None
    time: float
    launch: str
    message: str
    data: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class History:
    """The final lineage of a stage: each metric's points by rising step, and all launches' events by time."""

    metrics: Mapping[str, tuple[Point, ...]]
    events: tuple[Event, ...]
    launches: tuple[str, ...]  # in the order in which they began
    seconds: float = 0.0  # from each launch's first record to its last, added up

    def last(self, name: str) -> float | None:
        """The last value of a metric."""
        points = self.metrics.get(name)
        return points[-1].value if points else None


def folder_of(run: str, stage: str, launch: str = "") -> str:
    """Where the journal of a stage, or of one of its launches, is under the store's root."""
    return f"{run}/metrics/{stage}/{launch}" if launch else f"{run}/metrics/{stage}"


class Journal:
    """Writes one launch's metrics and events. All calls return at once but `flush` and `close`, which write."""

    def __init__(
        self,
        store: Store,
        run: str,
        *,
        stage: str,
        launch: str,
        enabled: bool = True,
        interval: float = 5.0,
        clock: Callable[[], float] | None = None,
    ) -> None:
        """`enabled` is False on all ranks but 0: then nothing is written. `interval` is in seconds."""
        self._store = store
        self._folder = folder_of(run, stage, launch)
        self._launch = launch
        self._enabled = enabled
        self._clock = clock or Dates()
        self._began = time.monotonic()
        self._lines: list[str] = []
        self._pieces = 0
        self._lines_lock = threading.Lock()
        self._write_lock = threading.Lock()
        self._warned = False
        # A long run's pieces come less often (after 3 hours every 108 s), so that there are hundreds, not thousands.
        self._ticker = (
            Ticker(f"journal-{stage}", self._try_flush, lambda: max(interval, 0.01 * (time.monotonic() - self._began)))
            if enabled
            else None
        )

    def metrics(self, step: int, values: Mapping[str, float]) -> None:
        """Record the values of a step."""
        numbers = {name: _to_json(float(value)) for name, value in values.items()}
        self._append({"step": int(step), "time": self._clock(), "metrics": numbers})

    def event(self, kind: str, *, step: int | None = None, message: str = "", **data: Any) -> None:
        """Record that something happened; `data` must be JSON."""
        record = {"event": kind, "step": step, "time": self._clock(), "message": message, "data": data}
        self._append(record)

    def flush(self) -> None:
        """Write what was recorded so far; StorageError where that fails (it stays recorded and is written later)."""
        with self._write_lock:
            while lines := self._lines[:PIECE_LINES]:
                self._store.write(f"{self._folder}/{self._pieces:06d}.jsonl", "\n".join([*lines, ""]).encode())
                self._pieces += 1
                with self._lines_lock:
                    del self._lines[: len(lines)]

    def close(self) -> None:
        """Write the rest and stop."""
        if self._ticker is not None:
            self._ticker.close()
            self._ticker = None
        self.flush()

    def __enter__(self) -> Journal:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _append(self, record: dict[str, Any]) -> None:
        if not self._enabled:
            return
        line = json.dumps(record, allow_nan=False, separators=(",", ":"))
        with self._lines_lock:
            self._lines.append(line)

    def _try_flush(self) -> None:
        try:
            self.flush()
        except (NanochatError, OSError) as error:
            if not self._warned:
                log.warning("the metrics could not be written and are kept for later: %s", error)
                self._warned = True


class JournalReader:
    """Reads journals; pieces never change, so each is read once however often the history is asked for."""

    def __init__(self, store: Store, run: str) -> None:
        self._store = store
        self._run = run
        self._pieces: dict[str, tuple[dict[str, Any], ...]] = {}

    def pieces(self) -> tuple[str, ...]:
        """The paths of all pieces; they tell whether anything is new."""
        return tuple(sorted(entry.path for entry in self._store.list(f"{self._run}/metrics")))

    def stages(self) -> tuple[str, ...]:
        """The stages that have a journal."""
        return tuple(sorted({path.removeprefix(f"{self._run}/metrics/").split("/")[0] for path in self.pieces()}))

    def history(self, stage: str) -> History:
        """The stage's final lineage."""
        folder = folder_of(self._run, stage)
        paths = sorted(entry.path for entry in self._store.list(folder))[:MOST_PIECES]
        new = [path for path in paths if path not in self._pieces]
        with ThreadPoolExecutor(8) as pool:
            self._pieces.update(zip(new, pool.map(self._read, new), strict=True))
        launches: dict[str, list[dict[str, Any]]] = {}
        for path in paths:
            launches.setdefault(path.removeprefix(f"{folder}/").split("/")[0], []).extend(self._pieces[path])
        return merge(launches)

    def _read(self, path: str) -> tuple[dict[str, Any], ...]:
        """The records of a piece that make sense."""
        try:
            lines = self._store.read(path, PIECE).splitlines()
        except Damaged as damage:
            log.warning("a piece of the journal is passed over: %s", damage.message)
            return ()
        records, senseless = [], 0
        for line in lines:
            try:
                records.append(_record(read_json(line, limit=PIECE)))
            except (ValueError, TypeError, KeyError):
                senseless += 1
        if senseless:
            log.warning("%s has %d lines that are no records; they are passed over", path, senseless)
        return tuple(records)


def merge(launches: Mapping[str, Iterable[Mapping[str, Any]]]) -> History:
    """Merge the records of a stage's launches.

    Launches are ordered by the number of their attempt, with which their names begin, and within one by their first
    record: the clock may have been set back. A launch whose steps fall (it went back to a checkpoint after a
    divergence) counts as one more from there. Each drops what was written before for steps after its first and, at
    that step, the metrics that it wrote itself: a measurement made just before a checkpoint stays.
    """
    begun = [(name, records) for name, given in launches.items() if (records := list(given))]
    ordered = sorted(begun, key=lambda item: (_attempt(item[0]), item[1][0]["time"], item[0]))
    points: dict[str, dict[int, Point]] = {}
    events: list[Event] = []
    for launch, records in ordered:
        events.extend(_event(launch, record) for record in records if "event" in record)
        for stretch in _stretches(record for record in records if "metrics" in record):
            first = stretch[0]["step"]
            for series in points.values():
                for step in [step for step in series if step > first]:
                    del series[step]
            for record in stretch:
                step, at = int(record["step"]), float(record["time"])
                for name, value in record["metrics"].items():
                    points.setdefault(name, {})[step] = Point(step, at, float(value))
    return History(
        metrics={
            name: tuple(series[step] for step in sorted(series)) for name, series in sorted(points.items()) if series
        },
        events=tuple(events),
        launches=tuple(name for name, _ in ordered),
        seconds=sum(max(0.0, records[-1]["time"] - records[0]["time"]) for _, records in ordered),
    )


def _attempt(launch: str) -> int:
    """The number with which the name of a launch begins; 0 where it begins otherwise."""
    number = launch.partition("-")[0]
    return int(number) if number.isdecimal() else 0


def _stretches(records: Iterable[Mapping[str, Any]]) -> Iterator[list[Mapping[str, Any]]]:
    """The records cut where the step falls."""
    stretch: list[Mapping[str, Any]] = []
    for record in records:
        if stretch and record["step"] < stretch[-1]["step"]:
            yield stretch
            stretch = []
        stretch.append(record)
    if stretch:
        yield stretch


def _event(launch: str, record: Mapping[str, Any]) -> Event:
    return Event(
        kind=record["event"],
        step=record.get("step"),
        time=float(record["time"]),
        launch=launch,
        message=record.get("message", ""),
        data=record.get("data") or {},
    )


def _record(data: Any) -> dict[str, Any]:
    """A line's values, with the types and bounds that `merge` counts on; an error where one is of another kind."""
    record: dict[str, Any] = {"time": _TIME.validate_python(data["time"])}
    if "metrics" in data:
        values = _VALUES.validate_python(data["metrics"])
        return record | {"step": _COUNT.validate_python(data["step"]), "metrics": values}
    step = data.get("step")
    return record | {
        "event": str(data["event"]),
        "step": None if step is None else _COUNT.validate_python(step),
        "message": str(data.get("message") or ""),
        "data": _DATA.validate_python(data.get("data") or {}),
    }


def _to_json(value: float) -> float | str:
    """A number that strict JSON can hold: 'nan', 'inf' and '-inf' are strings, which float() reads back."""
    return value if math.isfinite(value) else str(value)
