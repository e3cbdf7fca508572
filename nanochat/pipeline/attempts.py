"""The attempts of a run: one record each in the run's folder, which outlives whoever made it.

    log = AttemptLog(store, paths, AttemptRecord)
    log.load()                                   # StorageError where the store cannot be reached
    log.put(replace(log.last("base"), reached=1200))
    log.save()                                   # stores what changed

The controller adds what only a cluster has in a subclass of the record; the common fields are the same everywhere.
"""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from operator import itemgetter
from typing import Annotated, Any, Generic, Self, TypeVar

from pydantic import Field

from nanochat.pipeline.outcomes import Outcome, Reason
from nanochat.pipeline.planner import STAGES, Attempt
from nanochat.pipeline.runs import RunPaths
from nanochat.pipeline.sentences import Said
from nanochat.spec import fields
from nanochat.spec.pipeline import TRAINING
from nanochat.storage.failures import Damaged
from nanochat.storage.manifest import Name
from nanochat.storage.records import Count, Seconds, checked, read_object
from nanochat.storage.store import Store
from nanochat.tracking.progress import State, read_progress

log = logging.getLogger(__name__)

Money = Annotated[float, Field(ge=0, le=fields.MOST, allow_inf_nan=False)]
Share = Annotated[float, Field(ge=0, le=1)]

LARGEST = 256 << 10  # bytes of a record: one of an attempt on a thousand nodes has about 100,000
MOST = 1000  # records of a stage that are read, the newest,
MOST_BYTES = 8 << 20  # and their bytes together
AT_ONCE = 8  # requests under way at once
_FILE = re.compile(r"(?=[0-9]{4})0*([1-9][0-9]{0,5})\.json")


@dataclass(frozen=True, slots=True, kw_only=True)
class AttemptRecord:
    """One attempt of a stage. Times are in seconds since 1970."""

    stage: str
    number: Count
    started: Seconds = 0.0
    device_batch_size: Count = 1
    keys: tuple[Name, ...] = ()  # of the outputs that it has to make
    nodes: Count = 0  # 0 is as many as the stage declares
    processes: Count = 1  # of one node
    gpus: Count = 0  # of all nodes
    hourly: Money | None = None  # of all nodes for one hour in USD, at the prices as it began; None of before 0.3
    launch: str = ""  # id of the present launch, on a cluster that of rank 0
    memory: Seconds = 1.0  # factor on the host memory request
    heartbeat: Seconds | None = None  # the last sign of life
    stopping: str = ""  # why it was asked to stop
    ended: Seconds | None = None
    outcome: Outcome | None = None
    reached: Count = 0  # newest checkpoint's step, or outputs made
    running_since: Seconds | None = None
    used: Seconds = 0.0  # seconds that launches before ran
    held_since: Seconds | None = None  # since when machines are held while others are waited for
    held_share: Share = 0.0  # of its machines
    held: Seconds = 0.0  # seconds of such waiting before, as if of all its machines
    silent: Seconds = 0.0  # seconds without a sign of life, for which it was stopped
    lost: Seconds = 0.0  # of the seconds that it ran: nothing came of them
    former: bool = False  # it had ended when the run was begun again or tried again

    @property
    def reason(self) -> str:
        """The outcome as status names it; '' while the attempt runs."""
        return str(self.outcome.reason) if self.outcome else ""

    @property
    def message(self) -> str:
        """The outcome's message; '' while the attempt runs."""
        return self.outcome.message if self.outcome else ""

    @property
    def duration(self) -> float:
        """Seconds from start to end; 0 while the attempt runs."""
        return max(0.0, (self.ended or self.started) - self.started)

    def ran(self, now: float) -> float:
        """Seconds that its processes ran."""
        return self.used + (max(0.0, now - self.running_since) if self.running_since is not None else 0.0)

    def waited(self, now: float) -> float:
        """Seconds that machines were held while others were waited for, as if of all its machines."""
        return self.held + (self.held_share * max(0.0, now - self.held_since) if self.held_since is not None else 0.0)

    def holding(self, share: float, now: float) -> Self:
        """The record from now on holding this share of its machines while it waits for the others."""
        if share == self.held_share:
            return self
        return replace(self, held=self.waited(now), held_share=share, held_since=now if share else None)

    def end(self, outcome: Outcome, *, reached: int, now: float, before: int = 0, step: int = 0) -> Self:
        """The record with how the attempt ended.

        `before` is how far the attempts before it got, `step` the last step that it reported. Nothing came of the steps
        of training after `reached`, its newest checkpoint; in other stages of all, or none where it made an output.
        While it was silent its machines waited.
        """
        silent = min(self.silent, self.ran(now))
        ran, share = self.ran(now) - silent, 0.0 if outcome.reason is Reason.SUCCEEDED else float(reached <= before)
        if not share and outcome.reason is not Reason.SUCCEEDED and self.stage in TRAINING:
            share = max(0, step - reached) / max(1, step - before)
        return replace(
            self,
            outcome=outcome,
            reached=reached,
            ended=now,
            used=ran,
            running_since=None,
            held=self.waited(now) + silent,
            held_share=0.0,
            held_since=None,
            lost=ran * share,
        )

    def observed(
        self,
        *,
        stopping: bool,
        silence: float,
        begun: bool = True,
        waiting: Said | None = None,
        stale: bool = False,
        made: bool = False,
        remark: Said | None = None,
    ) -> Attempt:
        """The attempt as the planner sees it."""
        return Attempt(
            number=self.number,
            device_batch_size=self.device_batch_size,
            ended=self.ended,
            outcome=self.outcome,
            silence=silence,
            begun=begun,
            former=self.former,
            stopping=stopping,
            asked=self.stopping,
            made=made,
            reached=self.reached,
            waiting=waiting,
            stale=stale,
            memory=self.memory,
            remark=remark,
            processes=max(1, self.nodes) * max(1, self.processes),
        )

    def to_dict(self) -> dict[str, Any]:
        """JSON values, as the run's folder keeps them."""
        return json.loads(json.dumps(asdict(self)))

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Self:
        """The record of JSON values; unknown fields are left out. ValueError where it makes no sense."""
        if isinstance(data.get("stopping"), bool):  # a flag in records of before 0.2
            data = {**data, "stopping": "stopped" if data["stopping"] else ""}
        record = checked(cls, data)
        return record if "used" in data else replace(record, used=record.duration)  # one of this machine before 0.3


R = TypeVar("R", bound=AttemptRecord)


def read_attempts(store: Store, paths: RunPaths, stage: str) -> list[AttemptRecord]:
    """The readable records of a stage, by number; the others are passed over with a warning."""
    records, remark = _read(store, paths, stage, AttemptRecord)
    if remark:
        log.warning("%s", remark)
    return records


def read_latest_progress(store: Store, paths: RunPaths, stage: str) -> State | None:
    """The progress of a stage's latest launch; None where it has reported nothing."""
    attempts = read_attempts(store, paths, stage)
    return read_progress(store, paths.progress(stage), attempts[-1].launch) if attempts else None


def _read(store: Store, paths: RunPaths, stage: str, kind: type[R]) -> tuple[list[R], str]:
    """The newest records of a stage, as far as they make sense, and a sentence about the others, if there are any.

    Whose record one is, its path alone says.
    """
    folder = f"{paths.attempts}/{stage}"
    listed = store.list(folder) if stage in STAGES else []
    named = [(entry, _FILE.fullmatch(entry.path.removeprefix(f"{folder}/"))) for entry in listed]
    wanted: list[tuple[int, str]] = []
    taken = 0
    numbered = ((int(name[1]), entry) for entry, name in named if name is not None)
    for number, entry in sorted(numbered, key=itemgetter(0), reverse=True):
        if entry.size <= LARGEST and taken + entry.size <= MOST_BYTES and len(wanted) < MOST:
            wanted.append((number, entry.path))
            taken += entry.size

    def read(item: tuple[int, str]) -> R | str:
        try:
            record = kind.from_dict((read_object(store, item[1], LARGEST) or {}) | {"stage": stage})
            return record if record.number == item[0] else "it is another attempt's"
        except (Damaged, ValueError) as error:
            return str(error).splitlines()[0]

    with ThreadPoolExecutor(AT_ONCE) as pool:
        answers = dict(zip((path for _, path in wanted), pool.map(read, wanted), strict=True))
    records = [answer for answer in answers.values() if not isinstance(answer, str)]
    passed = [entry.path for entry in listed if isinstance(answers.get(entry.path, ""), str)]
    remark = ""
    if passed:
        why = answers.get(passed[0], "too many, too large, or no record's name")
        more = f" (and {len(passed) - 1} more)" if len(passed) > 1 else ""
        remark = f"the record {store.uri(passed[0])} is passed over{more}: {why}"
    return sorted(records, key=lambda record: record.number), remark


class AttemptLog(Generic[R]):
    """The records of one run, in memory and in storage."""

    def __init__(self, store: Store, paths: RunPaths, kind: type[R]) -> None:
        self._store, self._paths, self._kind = store, paths, kind
        self._records: dict[tuple[str, int], R] = {}
        self._stored: dict[tuple[str, int], R] = {}
        self._remarks: list[str] = []

    def load(self) -> Self:
        """Read all records in storage but those that make no sense; StorageError where it cannot be reached."""
        for stage in STAGES.intersection(self._store.children(self._paths.attempts)):
            records, remark = _read(self._store, self._paths, stage, self._kind)
            if remark:
                self.remark(remark)
            for record in records:
                self._stored[stage, record.number] = record
                self.put(record)
        return self

    def remark(self, text: str) -> None:
        """Keep a sentence about what made no sense, for whoever tells it."""
        log.warning("%s", text)
        self._remarks.append(text)

    def take_remarks(self) -> list[str]:
        """The sentences about what made no sense, each once."""
        taken, self._remarks = self._remarks, []
        return taken

    def all(self) -> Sequence[R]:
        """All records in the order of their starts; those of a stage by number, should the clock have been set back."""
        begun: dict[str, float] = {}
        at: dict[tuple[str, int], float] = {}
        for (stage, number), record in sorted(self._records.items()):
            at[stage, number] = begun[stage] = max(begun.get(stage, 0.0), record.started)
        return [self._records[key] for key in sorted(at, key=lambda key: (at[key], key))]

    def open(self) -> Sequence[R]:
        """The records of attempts that have not ended."""
        return [record for record in self.all() if record.outcome is None]

    def of(self, stage: str) -> Sequence[R]:
        """The records of a stage, by number."""
        return sorted((r for r in self._records.values() if r.stage == stage), key=lambda r: r.number)

    def last(self, stage: str) -> R | None:
        """The record of a stage's latest attempt."""
        return next(reversed(self.of(stage)), None)

    def get(self, stage: str, number: int) -> R:
        """The record of an attempt; KeyError where there is none."""
        return self._records[stage, number]

    def reached(self, stage: str, *, before: int) -> int:
        """How far the attempts of a stage with numbers below `before` got."""
        return max((r.reached for r in self.of(stage) if r.number < before), default=0)

    def put(self, record: R) -> R:
        """Take in a record; `save` stores it."""
        self._records[record.stage, record.number] = record
        return record

    def retire(self) -> None:
        """From now on the attempts that have ended count no more: the run is begun again, or tried again."""
        for record in self.all():
            if record.outcome is not None:
                self.put(replace(record, former=True))

    def save(self) -> None:
        """Store what changed; StorageError where that fails, and then the next call does it."""
        for at, record in sorted(self._records.items()):
            stored = self._stored.get(at)
            if stored is None or replace(record, heartbeat=stored.heartbeat) != stored:
                self._store.write_json(self._paths.attempt(*at), record.to_dict())
                self._stored[at] = record


def confirmed(outcome: Outcome, *, made_all: bool) -> Outcome:
    """The outcome, corrected by what is in storage: a success needs all outputs to be committed."""
    if outcome.reason is Reason.SUCCEEDED and not made_all:
        return Outcome(reason=Reason.ERROR, message="the stage ended without committing all of its outputs")
    return outcome
