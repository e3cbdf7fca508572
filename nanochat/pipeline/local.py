"""The local runner: carries out the planner's actions with processes on this machine.

    runner = LocalRunner(pipeline, place)
    status = runner.run(on_change=show)      # blocks; after Ctrl-C stages save checkpoints first

The run's folder holds everything: a second invocation goes on where the first, however it ended, left off.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import IO, Any

from nanochat.pipeline.devices import Devices
from nanochat.pipeline.explain import explain_miss
from nanochat.pipeline.graph import TRAINING, Graph, Output, build_graph
from nanochat.pipeline.launcher import read_outcomes
from nanochat.pipeline.outcomes import Outcome, Reason, from_exit
from nanochat.pipeline.plan import StagePlan
from nanochat.pipeline.planner import Attempt, Launch, Observed, Phase, Status, Stop, plan
from nanochat.pipeline.profiles import Place
from nanochat.pipeline.runs import RunPaths
from nanochat.spec.errors import UserError
from nanochat.spec.fields import nearest
from nanochat.spec.pipeline import Pipeline, PipelineSpec
from nanochat.storage.artifacts import Artifacts
from nanochat.storage.store import open_store
from nanochat.tracking.progress import State, read_progress

POLL_SECONDS = 0.2
STOP_GRACE = 60.0  # seconds that a stage has to save a checkpoint when it is asked to stop


@dataclass(slots=True)
class Live:
    """A running attempt and its process."""

    process: subprocess.Popen[bytes]
    work: Path
    launch: str
    asked: frozenset[str]  # keys of the outputs it has to make
    stop_at: float | None = None
    stop_reason: str = ""


@dataclass(frozen=True, slots=True)
class View:
    """What a display needs: the status, and each running stage's progress."""

    status: Status
    progress: Mapping[str, State]
    explanations: Mapping[str, str]  # stage -> why its output has to be made
    starts: Mapping[str, float]


class LocalRunner:
    """Runs one pipeline on this machine."""

    def __init__(self, pipeline: Pipeline, place: Place, *, devices: Devices | None = None) -> None:
        self.pipeline = localize(pipeline)
        self.spec: PipelineSpec = self.pipeline.spec
        self.place = place
        self.store = open_store(place.profile)
        self.artifacts = Artifacts(self.store, place.cache)
        self.graph: Graph = build_graph(self.spec, contents=file_digests(self.spec))
        self.selected: frozenset[str] | None = None
        self.devices = devices or Devices.detect()
        meta = self.pipeline.metadata
        digest = hashlib.sha256(f"{meta.namespace}.{meta.name}\n{self.graph.digest()}".encode()).hexdigest()
        self.paths = RunPaths.of(namespace=meta.namespace, name=meta.name, uid=digest[:12])
        self.attempts: dict[str, list[Attempt]] = {}
        self.launches: dict[tuple[str, int], str] = {}
        self.live: dict[str, Live] = {}
        self.progress: dict[str, State] = {}
        self.explanations: dict[str, str] = {}
        self.interrupts = 0
        self.cancelled = False
        self._present: set[str] = set()
        self._began = 0.0
        self._control_at = 0.0

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

    def run(self, on_change: Callable[[View], None] = lambda view: None) -> Status:
        """Run to the end; returns the last status. UserError where the same run is already live."""
        with self._lock():
            self._began = time.time()
            self.store.delete(self.paths.control)
            self._load_attempts()
            self._observe_artifacts()
            self._explain()
            self.store.write_json(self.paths.pipeline, self.pipeline.to_yaml_dict())
            handlers = {s: signal.signal(s, self._interrupt) for s in (signal.SIGINT, signal.SIGTERM)}
            written = ""
            try:
                while True:
                    status = self._turn()
                    view = View(
                        status=status,
                        progress=dict(self.progress),
                        explanations=self.explanations,
                        starts={s: a[-1].started for s, a in self.attempts.items() if a},
                    )
                    on_change(view)
                    text = json.dumps(self.status_dict(status))
                    if text != written:
                        self.store.write(self.paths.status, text.encode())
                        written = text
                    if not self.live and status.phase not in (Phase.RUNNING, Phase.STOPPING):
                        return status
                    if not self.live and (self.interrupts or self.cancelled):
                        return status
                    time.sleep(POLL_SECONDS)
            finally:
                for live in self.live.values():
                    live.process.kill()
                for number, handler in handlers.items():
                    signal.signal(number, handler)

    def _turn(self) -> Status:
        now = time.time()
        self._observe_processes(now)
        self._observe_control(now)
        actions, status = plan(self.graph, self.spec, self._observed(), now)
        for action in actions:
            if isinstance(action, Stop):
                self._stop(action, now)
            elif not self.interrupts:
                self._launch(action, now)
        return status

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
            for live in self.live.values():
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
        self._present -= {key for _, key in needs}
        self._present.update(key for _, key in self.artifacts.find_all(needs))

    def _explain(self) -> None:
        for node in self.graph.nodes:
            missing = [out for out in node.outputs if out.key not in self._present]
            if missing:
                self.explanations[node.stage] = explain_miss(self.artifacts, missing, total=len(node.outputs))

    def _observe_processes(self, now: float) -> None:
        for stage, live in list(self.live.items()):
            state = read_progress(self.store, self.paths.progress(stage))
            attempt = self.attempts[stage][-1]
            if state is not None and state.launch == live.launch:
                self.progress[stage] = state
                attempt = replace(attempt, heartbeat=state.time)
                self.attempts[stage][-1] = attempt
            code = live.process.poll()
            if code is None:
                if live.stop_at is not None and now > live.stop_at:
                    live.process.kill()  # its grace is over; the stage dies with its launcher
                continue
            del self.live[stage]
            self._observe(self.graph.node(stage).outputs)
            outcome = self._outcome(stage, live, code)
            if outcome.reason is not Reason.SUCCEEDED:
                self._observe_inputs(stage)
            self.attempts[stage][-1] = replace(
                attempt, ended=now, outcome=outcome, stopping=False, reached=self._reached(stage, attempt.reached)
            )
            self._save_attempt(stage)
            shutil.rmtree(live.work, ignore_errors=True)

    def _outcome(self, stage: str, live: Live, code: int) -> Outcome:
        path = live.work / "outcome.json"
        if path.exists():
            outcome = Outcome.from_dict(json.loads(path.read_text()))
        else:
            outcome = from_exit(code, read_outcomes(live.work))
        if live.stop_reason == "stalled":
            return Outcome(reason=Reason.STALLED, message="no sign of life; it was stopped")
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

    def _observe_control(self, now: float) -> None:
        if now - self._control_at < 1.0:
            return
        self._control_at = now
        if self.store.exists(self.paths.control):
            self.cancelled = bool(self.store.read_json(self.paths.control).get("cancel"))

    # ---- acting ---------------------------------------------------------------------------------------------

    def _launch(self, action: Launch, now: float) -> None:
        launch = f"{action.attempt:02d}-{uuid.uuid4().hex[:8]}"
        self.place.work.mkdir(parents=True, exist_ok=True)
        work = Path(tempfile.mkdtemp(prefix=f"{self.pipeline.metadata.name}-{action.stage}-", dir=self.place.work))
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
            profile=self.place.profile_dict(),
            cache=str(self.place.cache),
            work=str(work),
            processes=processes,
            threads=self.devices.threads(processes),
            tracking=self.place.tracking,
        )
        path = work / "plan.json"
        stage_plan.write(path)
        self.store.write(self.paths.plan(action.stage, action.attempt), path.read_bytes())
        with (work / "launcher.log").open("ab") as log:
            process = subprocess.Popen(
                [sys.executable, "-m", "nanochat.pipeline.launcher", str(path)],
                stdout=log,
                stderr=subprocess.STDOUT,
                stdin=subprocess.DEVNULL,
                start_new_session=True,
            )
        self.live[action.stage] = Live(
            process=process, work=work, launch=launch, asked=frozenset(out.key for out in action.outputs)
        )
        attempts = self.attempts.setdefault(action.stage, [])
        reached = max((a.reached for a in attempts), default=0)
        attempts.append(
            Attempt(number=action.attempt, started=now, device_batch_size=action.device_batch_size, reached=reached)
        )
        self.launches[action.stage, action.attempt] = launch
        self._save_attempt(action.stage)

    def _spec_for(self, action: Launch) -> dict[str, Any]:
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

    def _lock(self) -> RunLock:
        meta = self.pipeline.metadata
        return RunLock(lock_path(self.place, meta.namespace, meta.name), what=meta.name)

    def _load_attempts(self) -> None:
        for stage in self.graph.stages:
            for name in self.store.children(f"{self.paths.root}/attempts/{stage}"):
                data = self.store.read_json(f"{self.paths.root}/attempts/{stage}/{name}")
                launch = data.pop("launch")
                outcome = data.pop("outcome")
                attempt = Attempt(**data, outcome=Outcome.from_dict(outcome) if outcome else None)
                if attempt.outcome is None:  # its runner is gone, and the stage with it
                    ended = attempt.heartbeat or attempt.started
                    attempt = replace(
                        attempt,
                        ended=ended,
                        stopping=False,
                        reached=self._reached(stage, attempt.reached),
                        outcome=Outcome(reason=Reason.PREEMPTED, message="the runner was gone", time=ended),
                    )
                self.attempts.setdefault(stage, []).append(attempt)
                self.launches[stage, attempt.number] = launch

    def _save_attempt(self, stage: str) -> None:
        attempt = self.attempts[stage][-1]
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
                    "keys": {out.ref: out.key for out in self.graph.node(item.stage).outputs},
                    "started": a[0].started if (a := self.attempts.get(item.stage)) else None,
                    "ended": a[-1].ended if (a := self.attempts.get(item.stage)) else None,
                }
                for item in status.stages
            ],
        }


@dataclass(slots=True)
class RunLock:
    """One runner for a pipeline on this machine; the kernel frees it when the process ends, however it ends."""

    path: Path
    what: str
    handle: IO[str] | None = field(default=None)

    def __enter__(self) -> RunLock:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self.handle = self.path.open("a+")
        try:
            fcntl.flock(self.handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            self.handle.seek(0)
            pid = self.handle.read().strip()
            raise UserError(
                f"'{self.what}' is already running (process {pid}): watch it with 'nanochat status {self.what}' or end "
                f"it with 'nanochat cancel {self.what}'"
            ) from None
        self.handle.seek(0)
        self.handle.truncate()
        self.handle.write(str(os.getpid()))
        self.handle.flush()
        return self

    def __exit__(self, *_: object) -> None:
        if self.handle is not None:
            self.handle.close()

    @staticmethod
    def is_held(path: Path) -> bool:
        """Whether a live runner holds the lock."""
        if not path.exists():
            return False
        with path.open("a") as handle:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                return True
        return False


def lock_path(place: Place, namespace: str, name: str) -> Path:
    """The lock of a pipeline in a store, on this machine."""
    digest = hashlib.sha256(f"{place.profile.root}\n{namespace}.{name}".encode()).hexdigest()[:16]
    return place.locks / f"{digest}.lock"


def localize(pipeline: Pipeline) -> Pipeline:
    """The pipeline with local paths made absolute, so that it means the same from any folder."""
    spec = pipeline.spec
    sources = (
        spec.sources.located()
        if spec.sources.mirror is None
        else spec.sources.model_copy(update={"mirror": absolute(spec.sources.mirror)}).located()
    )
    identity = spec.stages.mid.identity
    mid = spec.stages.mid.model_copy(update={"identity": absolute(identity) if identity else None})
    stages = spec.stages.model_copy(update={"mid": mid})
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
