"""A run of this machine: what its folder in the store tells, and what is done to it."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from rich.console import Console

from nanochat.cli.display import details_of, steps
from nanochat.cli.run import execute
from nanochat.cli.run_handle import Happened, RunHandle, StageProgress, pipeline_name
from nanochat.model.artifact import missing_weights
from nanochat.pipeline.attempts import AttemptLog, AttemptRecord
from nanochat.pipeline.collection import stored_runs
from nanochat.pipeline.control import ask_cancel
from nanochat.pipeline.leases import live_run
from nanochat.pipeline.lock import RunLock, lock_path
from nanochat.pipeline.log_reader import LaunchLogs, list_launches, read_log
from nanochat.pipeline.planner import UNDER_WAY, Phase
from nanochat.pipeline.profiles import ResolvedProfile, resolve_profile
from nanochat.pipeline.run_status import RunStatus, StageRunStatus, read_declaration, read_status
from nanochat.pipeline.runs import RunPaths
from nanochat.pipeline.spending import Spending
from nanochat.spec.errors import StorageError, UserError
from nanochat.spec.load import check_pipeline
from nanochat.storage.artifacts import Artifacts
from nanochat.storage.failures import translate_errors
from nanochat.storage.opening import open_store
from nanochat.storage.store import Entry, Store
from nanochat.tracking.journal import JournalReader
from nanochat.tracking.links import page_of
from nanochat.tracking.progress import read_progress
from nanochat.tracking.registry import Registry

SHORTEST_ID = 4  # characters of an id that are enough to name a run


class NoRun(UserError):
    """The store has no run, or none of the pipeline."""


@dataclass(frozen=True, slots=True)
class Attempts:
    """The records of a run's attempts, and the declared price of a GPU hour where one has GPUs, as they were once."""

    seen: tuple[int, Sequence[Entry]]  # the run's turn and the records' files, by which it is told that they changed
    records: Sequence[AttemptRecord]
    gpu_hour: float | None

    def of(self, stage: str) -> AttemptRecord | None:
        """The latest of a stage."""
        return next((record for record in reversed(self.records) if record.stage == stage), None)


@dataclass(slots=True)
class LocalRun(RunHandle):
    """One run in a store."""

    store: Store
    resolved: ResolvedProfile
    paths: RunPaths
    status: RunStatus
    by_id: bool = False  # asked for by its id: one of the pipeline's runs, and not simply the latest
    _kept: Attempts | None = field(default=None, init=False, repr=False, compare=False)
    # Whether `_kept` is as of the last look.
    _looked: bool = field(default=False, init=False, repr=False, compare=False)

    @property
    def id(self) -> str:
        """Tells it from the other runs of its pipeline."""
        return self.paths.root.rpartition("/")[2]

    @property
    def name(self) -> str:
        return self.status.name

    @property
    def place(self) -> str:
        own = f"\n{self.paths.root}" if self.by_id else ""
        return f"{self.resolved.profile.root}\n{self.resolved.profile.endpoint or ''}\n{self.status.namespace}{own}"

    @property
    def is_live(self) -> bool:
        """Whether a runner works on it: of this home its lock tells, of others the store."""
        held = RunLock.is_held(lock_path(self.resolved, self.status.namespace, self.name))
        if self.by_id:  # the lock is that of all runs of its pipeline
            return (held or not self.is_own) and live_run(self.store, self.paths.root)
        return held if self.is_own else held or live_run(self.store, self.paths.root)

    @property
    def is_own(self) -> bool:
        """Whether it is this home's, not another one's or a cluster's; versions before did not say whose a run was."""
        return bool(self.status.home) and self.status.home == self.resolved.identity

    @property
    def phase(self) -> str:
        """As the runner said last; "Stopped" where it is gone and had not come to an end."""
        phase = self.status.phase
        return "Stopped" if phase in (*UNDER_WAY, Phase.WAITING) and not self.is_live else phase

    @property
    def document(self) -> Mapping[str, Any]:
        return asdict(self.status)

    @property
    def headline(self) -> str:
        phase = self.phase
        gone = f" (the process that ran it is gone; go on with '{self.command('retry')}')" if phase == "Stopped" else ""
        others = self.status.home and not self.is_own
        whose = f" (run from another home, on {self.status.host})" if others else ""
        message = self.status.message
        return f"{self.name}: {phase}{gone}{whose}" + (f", {message}" if message and message != phase.lower() else "")

    @property
    def stages(self) -> Sequence[StageRunStatus]:
        return self.status.stages

    def progress(self, stage: str) -> StageProgress | None:
        latest = self._attempts().of(stage)
        state = read_progress(self.store, self.paths.progress(stage), latest.launch) if latest else None
        if state is None:
            return None
        text = ", ".join(filter(None, (f"{state.phase} {steps(state.step, state.total)}", details_of(state))))
        return StageProgress(text, state.step, state.losses.get("loss"))

    def losses(self, stage: str) -> Sequence[tuple[int, float]]:
        for paths in self._made_in(stage):
            points = JournalReader(self.store, paths.root).history(stage).metrics.get("train/loss", ())
            if found := [(point.step, point.value) for point in points if math.isfinite(point.value)]:
                return found
        return []

    def events(self, most: int) -> Sequence[Happened]:
        found = []
        for item in self._attempts().records:
            what = f"{item.stage}, attempt {item.number}"
            found.append(Happened(item.started, f"{what}: started"))
            if item.ended is not None:
                found.append(Happened(item.ended, f"{what}: {': '.join(filter(None, (item.reason, item.message)))}"))
        return sorted(found, key=lambda event: event.time)[-most:]

    def remarks(self) -> Iterator[str]:
        for item in self.status.stages:
            for warning in item.warnings:
                yield f"warning: {item.stage}: {warning}"
        attempts = self._attempts()
        yield from Spending.of(attempts.records, attempts.gpu_hour, time.time()).lines()
        if page := page_of(self.store, self.paths.root, self.resolved.tracking):
            yield f"MLflow: {page}"

    def _attempts(self) -> Attempts:
        """The attempts as of the last look; they are read again where a record is new or was written again."""
        if self._kept is None or not self._looked:
            seen = self.status.turn, self.store.list(self.paths.attempts)
            if self._kept is None or self._kept.seen != seen:
                records = AttemptLog(self.store, self.paths, AttemptRecord).load().all()
                self._kept = Attempts(seen, records, self._gpu_hour() if any(each.gpus for each in records) else None)
            self._looked = True
        return self._kept

    def _gpu_hour(self) -> float | None:
        """The price that the declaration names, where that is still there."""
        try:
            return (self.spec.get("cost") or {}).get("gpuHour")
        except StorageError:
            return None

    def command(self, verb: str) -> str:
        store = f" --store {self.resolved.name}" if self.resolved.name != "default" else ""
        return f"nanochat {verb} {self.id if self.by_id else self.name}{store}"

    def cancel(self) -> None:
        ask_cancel(self.store, self.paths)

    def retry(self) -> int:
        pipeline = check_pipeline(read_declaration(self.store, self.paths), where=self.name)
        return execute(pipeline, only=[], start=None, again=self.command("retry"))

    def report(self, folder: Path, *, markdown: bool) -> None:
        from nanochat.cli.summary import summarize
        from nanochat.report.build import write_report
        from nanochat.report.record import gather

        record = gather(self.store, Artifacts(self.store, self.resolved.cache), run=self.paths.root)
        with translate_errors(doing="writing", where=str(folder)):
            write_report(record, folder)
        if markdown:
            print((folder / "report.md").read_text(encoding="utf-8"))
        else:
            summarize(record, Console(highlight=False))

    @property
    def spec(self) -> Mapping[str, Any]:
        return read_declaration(self.store, self.paths)["spec"]

    def missing_weights(self, uri: str, fingerprint: str = "") -> str:
        profile = self.resolved.profile
        return missing_weights(uri, lambda root: open_store(replace(profile, root=root)), wanted=fingerprint)

    def registry(self) -> Registry:
        return Registry(self.resolved.tracking)

    # ---- logs -------------------------------------------------------------------------------------------------------

    def look(self) -> tuple[bool, Sequence[StageRunStatus]]:
        live = self.is_live  # before the status is read: what is written last is seen
        self.status = read_status(self.store, self.paths) or self.status
        self._looked = False
        return live, self.stages

    def launches(self, stage: str) -> Sequence[LaunchLogs]:
        return list_launches(self.store, self._logs(stage))

    def read(self, stage: str, launch: str, file: str, offset: int) -> bytes:
        return read_log(self.store, f"{self._logs(stage)}/{launch}/{file}", offset=offset)

    def _logs(self, stage: str) -> str:
        """Where the logs of a stage are: those of an earlier run, if that one made its output."""
        folders = (paths.logs(stage) for paths in self._made_in(stage))
        return next((folder for folder in folders if self.store.children(folder)), self.paths.logs(stage))

    def _made_in(self, stage: str) -> Iterator[RunPaths]:
        """This run, and where it took a stage's output from the store the runs that made the same."""
        yield self.paths
        item = self.status.of_stage(stage)
        if item is None or item.phase != Phase.CACHED:
            return
        for run in find_runs(self.resolved.name):
            found = run.status.of_stage(stage) if run.name == self.name else None
            if found is not None and found.keys == item.keys:
                yield run.paths


def find_runs(profile: str) -> list[LocalRun]:
    """All runs of a profile's store: this home's before those of others, the latest first."""
    resolved = resolve_profile(profile)
    store = open_store(resolved.profile)
    runs = [LocalRun(store, resolved, run.paths, run.status) for run in stored_runs(store, skip_senseless=True)]
    return sorted(runs, key=lambda run: not run.is_own)


def find_run(name: str | None, *, store: str = "default") -> LocalRun:
    """The latest run of a pipeline (named by its name or its file), the run of an id, or the latest of all.

    NoRun where there is none, UserError where several ids begin so.
    """
    runs = find_runs(store)
    wanted = pipeline_name(name) if name else None
    for run in runs:
        if wanted is None or run.name == wanted:
            return run
    if found := [run for run in runs if _has_id(run, name or "")]:
        if len(found) > 1:
            known = ", ".join(f"{run.name}/{run.id}" for run in found[:10])
            raise UserError(f"{len(found)} runs have an id that begins like '{name}': {known}")
        return replace(found[0], by_id=True)
    known = sorted({run.name for run in runs})
    if not known:
        raise NoRun("nothing has run in this store yet: begin with 'nanochat run FILE'")
    raise NoRun(f"no run of '{wanted}' in this store: it has runs of {', '.join(known)}")


def _has_id(run: LocalRun, word: str) -> bool:
    """Whether a word is the id of a run, or the beginning of it, alone or after the pipeline's name and '/'."""
    before, _, begin = word.rpartition("/")
    return len(begin) >= SHORTEST_ID and run.id.startswith(begin) and before in ("", run.name)
