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

What the machines of a stage did meanwhile is in journals of another kind, `<run>/system/<stage>/<launch>/<n>.jsonl`,
one a node, of which `system_metrics` makes curves over time.
"""

from __future__ import annotations

import json
import logging
import math
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

from pydantic import TypeAdapter

from nanochat.parse.json_text import read_json
from nanochat.spec.errors import NanochatError
from nanochat.storage import Store
from nanochat.storage.failures import Damaged
from nanochat.storage.records import Count, Seconds
from nanochat.storage.store import Entry
from nanochat.tracking.background import Ticker
from nanochat.tracking.dates import Dates

log = logging.getLogger(__name__)

PIECE_LINES = 20_000  # that are written, of some hundred bytes each
# What is read at most: a pod may have written anything. 160,000 steps with five metrics each stay below.
PIECE, LINE = 16 << 20, 256 << 10  # bytes of one
MOST_PIECES = 20_000  # of a run
MOST_NAMES = 1000  # of a stage's metrics
SENSELESS = 100  # lines of a piece that are no records, after which the rest is passed over
_TIME, _COUNT, _VALUES = TypeAdapter(Seconds), TypeAdapter(Count), TypeAdapter(dict[str, float])
_DATA = TypeAdapter(dict[str, Any])
TASK = "task/"  # begins the metrics of chat tasks that are measured while a stage trains
METRICS, SYSTEM = "metrics", "system"  # kinds of journals, by the folder that they are in: of training, of machines


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


def folder_of(run: str, stage: str, launch: str = "", *, kind: str = METRICS) -> str:
    """Where the journal of a stage, or of one of its launches, is under the store's root."""
    return f"{run}/{kind}/{stage}/{launch}" if launch else f"{run}/{kind}/{stage}"


class Journal:
    """Writes one launch's metrics and events. All calls return at once but `flush` and `close`, which write."""

    def __init__(
        self,
        store: Store,
        run: str,
        *,
        stage: str,
        launch: str,
        kind: str = METRICS,
        enabled: bool = True,
        interval: float = 5.0,
        clock: Callable[[], float] | None = None,
    ) -> None:
        """`enabled` is False on all ranks but 0: then nothing is written. `interval` is in seconds."""
        self._store = store
        self._folder = folder_of(run, stage, launch, kind=kind)
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


@dataclass(slots=True)
class _Room:
    """Room for what is still read of a run: bytes, values (a line of metrics counts as one more), bytes of events."""

    bytes: int = 64 << 20
    values: int = 1_000_000
    events: int = 4 << 20
    full: bool = False

    def take(self, record: Mapping[str, Any], size: int) -> bool:
        """Make use of it for a line of so many bytes; False where the room does not suffice."""
        values, events = (0, size) if "event" in record else (1 + len(record["metrics"]), 0)
        if values > self.values or events > self.events:
            self.full = True
            return False
        self.values, self.events = self.values - values, self.events - events
        return True


class JournalReader:
    """Reads the journals of a run, as far as they make sense and are not too large; pieces never change, so each is
    read once however often the history is asked for."""

    def __init__(self, store: Store, run: str, *, kind: str = METRICS) -> None:
        self._store = store
        self._run, self._kind = run, kind
        self._room = _Room()
        self._pieces: dict[str, tuple[dict[str, Any], ...]] = {}
        self._warned = False

    def pieces(self) -> tuple[str, ...]:
        """The paths of all pieces; they tell whether anything is new."""
        return tuple(sorted(entry.path for entry in self._store.list(f"{self._run}/{self._kind}")))

    def stages(self) -> tuple[str, ...]:
        """The stages that have a journal."""
        return tuple(sorted({path.removeprefix(f"{self._run}/{self._kind}/").split("/")[0] for path in self.pieces()}))

    def history(self, stage: str) -> History:
        """The stage's final lineage."""
        return merge(self.launches(stage))

    def launches(self, stage: str) -> dict[str, list[dict[str, Any]]]:
        """The records of each of the stage's launches."""
        folder = folder_of(self._run, stage, kind=self._kind)
        entries = sorted(self._store.list(folder), key=lambda entry: entry.path)
        self._read_new([entry for entry in entries if entry.path not in self._pieces])
        launches: dict[str, list[dict[str, Any]]] = {}
        for entry in entries:
            launches.setdefault(entry.path.removeprefix(f"{folder}/").split("/")[0], []).extend(
                self._pieces[entry.path]
            )
        return launches

    def _read_new(self, entries: Sequence[Entry]) -> None:
        """Read pieces that are listed for the first time; that there is more than is taken is said once."""
        wanted, room = [], self._room.bytes
        for number, entry in enumerate(entries, len(self._pieces)):
            if entry.size > PIECE:
                continue
            if entry.size > room or number >= MOST_PIECES:
                self._room.full = True
                continue
            wanted.append(entry)
            room -= entry.size
        with ThreadPoolExecutor(8) as pool:
            contents = dict(zip((entry.path for entry in wanted), pool.map(self._content, wanted), strict=True))
        self._room.bytes = room
        passed = []
        for entry in entries:
            self._pieces[entry.path], whole = self._records(contents.get(entry.path))
            if not whole:
                passed.append(entry.path)
        if passed and not self._warned:
            self._warned = True
            what = "more than is read: log less often (logEvery)" if self._room.full else "lines that are no records"
            where = f"{self._store.root}/{passed[0]!r}"
            log.warning("in %d of its pieces, first in %s, the journal has %s", len(passed), where, what)

    def _content(self, entry: Entry) -> bytes | None:
        """A piece, as large as it is listed; None where it, or its name, is no such piece."""
        try:
            return self._store.read(entry.path, entry.size)
        except (Damaged, FileNotFoundError, ValueError):
            return None

    def _records(self, content: bytes | None) -> tuple[tuple[dict[str, Any], ...], bool]:
        """The records of a piece, and whether all of its lines are records and taken."""
        records: list[dict[str, Any]] = []
        senseless, whole = 0, content is not None
        for line in filter(None, content.split(b"\n", PIECE_LINES) if content else ()):
            try:
                record = _record(read_json(line, limit=LINE))
            except (ValueError, TypeError, KeyError):
                senseless, whole = senseless + 1, False
                if senseless == SENSELESS:
                    break
                continue
            if self._room.take(record, len(line)):
                records.append(record)
            else:
                whole = False
        return tuple(records), whole


def merge(launches: Mapping[str, Iterable[Mapping[str, Any]]]) -> History:
    """Merge the records of a stage's launches.

    Launches are ordered by the number of their attempt, with which their names begin, and within one by their first
    record: the clock may have been set back. A launch whose steps fall (it went back to a checkpoint after a
    divergence) counts as one more from there. Each drops what was written before for steps after its first and, at
    that step, the metrics that it wrote itself: a measurement made just before a checkpoint stays.
    """
    begun = [(name, records) for name, given in launches.items() if (records := list(given))]
    ordered = sorted(begun, key=lambda item: (_attempt(item[0]), item[1][0]["time"], item[0]))
    points: dict[str, list[Point]] = {}  # by rising step
    events: list[Event] = []
    for launch, records in ordered:
        events.extend(_event(launch, record) for record in records if "event" in record)
        for stretch in _stretches(record for record in records if "metrics" in record):
            first = stretch[0]["step"]
            for series in points.values():
                while series and series[-1].step > first:
                    series.pop()
            for record in stretch:
                step, at = int(record["step"]), float(record["time"])
                for name, value in record["metrics"].items():
                    if name not in points and len(points) == MOST_NAMES:
                        continue
                    series = points.setdefault(name, [])
                    if series and series[-1].step == step:
                        series.pop()
                    series.append(Point(step, at, float(value)))
    return History(
        metrics={name: tuple(series) for name, series in sorted(points.items()) if series},
        events=tuple(events),
        launches=tuple(name for name, _ in ordered),
        seconds=sum(max(0.0, records[-1]["time"] - records[0]["time"]) for _, records in ordered),
    )


def system_metrics(reader: JournalReader, stage: str, began: float) -> dict[str, tuple[Point, ...]]:
    """Curves of the machines of all launches of a stage, by metric; steps are whole seconds since the date `began`."""
    points: dict[str, list[Point]] = {}
    for records in reader.launches(stage).values():
        for record in (record for record in records if "metrics" in record):
            step = max(0, int(record["time"] - began))
            for name, value in record["metrics"].items():
                if name in points or len(points) < MOST_NAMES:
                    points.setdefault(name, []).append(Point(step, record["time"], float(value)))
    return {name: tuple(sorted(series, key=lambda point: point.time)) for name, series in points.items()}


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
