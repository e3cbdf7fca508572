"""The local runner: carries out the planner's actions with processes on this machine.

    runner = LocalRunner(pipeline, resolved)
    status = runner.run(on_change=show)      # blocks; after Ctrl-C stages save checkpoints first

The run's folder holds everything: a second invocation goes on where the first, however it ended, left off.
"""

from __future__ import annotations

import hashlib
import logging
import os
import shutil
import signal
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from nanochat.pipeline import control
from nanochat.pipeline.admission import admit_local
from nanochat.pipeline.attempts import AttemptLog, AttemptRecord, confirmed
from nanochat.pipeline.changed_sources import changed_sources
from nanochat.pipeline.devices import Devices
from nanochat.pipeline.forking import ForkServer
from nanochat.pipeline.initial_model import check_initial_model
from nanochat.pipeline.leases import Lease
from nanochat.pipeline.lock import RunLock, lock_path
from nanochat.pipeline.logs import LogSync
from nanochat.pipeline.orphan import PLAN, end_launches, in_folder
from nanochat.pipeline.outcomes import Outcome, Reason, read_outcome
from nanochat.pipeline.outputs import Outputs
from nanochat.pipeline.plan import StagePlan
from nanochat.pipeline.planner import UNDER_WAY, Observed, Phase, Start, Status, Stop, plan
from nanochat.pipeline.profiles import ResolvedProfile
from nanochat.pipeline.run_status import RunStatus, StatusFile, read_status
from nanochat.pipeline.running_attempt import RunningAttempt
from nanochat.pipeline.runs import RunPaths
from nanochat.pipeline.sentences import Said
from nanochat.pipeline.spending import Spending, check_budget, is_spent
from nanochat.runtime.stopping import on_stop
from nanochat.spec.errors import NanochatError, StorageError, UserError
from nanochat.spec.fields import nearest
from nanochat.spec.pipeline import Pipeline
from nanochat.spec.pods import hide_values
from nanochat.spec.stages import ComputeStage
from nanochat.storage.artifacts import Artifacts
from nanochat.storage.failures import Damaged, translate_errors
from nanochat.storage.opening import open_store
from nanochat.storage.records import read_object
from nanochat.tracking.dates import Dates
from nanochat.tracking.progress import State, read_progress
from nanochat.tracking.rest import light_registry

log = logging.getLogger(__name__)

POLL_SECONDS = 0.2
OBSERVE_SECONDS = 1.0  # between looks at progress and at what was asked of the run
STORE_PATIENCE = 600.0  # seconds without storage that the runner waits while no stage runs


@dataclass(frozen=True, slots=True)
class RunProgress:
    """A run as a display shows it: the status, and each running stage's progress."""

    status: Status
    progress: Mapping[str, State]
    explanations: Mapping[str, str]  # stage -> why its output has to be made
    took: Mapping[str, float]  # stage -> seconds of its last attempt
    trouble: str = ""  # why storage cannot be reached at the moment
    interrupts: int = 0


class LocalRunner:
    """Runs one pipeline on this machine."""

    def __init__(self, pipeline: Pipeline, resolved: ResolvedProfile, *, devices: Devices | None = None) -> None:
        admitted = admit_local(pipeline)
        self.pipeline, self.spec, self.graph = admitted.pipeline, admitted.spec, admitted.graph
        self.resolved = resolved
        self.store = open_store(resolved.profile)
        self.outputs = Outputs(Artifacts(self.store, resolved.cache), self.graph)
        self.selected: frozenset[str] | None = None
        self.devices = devices or Devices.detect()
        meta = self.pipeline.metadata
        self._home = resolved.make_identity()  # two homes that share a store have runs of their own
        what = f"{meta.namespace}.{meta.name}\n{self.graph.digest()}\n{self._home}"
        digest = hashlib.sha256(what.encode()).hexdigest()
        self.paths = RunPaths.of(namespace=meta.namespace, name=meta.name, uid=digest[:12])
        self.attempts = AttemptLog(self.store, self.paths, AttemptRecord)
        self.running: dict[str, RunningAttempt] = {}  # by stage
        self.progress: dict[str, State] = {}
        self.interrupts = 0
        self.cancelled = False
        self.moved = False  # whether an attempt has begun or come to its end: else all is as it was
        self.trouble: StorageError | None = None  # why storage cannot be reached at the moment
        self._spent: Said | None = None  # why nothing may go on: the budget
        self._nearly_spent = False  # and that was said
        self._turn = 0
        self._dates = Dates()
        self._observed_at = 0.0  # by the monotonic clock, as is
        self._reached_at = 0.0  # when storage was last reached
        self._status = StatusFile(self.store, self.paths)
        lock = lock_path(resolved, meta.namespace, meta.name)
        self._lock = RunLock(lock, what=meta.name)
        self._work = resolved.work / lock.stem  # work folders of this pipeline's launches: the lock's holder owns all
        self._forks = ForkServer(self._work, threads=self.devices.threads(1))

    def select(self, *, only: Sequence[str], start: str | None) -> None:
        """Run no more than `only`, or `start` and all that depends on it."""
        for stage in (*only, *([start] if start else [])):
            if stage not in self.graph.stages:
                raise UserError(f"there is no stage '{stage}'.{nearest(stage, list(self.graph.stages))}")
        chosen = set(only)
        if start:
            chosen.add(start)
            for stage in self.graph.stages:
                if chosen & set(self.graph.before(stage)):
                    chosen.add(stage)
        self.selected = frozenset(chosen) or None

    # ---- the loop -------------------------------------------------------------------------------------------

    def run(self, on_change: Callable[[RunProgress], None] = lambda view: None) -> Status:
        """Run to the end; returns the last status. UserError where the same run is already live."""
        with self._lock, Lease(self.store, runs=[self.paths.root]) as lease:
            lease.await_collection()
            self._reached_at = time.monotonic()
            self._turn = self._next_turn()
            self._clear_dead_launches()
            control.forget(self.store, self.paths)
            self.attempts.load()
            for record in self.attempts.open():
                self._abandon(record)
            self.attempts.retire()
            self.attempts.save()
            self.outputs.set_damaged_aside()
            self.outputs.refresh()
            self.outputs.forget_outdated()
            self.outputs.check_release(light_registry(self.resolved.tracking))
            check_initial_model(self.spec, self.graph, self.outputs.artifacts)
            self._check_selection()
            self.outputs.explain()
            for sentence in changed_sources(self.spec, self.graph, self.outputs.artifacts):
                log.warning("%s", sentence)
            self.store.write_json(self.paths.pipeline, hide_values(self.pipeline.to_yaml_dict()))
            restore = on_stop(self._interrupt, signal.SIGINT)
            try:
                while True:
                    status = self._reconcile()
                    on_change(self._snapshot(status))
                    if not self.running and self.trouble is None:
                        done = status.phase not in UNDER_WAY
                        if done or self.interrupts or self.cancelled:
                            return status
                    time.sleep(POLL_SECONDS)
            finally:
                for running in self.running.values():
                    running.end()
                self._forks.close()
                restore()

    def _next_turn(self) -> int:
        """A number above those of all runs of this pipeline that the store has."""
        parent = self.paths.root.rpartition("/")[0]
        turns = [0]
        for uid in self.store.children(parent):
            with suppress(Damaged):  # what makes no sense is told of where it is read
                status = read_status(self.store, RunPaths(f"{parent}/{uid}"))
                turns.append(status.turn if status else 0)
        return max(turns) + 1

    def _check_selection(self) -> None:
        """UserError where what was selected needs what is missing and not selected: that is no failure of the run."""
        if self.selected is None:
            return
        actions, status = plan(self.graph, self.spec, self._observed(), self._dates())
        blocked = next((item for item in status.stages if item.phase is Phase.BLOCKED), None)
        if blocked is not None and not actions:
            raise UserError(f"{blocked.stage} {blocked.message}")

    def _snapshot(self, status: Status) -> RunProgress:
        last = {stage: self.attempts.last(stage) for stage in self.graph.stages}
        return RunProgress(
            status=status,
            progress=dict(self.progress),
            explanations=self.outputs.explanations,
            took={stage: record.duration for stage, record in last.items() if record},
            trouble=self.trouble.message if self.trouble else "",
            interrupts=self.interrupts,
        )

    def _reconcile(self) -> Status:
        """Observe, plan, act, keep. What storage does not let it observe or keep now, it does the next time."""
        self.trouble = None
        if time.monotonic() - self._observed_at >= OBSERVE_SECONDS:
            self._observed_at = time.monotonic()
            self._storage(self._observe_control)
            self._storage(self._observe_progress)
        self._observe_processes()
        self._observe_budget()
        actions, status = plan(self.graph, self.spec, self._observed(), self._dates())
        for action in actions:
            if isinstance(action, Stop):
                self._stop(action)
            elif not self.interrupts:
                self._storage(lambda action=action: self._start(action))
        status = self.outputs.remarked(status)
        self._storage(lambda: self._keep(status))
        self._bear_trouble()
        return status

    def _storage(self, operation: Callable[[], object]) -> None:
        """Do something that needs storage, unless it was found out of reach this time."""
        if self.trouble is None:
            try:
                operation()
            except StorageError as error:
                self.trouble = error

    def _bear_trouble(self) -> None:
        """Go on without storage while stages run, and for a while longer; then StorageError."""
        if self.trouble is None:
            self._reached_at = time.monotonic()
            return
        for running in self.running.values():  # whose signs of life cannot be seen
            running.heard = time.monotonic()
        alive = any(running.process.poll() is None for running in self.running.values())
        if not alive and (self.interrupts or time.monotonic() - self._reached_at > STORE_PATIENCE):
            raise self.trouble

    def _observed(self) -> Observed:
        return Observed(
            present=frozenset(self.outputs.present),
            attempts={
                stage: [
                    record.observed(
                        stopping=bool(record.stopping) and record.outcome is None,
                        silence=self.running[stage].silence if record.outcome is None else 0.0,
                        begun=record.outcome is not None or self.running[stage].begun,
                        made=record.outcome is None and self.outputs.others_made(record.keys, (record.launch,)),
                    )
                    for record in self.attempts.of(stage)
                ]
                for stage in self.graph.stages
            },
            slots=self.devices.slots,
            selected=self.selected,
            suspended=self.interrupts > 0 or self._spent is not None,
            because=self._spent,
            cancelled=self.cancelled,
        )

    def _interrupt(self, *_: object) -> None:
        """Ctrl-C, SIGTERM, SIGHUP: checkpoint and stop; the third time, kill."""
        self.interrupts += 1
        if self.interrupts >= 3:
            for running in list(self.running.values()):
                running.process.kill()

    # ---- observing ------------------------------------------------------------------------------------------

    def _observe_control(self) -> None:
        self.cancelled = control.is_cancelled(self.store, self.paths)

    def _observe_progress(self) -> None:
        for running in self.running.values():
            self._take_progress(running)
            self.outputs.look(running.record.keys)

    def _take_progress(self, running: RunningAttempt) -> None:
        stage = running.record.stage
        state = read_progress(self.store, self.paths.progress(stage), running.record.launch)
        if state is None:
            return
        before, self.progress[stage] = self.progress.get(stage), state
        if before is None or (state.launch, state.time) != (before.launch, before.time):
            running.heard, running.begun = time.monotonic(), running.begun or state.step > 0
            running.record = self.attempts.put(replace(running.record, heartbeat=self._dates()))
        for sentence in state.warnings:
            if before is None or sentence not in before.warnings:
                log.warning("%s: %s", stage, sentence)

    def _observe_budget(self) -> None:
        """Say once that most of the budget is spent; once all is, nothing goes on."""
        spent = Spending.of(self.attempts.all(), self.spec.cost.gpu_hour, self._dates())
        found = check_budget(self.spec.budget, spent)
        if found and found.message and not (is_spent(found) or self._nearly_spent):
            self._nearly_spent = True
            log.warning("%s", found.message)
        self._spent = found if is_spent(found) else None

    def _observe_processes(self) -> None:
        for running in list(self.running.values()):
            code = running.process.poll()
            if code is not None:
                self._storage(lambda running=running, code=code: self._conclude(running, code))
            elif running.stop_at is not None and time.monotonic() > running.stop_at:
                running.process.kill()  # its grace is over

    def _conclude(self, running: RunningAttempt, code: int) -> None:
        """Take in how an attempt ended. All that needs storage comes first: where it fails, this is done again."""
        running.end()  # a launcher that was killed may leave stopped processes behind
        self._take_progress(running)
        record, outputs = running.record, self.graph.node(running.record.stage).outputs
        self.outputs.refresh(outputs)
        outcome = confirmed(running.outcome(code), made_all=self.outputs.present.issuperset(record.keys))
        if outcome.reason is not Reason.SUCCEEDED:
            self.outputs.recheck_inputs(record.stage)
        reached = self.outputs.reached(record.stage, [out.key for out in outputs], before=record.reached)
        if outcome != read_outcome(running.work / "outcome.json"):  # the launcher could not, or did not know all
            LogSync(self.store, self.paths.logs(record.stage, record.launch), running.work).sync()
            self.store.write_json(self.paths.outcome(record.stage, record.launch), outcome.to_dict())
        self._end(record, outcome, reached=reached, now=self._dates())
        del self.running[record.stage]
        shutil.rmtree(running.work, ignore_errors=True)

    def _abandon(self, record: AttemptRecord) -> None:
        """End an attempt whose runner is gone, and it with it; its launcher may still have come to an outcome."""
        self.moved = True
        path = self.paths.outcome(record.stage, record.launch)
        ended = record.heartbeat or record.started
        outcome = Outcome(reason=Reason.PREEMPTED, message="the runner was gone", time=ended)
        try:
            stored = read_object(self.store, path)
            known = None if stored is None else Outcome.from_dict(stored)
        except (Damaged, ValueError):
            log.warning("the outcome %s makes no sense and is passed over", self.store.uri(path))
            known = None
        if known is None:
            self.store.write_json(path, outcome.to_dict())
        outcome = known or outcome
        keys = [out.key for out in self.graph.node(record.stage).outputs]
        reached = self.outputs.reached(record.stage, keys, before=record.reached)
        state = read_progress(self.store, self.paths.progress(record.stage), record.launch)
        if state is not None:
            self.progress[record.stage] = state
        self._end(record, outcome, reached=reached, now=ended)

    def _end(self, record: AttemptRecord, outcome: Outcome, *, reached: int, now: float) -> None:
        """Record how an attempt ended."""
        state = self.progress.get(record.stage)
        step = state.step if state and state.launch == record.launch else 0
        before = self.attempts.reached(record.stage, before=record.number)
        self.attempts.put(record.end(outcome, reached=reached, now=now, before=before, step=step))

    # ---- acting ---------------------------------------------------------------------------------------------

    def _start(self, action: Start) -> None:
        if self._awaits_server(action.stage):
            return  # until it is planned again
        launch = f"{action.attempt:02d}-{uuid.uuid4().hex[:8]}"
        work = self._work / f"{action.stage}-{launch}"
        processes = self.devices.processes(self.spec, action.stage)
        meta = self.pipeline.metadata
        stage_plan = StagePlan(
            stage=action.stage,
            name=meta.name,
            namespace=meta.namespace,
            run=self.paths.root,
            attempt=action.attempt,
            launch=launch,
            outputs=action.outputs,
            inputs=dict(self.graph.node(action.stage).needs),
            spec=self._spec_for(action),
            horizon=self.graph.horizon.to_dict(),
            profile=self.resolved.profile_dict(),
            cache=str(self.resolved.cache),
            work=str(work),
            processes=processes,
            threads=self.devices.threads(processes),
            tracking=self.resolved.tracking,
        )
        path = work / PLAN
        with translate_errors(doing="writing", where=str(work)):
            work.mkdir(parents=True)
            stage_plan.write(path)
        if not in_folder():  # MLflow and others cannot do without one
            log.warning("the folder in which this run was started is gone: what was named relative to it is not found")
            os.chdir(self._work)
        self.store.write(self.paths.plan(action.stage, action.attempt), path.read_bytes())
        record = AttemptRecord(
            stage=action.stage,
            number=action.attempt,
            started=self._dates(),
            device_batch_size=action.device_batch_size,
            keys=tuple(out.key for out in action.outputs),
            launch=launch,
            reached=self.attempts.reached(action.stage, before=action.attempt),
            running_since=self._dates(),
            processes=processes,
            gpus=self.devices.gpus_of(self.spec, action.stage),
            hourly=self.devices.hourly(self.spec, action.stage, self.resolved.prices),
        )
        self.moved = True
        self.running[action.stage] = RunningAttempt.start(record, work, processes, self._forks.start_child)
        self.attempts.put(record)

    def _awaits_server(self, stage: str) -> bool:
        """Whether the stage has to wait until the server can fork it, for by itself it would import the same no sooner.

        The server is started once it will serve several stages, and never where there are GPUs: a fork can't use them
        once its origin has looked at them.
        """
        stages = {name for name in self.graph.stages if isinstance(self.spec.of_stage(name), ComputeStage)}
        if not (self._forks.begun or self.devices.gpus) and self._forks.possible():
            chosen = stages if self.selected is None else stages & self.selected
            missing = (
                name
                for name in chosen
                if self.devices.processes(self.spec, name) == 1
                and not self.outputs.present.issuperset(out.key for out in self.graph.node(name).outputs)
            )
            if len(list(missing)) > 1:
                self._forks.begin()
        return stage in stages and self._forks.importing

    def _spec_for(self, action: Start) -> dict[str, Any]:
        """The spec with this attempt's device batch size in it."""
        data = hide_values(self.spec.to_yaml_dict())
        for section in data["stages"].values():
            if "deviceBatchSize" in section and action.device_batch_size < section["deviceBatchSize"]:
                section["deviceBatchSize"] = action.device_batch_size
        return data

    def _stop(self, action: Stop) -> None:
        running = self.running[action.stage]
        running.stop(action.reason, grace=self.spec.stop_grace_seconds)
        self.attempts.put(running.record)

    # ---- what is kept ---------------------------------------------------------------------------------------

    def _keep(self, status: Status) -> None:
        """Store what changed."""
        self.attempts.save()
        records = self.attempts.all()
        explanations = self.outputs.explanations
        document = RunStatus.of(
            self.pipeline, self.graph, status, explanations, self.progress, records, home=self._home, turn=self._turn
        )
        self._status.write(document)

    def _clear_dead_launches(self) -> None:
        """End and remove what a runner that was killed left behind; its lock is ours now."""
        end_launches(self._work)
        for work in sorted(self._work.glob("*")):
            with suppress(NanochatError, OSError, ValueError):
                old = StagePlan.read(work / PLAN)
                LogSync(self.store, RunPaths(old.run).logs(old.stage, old.launch), work).sync()
            shutil.rmtree(work, ignore_errors=True)

    def report_path(self) -> Path | None:
        """The page report.html, where the pipeline has made one in a folder."""
        if "report" not in self.graph.stages:
            return None
        found = self.outputs.artifacts.find("report", self.graph.node("report").outputs[0].key)
        return self.outputs.artifacts.fetch(found) / "report.html" if found else None
