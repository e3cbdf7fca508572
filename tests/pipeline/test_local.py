"""The local runner with real launchers and processes whose stages play a story."""

from __future__ import annotations

import copy
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest
from stage_story import install

from nanochat.pipeline import local
from nanochat.pipeline.collection import stored_runs
from nanochat.pipeline.devices import Devices
from nanochat.pipeline.local import LocalRunner, RunProgress
from nanochat.pipeline.lock import RunLock, lock_path
from nanochat.pipeline.planner import Phase, Status, plan
from nanochat.pipeline.profiles import ResolvedProfile
from nanochat.pipeline.running_attempt import RunningAttempt
from nanochat.spec.errors import StorageError, UserError
from nanochat.spec.load import check_pipeline
from nanochat.storage import Profile
from nanochat.tracking.dates import Dates

PIPELINE: dict[str, Any] = {
    "apiVersion": "nanochat.dev/v1alpha1",
    "kind": "ChatPipeline",
    "metadata": {"name": "story"},
    "spec": {
        "model": {"depth": 1, "width": 32, "headDim": 16, "sequenceLength": 64},
        "sources": {"text": {"kind": "world", "shards": 1, "charactersPerShard": 200_000, "validationShard": 9}},
        "stages": {
            "base": {"steps": 4, "totalBatchTokens": 256, "deviceBatchSize": 8},
            **{name: {"enabled": False} for name in ("mid", "sft", "rl", "evalBase", "evalChat", "report", "release")},
        },
        "retries": {"limit": 2, "delaySeconds": 0.05},
    },
}

Story = dict[str, list[str]]
Start = Callable[..., LocalRunner]


@pytest.fixture(autouse=True)
def attentive(monkeypatch: pytest.MonkeyPatch) -> None:
    """Runners look ten times a second at what their stages do."""
    monkeypatch.setattr(local, "OBSERVE_SECONDS", 0.1)


@pytest.fixture
def resolved(tmp_path: Path) -> ResolvedProfile:
    home = tmp_path / "home"
    return ResolvedProfile(name="default", profile=Profile(root=str(home)), tracking="", home=home)


@pytest.fixture
def start(resolved: ResolvedProfile, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Start:
    """A runner of the pipeline whose stages play a story; only the dataset, unless told."""

    def make(
        story: Story,
        *,
        only: tuple[str, ...] = ("dataset",),
        name: str = "story",
        characters: int = 200_000,
        grace: int = 120,
    ) -> LocalRunner:
        for variable, value in install(tmp_path / "site", story).items():
            monkeypatch.setenv(variable, value)
        data = copy.deepcopy(PIPELINE) | {"metadata": {"name": name}}
        data["spec"]["sources"]["text"]["charactersPerShard"] = characters
        data["spec"]["stopGraceSeconds"] = grace
        runner = LocalRunner(check_pipeline(data, where="test"), resolved, devices=Devices(cores=2, gpus=0))
        runner.select(only=only, start=None)
        return runner

    return make


def outcomes(runner: LocalRunner, stage: str = "dataset") -> list[str]:
    """The reasons in the store, by attempt, which the attempts' own records repeat."""
    folder = f"{runner.paths.root}/outcomes/{stage}"
    told = [runner.store.read_json(f"{folder}/{name}", 1 << 20)["reason"] for name in runner.store.children(folder)]
    assert told == [str(attempt.outcome.reason) for attempt in runner.attempts.of(stage) if attempt.outcome]
    return told


def log_of(runner: LocalRunner, stage: str = "dataset") -> str:
    paths = [entry.path for entry in runner.store.list(runner.paths.logs(stage)) if "/rank0/" in entry.path]
    return "".join(runner.store.read(path, 1 << 20).decode() for path in paths)


def leftovers(resolved: ResolvedProfile) -> list[psutil.Process]:
    return [
        process
        for process in psutil.process_iter(["cmdline"])
        if any(str(resolved.home) in word for word in process.info["cmdline"] or ()) and process.pid != os.getpid()
    ]


def during(runner: LocalRunner, act: Callable[[], object], *, times: int = 1) -> Status:
    """Run, and act as soon as the stage plays; then again half a second later, `times` in all."""
    done: list[float] = []

    def look(view: RunProgress) -> None:
        if view.progress and len(done) < times and (not done or time.monotonic() - done[-1] > 0.5):
            done.append(time.monotonic())
            act()

    return runner.run(look)


@pytest.mark.parametrize(
    ("parts", "reasons", "phase"),
    [
        (["ok"], ["Succeeded"], Phase.SUCCEEDED),
        (["StorageError", "ok"], ["Infrastructure", "Succeeded"], Phase.SUCCEEDED),
        (["bug"], ["Error"] * 3, Phase.FAILED),
        (["UserError"], ["UserError"], Phase.FAILED),
        (["Diverged"], ["Diverged"], Phase.FAILED),
        (["OutOfMemory"], ["OutOfMemory"], Phase.FAILED),  # the dataset has no rows to halve
        (["segfault", "killed", "ok"], ["Infrastructure", "Infrastructure", "Succeeded"], Phase.SUCCEEDED),
        (["Stopped", "ok"], ["Preempted", "Succeeded"], Phase.SUCCEEDED),
        (["forgets", "ok"], ["Error", "Succeeded"], Phase.SUCCEEDED),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, list) else str(value),
)
def test_what_an_end_means(
    start: Start, resolved: ResolvedProfile, parts: list[str], reasons: list[str], phase: Phase
) -> None:
    runner = start({"dataset": parts})
    status = runner.run()
    assert status.phase is phase
    assert outcomes(runner) == reasons
    assert log_of(runner).count("plays") == len(reasons)
    assert not leftovers(resolved) and not list(resolved.work.glob("*/*"))


def test_memory_halves_the_rows_until_it_fits(start: Start) -> None:
    runner = start({"base": ["OutOfMemory", "OutOfMemory", "ok"]}, only=("dataset", "tokenizer", "tokens", "base"))
    assert runner.run().phase is Phase.SUCCEEDED
    assert [attempt.device_batch_size for attempt in runner.attempts.of("base")] == [8, 2, 1], "of 4"


@pytest.mark.parametrize("part", ["stops answering", "launcher killed"])
def test_a_stopped_process_does_not_outlive_its_launch(
    start: Start, resolved: ResolvedProfile, monkeypatch: pytest.MonkeyPatch, part: str
) -> None:
    runner = start({"dataset": [part, "ok"]})
    if part == "stops answering":  # a busy machine may take as long to start a launcher that is then killed
        retries = runner.spec.retries.model_copy(update={"stall_seconds": 4.0, "start_seconds": 4.0})
        hasty = runner.spec.model_copy(update={"retries": retries})
        monkeypatch.setattr(local, "plan", lambda graph, spec, observed, now: plan(graph, hasty, observed, now))
    assert runner.run().phase is Phase.SUCCEEDED
    assert outcomes(runner) == ["Stalled" if part == "stops answering" else "Infrastructure", "Succeeded"]
    assert "plays stops" in log_of(runner) or part == "launcher killed"
    assert not leftovers(resolved)


@pytest.mark.parametrize(("part", "reason"), [("waits", "Preempted"), ("ends when stopped", "Succeeded")])
def test_an_interrupt_lets_the_stage_end(start: Start, resolved: ResolvedProfile, part: str, reason: str) -> None:
    runner = start({"dataset": [part]}, only=("dataset", "tokenizer"))
    status = during(runner, lambda: signal.raise_signal(signal.SIGINT))
    assert runner.interrupts == 1 and status.phase is Phase.SUSPENDED
    assert outcomes(runner) == [reason]
    assert not leftovers(resolved)
    again = start({"dataset": ["ok"]}, only=("dataset", "tokenizer"))
    assert again.run().phase is Phase.SUCCEEDED


@pytest.mark.parametrize("stop", [signal.SIGHUP, signal.SIGTERM])
def test_a_clock_that_is_set_stalls_nothing(
    start: Start, monkeypatch: pytest.MonkeyPatch, stop: signal.Signals
) -> None:
    """Set back an hour while a stage waits for its next try; a sleep of two hours while it runs."""
    runner = start({"dataset": ["StorageError", "waits", "ok"]})
    patient = runner.spec.model_copy(update={"retries": runner.spec.retries.model_copy(update={"delay_seconds": 5.0})})
    monkeypatch.setattr(local, "plan", lambda graph, spec, observed, now: plan(graph, patient, observed, now))
    shift = [0.0]
    runner._dates = Dates(clock=lambda: time.time() + shift[0])
    since: list[float] = []

    def look(view: RunProgress) -> None:
        if view.status.of("dataset").phase is Phase.RETRYING and not shift[0]:
            shift[0] = -3600.0
            runner._dates = Dates(clock=lambda: time.time() + shift[0])  # as another process would find it
        if runner.running and shift[0] == -3600.0 and len(runner.attempts.of("dataset")) == 2:
            shift[0] += 7200.0
            since.append(time.monotonic())
        if since and view.progress and time.monotonic() - since[0] > 1.5 and not runner.interrupts:
            signal.raise_signal(stop)

    assert runner.run(look).phase is Phase.SUSPENDED
    assert outcomes(runner) == ["Infrastructure", "Preempted"], "it was neither delayed nor taken for dead"
    again = start({"dataset": ["ok"]})
    again._dates = Dates(clock=lambda: time.time() - 86400.0)  # run again on the day before
    assert again.run().phase is Phase.SUCCEEDED
    records = again.attempts.all()
    assert [record.number for record in records] == [1, 2, 3] and all(record.duration >= 0 for record in records)


def test_the_run_that_was_begun_last_is_the_latest_whatever_the_clock_says(start: Start) -> None:
    first, second = start({"dataset": ["ok"]}), start({"dataset": ["ok"]}, characters=100_000)
    runners = [first, second]
    for _ in range(2):
        for number, runner in enumerate(runners):
            runner.run()
            path = runner.store.local_path(runner.paths.status)
            assert path is not None
            os.utime(path, (1_000_000.0 - 1000.0 * number,) * 2)  # the clock is set back before the second
        assert [run.paths for run in stored_runs(first.store)] == [runner.paths for runner in reversed(runners)]
        runners.reverse()


def test_the_third_interrupt_ends_at_once(start: Start, resolved: ResolvedProfile) -> None:
    runner = start({"dataset": ["ignores"]})
    during(runner, lambda: signal.raise_signal(signal.SIGINT), times=3)
    assert runner.interrupts == 3
    assert not leftovers(resolved) and not list(resolved.work.glob("*/*"))


def test_a_stage_that_does_not_stop_is_ended_after_its_grace(
    start: Start, resolved: ResolvedProfile, monkeypatch: pytest.MonkeyPatch
) -> None:
    runner, stop, graces = start({"dataset": ["ignores"]}, grace=7), RunningAttempt.stop, list[float]()

    def stopped(running: RunningAttempt, reason: str, *, grace: float) -> None:
        graces.append(grace)
        stop(running, reason, grace=1.0)

    monkeypatch.setattr(RunningAttempt, "stop", stopped)
    during(runner, lambda: runner.store.write_json(runner.paths.control, {"cancel": True}))
    assert runner.cancelled and not leftovers(resolved) and graces == [7]


def test_storage_that_is_away_is_borne(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    runner = start({"dataset": ["waits", "ok"]})
    real, away, troubles = runner.store.read, [5], []

    def read(path: str, *limits: Any, **more: Any) -> bytes:
        if path == runner.paths.control and away[0]:
            away[0] -= 1
            raise StorageError("it does not answer")
        return real(path, *limits, **more)

    monkeypatch.setattr(runner.store, "read", read)

    def look(view: RunProgress) -> None:
        troubles.append(view.trouble)
        if not away[0] and view.progress and not runner.interrupts:
            signal.raise_signal(signal.SIGTERM)

    assert runner.run(look).phase is Phase.SUSPENDED
    assert "it does not answer" in troubles and troubles[-1] == ""


def test_storage_that_stays_away_ends_the_run(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(local, "STORE_PATIENCE", 1.0)
    runner = start({"dataset": ["ok"]})

    def write(path: str, data: bytes) -> None:
        raise StorageError("it does not answer")

    def look(view: RunProgress) -> None:
        monkeypatch.setattr(runner.store, "write", write)

    with pytest.raises(StorageError, match="does not answer"):
        runner.run(look)


RUNNER = """
import json, sys
from pathlib import Path
from nanochat.pipeline.collection import stored_runs
from nanochat.pipeline.devices import Devices
from nanochat.pipeline.local import LocalRunner
from nanochat.pipeline.profiles import ResolvedProfile
from nanochat.spec.load import check_pipeline
from nanochat.storage import Profile
home = Path(sys.argv[1])
resolved = ResolvedProfile(name="default", profile=Profile(root=str(home)), tracking="", home=home)
runner = LocalRunner(check_pipeline(json.loads(sys.argv[2]), where="test"), resolved, devices=Devices(cores=2, gpus=0))
runner.select(only=["dataset"], start=None)
runner.run()
"""


def test_what_a_killed_runner_leaves_is_ended_and_told(start: Start, resolved: ResolvedProfile, tmp_path: Path) -> None:
    runner = start({"dataset": ["stops answering", "ok"]})
    process = subprocess.Popen([sys.executable, "-c", RUNNER, str(resolved.home), json.dumps(PIPELINE)])
    try:
        while not list(resolved.work.glob("*/*/rank0.pid")):
            assert process.poll() is None
            time.sleep(0.1)
        time.sleep(1.0)
        other = start(
            {"dataset": ["ok"]}, name="other", characters=100_000
        )  # another pipeline in the same home goes on as ever
        assert other.run().phase is Phase.SUCCEEDED
        with pytest.raises(UserError, match="already running"):
            runner.run()
    finally:
        process.kill()
        process.wait()
    assert start({"dataset": ["stops answering", "ok"]}).run().phase is Phase.SUCCEEDED
    assert not leftovers(resolved) and not list(resolved.work.glob("*/*"))
    again = start({"dataset": ["ok"]})
    again.run()
    assert outcomes(again) == ["Preempted", "Succeeded"]
    assert "plays stops answering" in log_of(again)


def test_looking_at_the_lock_does_not_take_it(resolved: ResolvedProfile) -> None:
    path = lock_path(resolved, "default", "story")
    done = threading.Event()

    def look() -> None:
        while not done.is_set():
            RunLock.is_held(path)

    watcher = threading.Thread(target=look)
    watcher.start()
    try:
        for _ in range(50):
            with RunLock(path, what="story"):
                assert RunLock.is_held(path)
    finally:
        done.set()
        watcher.join()
