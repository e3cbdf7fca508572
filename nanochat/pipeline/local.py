"""The local runner: carries out the planner's actions with processes on this machine.

    runner = LocalRunner(pipeline, resolved)
    status = runner.run(on_change=show)      # blocks; after Ctrl-C stages save checkpoints first

The run's folder holds everything: a second invocation goes on where the first, however it ended, left off.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from nanochat.pipeline.devices import Devices
from nanochat.pipeline.explain import explain_miss
from nanochat.pipeline.graph import TRAINING, Graph, Output, build_graph
from nanochat.pipeline.launcher import read_outcomes
from nanochat.pipeline.lock import RunLock, lock_path
from nanochat.pipeline.logs import LogSync
from nanochat.pipeline.orphan import LIFELINE, PLAN, end_launches
from nanochat.pipeline.outcomes import Outcome, Reason, from_exit, read_outcome
from nanochat.pipeline.plan import StagePlan
from nanochat.pipeline.planner import Attempt, Observed, Phase, Start, Status, Stop, plan
from nanochat.pipeline.preflight import check_inputs
from nanochat.pipeline.profiles import ResolvedProfile
from nanochat.pipeline.runs import RunPaths
from nanochat.spec.errors import NanochatError, StorageError, UserError
from nanochat.spec.fields import nearest
from nanochat.spec.pipeline import Pipeline, PipelineSpec
from nanochat.storage.artifacts import Artifacts
from nanochat.storage.failures import translate_errors
from nanochat.storage.store import open_store
from nanochat.tracking.progress import State, read_progress

log = logging.getLogger(__name__)

POLL_SECONDS = 0.2
OBSERVE_SECONDS = 1.0  # between looks at progress and at what was asked of the run
STOP_GRACE = 60.0  # seconds that a stage has to save a checkpoint when it is asked to stop
STORE_PATIENCE = 600.0  # seconds without storage that the runner waits while no stage runs


@dataclass(slots=True)
class RunningAttempt:
    """A running attempt and its process."""

    process: subprocess.Popen[bytes]
    work: Path
    launch: str
    asked: frozenset[str]  # keys of the outputs it has to make
    processes: int
    stop_at: float | None = None
    stop_reason: str = ""

    def end(self) -> None:
        """Kill what lives of it, stopped processes too, and let its lifeline go."""
        self.process.kill()
        end_launches(self.work)
        self.process.wait()
        if self.process.stdin is not None:
            self.process.stdin.close()


@dataclass(frozen=True, slots=True)
class RunProgress:
    """What a display needs: the status, and each running stage's progress."""

    status: Status
    progress: Mapping[str, State]
    explanations: Mapping[str, str]  # stage -> why its output has to be made
    starts: Mapping[str, float]
    trouble: str = ""  # why storage cannot be reached at the moment
    interrupts: int = 0


class LocalRunner:
    """Runs one pipeline on this machine."""

    def __init__(self, pipeline: Pipeline, resolved: ResolvedProfile, *, devices: Devices | None = None) -> None:
        self.pipeline = localize(pipeline)
        self.spec: PipelineSpec = self.pipeline.spec
        self.resolved = resolved
        self.store = open_store(resolved.profile)
        self.artifacts = Artifacts(self.store, resolved.cache)
        self.graph: Graph = build_graph(self.spec, contents=file_digests(self.spec))
        check_inputs(self.spec)
        self.selected: frozenset[str] | None = None
        self.devices = devices or Devices.detect()
        meta = self.pipeline.metadata
        digest = hashlib.sha256(f"{meta.namespace}.{meta.name}\n{self.graph.digest()}".encode()).hexdigest()
        self.paths = RunPaths.of(namespace=meta.namespace, name=meta.name, uid=digest[:12])
        self.attempts: dict[str, list[Attempt]] = {}
        self.launches: dict[tuple[str, int], str] = {}
        self.live: dict[str, RunningAttempt] = {}
        self.progress: dict[str, State] = {}
        self.explanations: dict[str, str] = {}
        self.interrupts = 0
        self.cancelled = False
        self.trouble: StorageError | None = None  # why storage cannot be reached at the moment
        self._present: set[str] = set()
        self._began = 0.0
        self._observed_at = 0.0
        self._reached_at = 0.0  # when storage was last reached
        self._unsaved: set[tuple[str, int]] = set()  # attempts (stage, number) that have to be stored
        self._written = b""  # the status as it is stored
        lock = lock_path(resolved, meta.namespace, meta.name)
        self._lock = RunLock(lock, what=meta.name)
        self._work = resolved.work / lock.stem  # work folders of this pipeline's launches: the lock's holder owns all

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
        with self._lock:
            self._began = self._reached_at = time.time()
            self._clear_dead_launches()
            self.store.delete(self.paths.control)
            self._load_attempts()
            self._observe_artifacts()
            self._explain()
            self.store.write_json(self.paths.pipeline, self.pipeline.to_yaml_dict())
            handlers = {s: signal.signal(s, self._interrupt) for s in (signal.SIGINT, signal.SIGTERM)}
            try:
                while True:
                    status = self._turn()
                    on_change(self._view(status))
                    if not self.live and self.trouble is None:
                        done = status.phase not in (Phase.RUNNING, Phase.STOPPING)
                        if done or self.interrupts or self.cancelled:
                            return status
                    time.sleep(POLL_SECONDS)
            finally:
                for live in self.live.values():
                    live.end()
                for number, handler in handlers.items():
                    signal.signal(number, handler)

    def _view(self, status: Status) -> RunProgress:
        return RunProgress(
            status=status,
            progress=dict(self.progress),
            explanations=self.explanations,
            starts={s: a[-1].started for s, a in self.attempts.items() if a},
            trouble=self.trouble.message if self.trouble else "",
            interrupts=self.interrupts,
        )

    def _turn(self) -> Status:
        """Observe, plan, act, keep. What storage does not let it observe or keep now, a later turn does."""
        now = time.time()
        self.trouble = None
        if now - self._observed_at >= OBSERVE_SECONDS:
            self._observed_at = now
            self._attempt(self._observe_control)
            self._attempt(self._observe_progress)
        self._observe_processes(now)
        actions, status = plan(self.graph, self.spec, self._observed(), now)
        for action in actions:
            if isinstance(action, Stop):
                self._stop(action, now)
            elif not self.interrupts:
                self._attempt(lambda action=action: self._launch(action, now))
        self._attempt(lambda: self._keep(status))
        self._bear_trouble(now)
        return status

    def _attempt(self, operation: Callable[[], None]) -> None:
        """Do something that needs storage, unless it was found out of reach in this turn."""
        if self.trouble is None:
            try:
                operation()
            except StorageError as error:
                self.trouble = error

    def _bear_trouble(self, now: float) -> None:
        """Go on without storage while stages run, and for a while longer; then StorageError."""
        if self.trouble is None:
            self._reached_at = time.time()
            return
        for stage in self.live:  # whose signs of life cannot be seen
            self.attempts[stage][-1] = replace(self.attempts[stage][-1], heartbeat=now)
        running = any(live.process.poll() is None for live in self.live.values())
        if not running and (self.interrupts or now - self._reached_at > STORE_PATIENCE):
            raise self.trouble

    def _observed(self) -> Observed:
        return Observed(
            present=frozenset(self._present),
            attempts=self.attempts,
            slots=self.devices.slots,
            selected=self.selected,
            suspended=self.interrupts > 0,
            cancelled=self.cancelled,
            retry_at=self._began,
        )

    def _interrupt(self, *_: object) -> None:
        """Ctrl-C: checkpoint and stop; the third time, kill."""
        self.interrupts += 1
        if self.interrupts >= 3:
            for live in list(self.live.values()):
                live.process.kill()

    # ---- observing ------------------------------------------------------------------------------------------

    def _observe_artifacts(self) -> None:
        self._observe([out for node in self.graph.nodes for out in node.outputs])

    def _observe(self, outputs: Sequence[Output]) -> None:
        wanted = [(out.kind, out.key) for out in outputs if out.key not in self._present]
        self._present.update(key for _, key in self.artifacts.find_all(wanted))

    def _observe_inputs(self, stage: str) -> None:
        """Look again at what a stage reads: what it found damaged is set aside, and its maker has to run again."""
        needs = {(ref.split("/", 1)[0], key) for ref, key in self.graph.node(stage).needs.items()}
        found = self.artifacts.find_all(needs)
        self._present -= {key for _, key in needs - found.keys()}

    def _explain(self) -> None:
        for node in self.graph.nodes:
            missing = [out for out in node.outputs if out.key not in self._present]
            if missing:
                self.explanations[node.stage] = explain_miss(self.artifacts, missing, total=len(node.outputs))

    def _observe_progress(self) -> None:
        for stage, live in self.live.items():
            self._take_progress(stage, live.launch)

    def _take_progress(self, stage: str, launch: str) -> None:
        state, before = read_progress(self.store, self.paths.progress(stage)), self.progress.get(stage)
        if state is None or state.launch != launch:
            return
        self.progress[stage] = state
        self.attempts[stage][-1] = replace(self.attempts[stage][-1], heartbeat=state.time)
        for sentence in state.warnings:
            if before is None or sentence not in before.warnings:
                log.warning("%s: %s", stage, sentence)

    def _observe_processes(self, now: float) -> None:
        for stage, live in list(self.live.items()):
            code = live.process.poll()
            if code is not None:
                self._attempt(lambda stage=stage, live=live, code=code: self._conclude(stage, live, code, now))
            elif live.stop_at is not None and now > live.stop_at:
                live.process.kill()  # its grace is over

    def _conclude(self, stage: str, live: RunningAttempt, code: int, now: float) -> None:
        """Take in how an attempt ended. All that needs storage comes first: where it fails, this is done again."""
        live.end()  # a launcher that was killed may leave stopped processes behind
        self._take_progress(stage, live.launch)
        self._observe(self.graph.node(stage).outputs)
        outcome = self._outcome(live, code)
        if outcome.reason is not Reason.SUCCEEDED:
            self._observe_inputs(stage)
        attempt = self.attempts[stage][-1]
        reached = self._reached(stage, attempt.reached)
        if outcome != read_outcome(live.work / "outcome.json"):  # the launcher could not, or did not know all
            self._keep_last_words(stage, live.launch, live.work, outcome)
        self.attempts[stage][-1] = replace(attempt, ended=now, outcome=outcome, stopping=False, reached=reached)
        self._unsaved.add((stage, attempt.number))
        del self.live[stage]
        shutil.rmtree(live.work, ignore_errors=True)

    def _outcome(self, live: RunningAttempt, code: int) -> Outcome:
        if live.stop_reason == "stalled":
            return Outcome(reason=Reason.STALLED, message="no sign of life; it was stopped")
        asked = bool(live.stop_reason)
        outcome = read_outcome(live.work / "outcome.json")
        if outcome is None and asked and code == -signal.SIGTERM:
            return Outcome(reason=Reason.PREEMPTED, message="stopped while it started")
        if outcome is None:
            outcome = from_exit(code, read_outcomes(live.work), processes=live.processes, asked_to_stop=asked)
        if outcome.reason is Reason.SUCCEEDED and not live.asked <= self._present:
            return Outcome(reason=Reason.ERROR, message="the stage ended without committing all of its outputs")
        return outcome

    def _reached(self, stage: str, before: int) -> int:
        """How far the stage is: the newest checkpoint's step, or the number of its outputs."""
        outputs = self.graph.node(stage).outputs
        made = sum(out.key in self._present for out in outputs)
        if stage in TRAINING and not made:
            return max([before, *self._checkpoint_steps(stage)])
        return max(before, made)

    def _checkpoint_steps(self, stage: str) -> list[int]:
        folder = f"checkpoints/{stage}/{self.graph.node(stage).outputs[0].key}"
        names = [name for name in self.store.children(folder) if self.store.exists(f"{folder}/{name}/manifest.json")]
        return [int(name.split("-")[1]) for name in names]

    def _observe_control(self) -> None:
        if self.store.exists(self.paths.control):
            self.cancelled = bool(self.store.read_json(self.paths.control).get("cancel"))

    # ---- acting ---------------------------------------------------------------------------------------------

    def _launch(self, action: Start, now: float) -> None:
        launch = f"{action.attempt:02d}-{uuid.uuid4().hex[:8]}"
        work = self._work / f"{action.stage}-{launch}"
        node = self.graph.node(action.stage)
        processes = self.devices.processes(self.spec, action.stage)
        stage_plan = StagePlan(
            stage=action.stage,
            name=self.pipeline.metadata.name,
            namespace=self.pipeline.metadata.namespace,
            run=self.paths.root,
            attempt=action.attempt,
            launch=launch,
            outputs=action.outputs,
            inputs=dict(node.needs),
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
        self.store.write(self.paths.plan(action.stage, action.attempt), path.read_bytes())
        with (work / "launcher.log").open("ab") as log:
            process = subprocess.Popen(
                [sys.executable, "-m", "nanochat.pipeline.launcher", str(path)],
                stdout=log,
                stderr=subprocess.STDOUT,
                stdin=subprocess.PIPE,
                env={**os.environ, LIFELINE: "1"},
                start_new_session=True,
            )
        self.live[action.stage] = RunningAttempt(
            process=process,
            work=work,
            launch=launch,
            asked=frozenset(out.key for out in action.outputs),
            processes=processes,
        )
        attempts = self.attempts.setdefault(action.stage, [])
        reached = max((a.reached for a in attempts), default=0)
        attempts.append(
            Attempt(number=action.attempt, started=now, device_batch_size=action.device_batch_size, reached=reached)
        )
        self.launches[action.stage, action.attempt] = launch
        self._unsaved.add((action.stage, action.attempt))

    def _spec_for(self, action: Start) -> dict[str, Any]:
        """The spec with this attempt's device batch size in it."""
        data = self.spec.model_dump(mode="json", by_alias=True)
        for section in data["stages"].values():
            if "deviceBatchSize" in section and action.device_batch_size < section["deviceBatchSize"]:
                section["deviceBatchSize"] = action.device_batch_size
        return data

    def _stop(self, action: Stop, now: float) -> None:
        live = self.live[action.stage]
        live.stop_at, live.stop_reason = now + STOP_GRACE, action.reason
        if action.reason == "stalled":
            live.process.kill()
        else:
            live.process.send_signal(signal.SIGTERM)
        self.attempts[action.stage][-1] = replace(self.attempts[action.stage][-1], stopping=True)

    # ---- what is kept ---------------------------------------------------------------------------------------

    def _keep(self, status: Status) -> None:
        """Store what changed."""
        for stage, number in sorted(self._unsaved):
            self._save_attempt(stage, self.attempts[stage][number - 1])
            self._unsaved.discard((stage, number))
        text = json.dumps(self.status_dict(status)).encode()
        if text != self._written:
            self.store.write(self.paths.status, text)
            self._written = text

    def _keep_last_words(self, stage: str, launch: str, work: Path, outcome: Outcome | None = None) -> None:
        """What a launcher that was killed did not come to: the end of the logs, and the outcome."""
        LogSync(self.store, self.paths.logs(stage, launch), work).sync()
        if outcome is not None:
            self.store.write_json(self.paths.outcome(stage, launch), outcome.to_dict())

    def _clear_dead_launches(self) -> None:
        """End and remove what a runner that was killed left behind; its lock is ours now."""
        end_launches(self._work)
        for work in sorted(self._work.glob("*")):
            with suppress(NanochatError, OSError, ValueError):
                old = StagePlan.read(work / PLAN)
                LogSync(self.store, RunPaths(old.run).logs(old.stage, old.launch), work).sync()
            shutil.rmtree(work, ignore_errors=True)

    def _load_attempts(self) -> None:
        for stage in self.graph.stages:
            for name in self.store.children(f"{self.paths.root}/attempts/{stage}"):
                data = self.store.read_json(f"{self.paths.root}/attempts/{stage}/{name}")
                launch = data.pop("launch")
                outcome = data.pop("outcome")
                attempt = Attempt(**data, outcome=Outcome.from_dict(outcome) if outcome else None)
                self.launches[stage, attempt.number] = launch
                if attempt.outcome is None:
                    attempt = self._abandoned(stage, attempt)
                    self._save_attempt(stage, attempt)
                self.attempts.setdefault(stage, []).append(attempt)

    def _abandoned(self, stage: str, attempt: Attempt) -> Attempt:
        """An attempt whose runner is gone, and it with it; its launcher may still have come to an outcome."""
        path = self.paths.outcome(stage, self.launches[stage, attempt.number])
        ended = attempt.heartbeat or attempt.started
        outcome = Outcome(reason=Reason.PREEMPTED, message="the runner was gone", time=ended)
        if self.store.exists(path):
            outcome = Outcome.from_dict(self.store.read_json(path))
        else:
            self.store.write_json(path, outcome.to_dict())
        reached = self._reached(stage, attempt.reached)
        return replace(attempt, ended=ended, stopping=False, reached=reached, outcome=outcome)

    def _save_attempt(self, stage: str, attempt: Attempt) -> None:
        data = {name: getattr(attempt, name) for name in Attempt.__dataclass_fields__}
        data["outcome"] = attempt.outcome.to_dict() if attempt.outcome else None
        data["launch"] = self.launches[stage, attempt.number]
        self.store.write_json(self.paths.attempt(stage, attempt.number), data)

    def report_path(self) -> Path | None:
        """The page report.html, where the pipeline has made one in a folder."""
        if "report" not in self.graph.stages:
            return None
        found = self.artifacts.find("report", self.graph.node("report").outputs[0].key)
        return self.artifacts.fetch(found) / "report.html" if found else None

    def status_dict(self, status: Status) -> dict[str, Any]:
        """What `nanochat status` reads."""
        return {
            "name": self.pipeline.metadata.name,
            "namespace": self.pipeline.metadata.namespace,
            "phase": status.phase,
            "message": status.message,
            "pid": os.getpid(),
            "horizon": self.graph.horizon.summary(),
            "stages": [
                {
                    "stage": item.stage,
                    "phase": item.phase,
                    "message": item.message,
                    "attempts": item.attempts,
                    "why": self.explanations.get(item.stage, ""),
                    "warnings": list(state.warnings) if (state := self.progress.get(item.stage)) else [],
                    "keys": {out.ref: out.key for out in self.graph.node(item.stage).outputs},
                    "started": a[0].started if (a := self.attempts.get(item.stage)) else None,
                    "ended": a[-1].ended if (a := self.attempts.get(item.stage)) else None,
                }
                for item in status.stages
            ],
        }


def localize(pipeline: Pipeline) -> Pipeline:
    """The pipeline with local paths made absolute, so that it means the same from any folder."""
    spec = pipeline.spec
    identity = spec.stages.mid.identity
    mid = spec.stages.mid.model_copy(update={"identity": absolute(identity) if identity else None})
    stages = spec.stages.model_copy(update={"mid": mid})
    sources = spec.sources.located().mapped(absolute)
    return pipeline.model_copy(update={"spec": spec.model_copy(update={"sources": sources, "stages": stages})})


def absolute(uri: str) -> str:
    """A local path as an absolute one; addresses stay as they are."""
    return uri if "://" in uri else str(Path(uri).expanduser().absolute())


def file_digests(spec: PipelineSpec) -> dict[str, str]:
    """SHA-256 of the local files that the pipeline names: their content is part of keys."""
    uri = spec.stages.mid.identity
    if not uri or ("://" in uri and not uri.startswith("file://")):
        return {}
    path = Path(uri.removeprefix("file://"))
    try:
        return {uri: hashlib.sha256(path.read_bytes()).hexdigest()}
    except OSError as error:
        raise UserError(f"stages.mid.identity: cannot read {path}: {error.strerror}") from None
