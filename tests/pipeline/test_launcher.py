"""The parts of a launch: what an exit means, who is asked to stop, the logs, and that nothing outlives its starter."""

from __future__ import annotations

import io
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from nanochat.pipeline.launcher import forward
from nanochat.pipeline.logs import LogEcho, LogSync, LogUploader
from nanochat.pipeline.orphan import LIFELINE, end_launches
from nanochat.pipeline.outcomes import EXIT_DISK_FULL, EXIT_STOPPED, Outcome, Reason, from_exit
from nanochat.spec.errors import StorageError
from nanochat.storage import Profile, Store, open_store

DONE, STOPPED = Reason.SUCCEEDED, Reason.PREEMPTED


def told(rank: int, reason: Reason, message: str = "", *, at: float = 1.0) -> Outcome:
    return Outcome(reason=reason, message=message, rank=rank, time=at)


def lost(rank: int, *, at: float = 1.0) -> Outcome:
    return Outcome(Reason.INFRASTRUCTURE, "Connection closed by peer", rank=rank, time=at, peer_lost=True)


@pytest.mark.parametrize(
    ("code", "outcomes", "processes", "asked", "reason"),
    [
        pytest.param(0, [told(0, DONE)], 1, False, DONE, id="done"),
        pytest.param(143, [told(0, STOPPED)], 1, True, STOPPED, id="stopped"),
        pytest.param(EXIT_STOPPED, [], 1, True, STOPPED, id="stopped without a word"),
        pytest.param(-9, [], 1, False, Reason.INFRASTRUCTURE, id="killed"),
        pytest.param(-11, [], 1, False, Reason.INFRASTRUCTURE, id="crashed"),
        pytest.param(1, [], 1, False, Reason.ERROR, id="never came to run"),
        pytest.param(EXIT_DISK_FULL, [], 1, False, Reason.USER_ERROR, id="no room for its outcome"),
        pytest.param(1, [told(0, STOPPED), told(1, STOPPED)], 2, True, STOPPED, id="both stopped"),
        pytest.param(1, [told(0, STOPPED), lost(1, at=2)], 2, True, STOPPED, id="one stopped first"),
        pytest.param(
            1,
            [lost(0), told(1, Reason.USER_ERROR, "bad", at=2)],
            2,
            False,
            Reason.USER_ERROR,
            id="the cause, though its peer spoke first",
        ),
        pytest.param(
            1, [told(0, STOPPED)], 2, False, Reason.INFRASTRUCTURE, id="torchrun stopped the killed one's peer"
        ),
        pytest.param(1, [told(0, DONE)], 2, False, Reason.INFRASTRUCTURE, id="killed when its peer was done"),
        pytest.param(1, [told(1, Reason.ERROR, "a bug")], 2, False, Reason.ERROR, id="a bug, its peer killed after it"),
        pytest.param(-9, [], 2, False, Reason.INFRASTRUCTURE, id="torchrun killed"),
        pytest.param(
            1, [told(0, Reason.USER_ERROR, "no task nccl")], 2, False, Reason.USER_ERROR, id="a task called nccl"
        ),
    ],
)
def test_what_an_exit_means(code: int, outcomes: list[Outcome], processes: int, asked: bool, reason: Reason) -> None:
    assert from_exit(code, outcomes, processes=processes, asked_to_stop=asked).reason is reason


def test_a_rank_that_said_nothing_is_named() -> None:
    outcome = from_exit(1, [lost(0)], processes=2)
    assert outcome.message.startswith("rank 1 ended without a word")


def test_a_stop_waits_until_all_ranks_can_take_it(tmp_path: Path) -> None:
    command = [sys.executable, "-c", "import time; time.sleep(60)"]
    ranks = [subprocess.Popen(command) for _ in range(2)]
    try:
        assert not forward(tmp_path, 2)
        (tmp_path / "rank0.pid").write_text(str(ranks[0].pid))
        assert not forward(tmp_path, 2)
        (tmp_path / "rank1.pid").write_text("")
        assert not forward(tmp_path, 2)
        assert ranks[0].poll() is None
        (tmp_path / "rank1.pid").write_text(str(ranks[1].pid))
        assert forward(tmp_path, 2)
        assert [rank.wait(10) for rank in ranks] == [-signal.SIGTERM] * 2
        assert forward(tmp_path, 2)  # they are gone: nothing is left to ask
    finally:
        for rank in ranks:
            rank.kill()


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return open_store(Profile(root=str(tmp_path / "store")))


def text(store: Store) -> str:
    return "".join(store.read(entry.path, 1 << 20).decode() for entry in store.list("logs/rank0"))


def test_logs_are_kept_in_pieces_and_gone_on_with_by_another_keeper(store: Store, tmp_path: Path) -> None:
    log = tmp_path / "rank0.log"
    log.write_text("one\n")
    log_sync = LogSync(store, "logs", tmp_path)
    log_sync.sync()
    log_sync.sync()
    assert len(store.list("logs/rank0")) == 1
    with log.open("a") as file:
        file.write("two\n")
    LogSync(store, "logs", tmp_path).sync()
    assert text(store) == "one\ntwo\n"
    assert len(store.list("logs/rank0")) == 2


def test_logs_that_cannot_be_stored_are_stored_later(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "rank0.log").write_text("one\n")
    log_sync = LogSync(store, "logs", tmp_path)

    def refuse(path: str, data: bytes) -> None:
        raise StorageError("away")

    with monkeypatch.context() as patch:
        patch.setattr(store, "write", refuse)
        with pytest.raises(StorageError):
            log_sync.sync()
    log_sync.sync()
    assert text(store) == "one\n"


def test_a_pods_own_output_has_its_logs_even_where_the_store_is_away(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(path: str, data: bytes) -> None:
        raise StorageError("away")

    monkeypatch.setattr(store, "write", refuse)
    log, out = tmp_path / "rank0.log", io.BytesIO()
    echo = LogEcho(out, [tmp_path / "launch.log", log])
    echo.copy()
    assert out.getvalue() == b""  # neither is there yet
    log.write_text("step 1\n")
    echo.copy()
    log.write_text("step 1\nstep 2\n")
    LogUploader(store, "logs", tmp_path, echo=echo).close()
    assert out.getvalue() == b"step 1\nstep 2\n"


CHILD = "from nanochat.pipeline.orphan import die_with_starter; import time; die_with_starter(); time.sleep(60)"
BETWEEN = f"""
import subprocess, sys, time
print(subprocess.Popen([sys.executable, "-c", {CHILD!r}]).pid, flush=True)
time.sleep(60)
"""


def test_a_lifeline_reaches_through_what_stands_between() -> None:
    """The starter lets go; the process between neither notices nor ends, as a stopped torchrun would not."""
    between = subprocess.Popen(
        [sys.executable, "-c", BETWEEN],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env={**os.environ, LIFELINE: "1"},
    )
    assert between.stdin is not None and between.stdout is not None
    try:
        child = psutil.Process(int(between.stdout.readline()))
        time.sleep(0.5)
        assert child.status() != psutil.STATUS_ZOMBIE
        between.stdin.close()
        deadline = time.monotonic() + 20
        while child.is_running() and child.status() != psutil.STATUS_ZOMBIE:
            assert time.monotonic() < deadline
            time.sleep(0.05)
        assert between.poll() is None
    finally:
        between.kill()
        between.wait()
        between.stdout.close()


def test_the_processes_of_a_launch_are_told_by_their_plan_and_stopped_ones_end_too(tmp_path: Path) -> None:
    sleep = "import time; time.sleep(60)"
    plans = [tmp_path / name / "plan.json" for name in ("mine", "other")]
    mine, other = (
        subprocess.Popen([sys.executable, "-c", sleep, "-m", "nanochat.stages", str(plan)]) for plan in plans
    )
    reader = subprocess.Popen([sys.executable, "-c", sleep, str(plans[0])])  # someone looks at the plan
    try:
        time.sleep(0.3)
        mine.send_signal(signal.SIGSTOP)
        end_launches(tmp_path / "mine")
        assert mine.wait(10) == -signal.SIGKILL
        assert other.poll() is None and reader.poll() is None
    finally:
        for process in (mine, other, reader):
            process.kill()
            process.wait()
