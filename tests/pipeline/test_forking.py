"""Forks of a server are what processes that are started are, and whoever is killed leaves nothing behind."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
import pytest

from nanochat.pipeline import forking
from nanochat.pipeline.forking import Forked, ForkServer
from nanochat.pipeline.orphan import LIFELINE, SERVER, STAGE, end_launches

PROGRAM = "tests.pipeline.forked_program"
pytestmark = pytest.mark.skipif(not ForkServer.possible(), reason="this system has no descriptors of processes")


def until(condition: Callable[[], Any]) -> Any:
    deadline = time.monotonic() + 400
    while not (found := condition()):
        assert time.monotonic() < deadline
        time.sleep(0.02)
    return found


class Rig:
    """A server and what it forked, or what was started instead."""

    def __init__(self, folder: Path, module: str = PROGRAM) -> None:
        self.server, self.folder = ForkServer(folder, threads=2, module=module), folder
        self.children: list[forking.Child] = []
        self.server.begin()
        assert self.server._process is not None
        self.process = psutil.Process(self.server._process.pid)
        until(lambda: not self.server.importing)

    def child(self, *words: str, **variables: str) -> forking.Child:
        child = self.server.start_child(["-m", STAGE, *words], log=self.folder / "log", variables=variables)
        self.children.append(child)
        return child

    def forked(self, *words: str, **variables: str) -> Forked:
        child = self.child(*words, **variables)
        assert isinstance(child, Forked)
        return child

    def close(self) -> None:
        for child in self.children:
            child.kill()
            child.wait()
            child.stdin.close()
        self.server.close()


@pytest.fixture
def rigs(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Rig]]:
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[2]))
    made: list[Rig] = []

    def make(*arguments: Any) -> Rig:
        made.append(Rig(*arguments))
        return made[-1]

    yield make
    for rig in made:
        rig.close()


def test_a_fork_has_surroundings_of_its_own(
    rigs: Callable[..., Rig], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rig = rigs(tmp_path)
    monkeypatch.chdir(tmp_path)
    child = rig.forked("tell", "a b", COLOUR="réd")
    assert child.wait() == 0 and child.poll() == 0
    assert (tmp_path / "log").read_text() == f"{tmp_path} True réd None tell a b\n"


def test_exit_codes_and_signals_are_told(rigs: Callable[..., Rig], tmp_path: Path) -> None:
    rig = rigs(tmp_path)
    assert rig.forked("exit").wait() == 7
    for number in (signal.SIGTERM, signal.SIGKILL):
        child = rig.forked("sleep")
        assert child.poll() is None
        child.send_signal(number)
        assert child.wait() == -number
    fresh = rig.child("sleep", OMP_NUM_THREADS="3")
    assert isinstance(fresh, subprocess.Popen), "its threads are counted when PyTorch is imported"


def test_a_fork_is_known_by_its_command_line_and_ends_with_its_lifeline(
    rigs: Callable[..., Rig], tmp_path: Path
) -> None:
    rig = rigs(tmp_path)
    plans = [str(tmp_path / name / "plan.json") for name in ("one", "two")]
    one, two = (rig.forked("sleep", plan) for plan in plans)
    words = psutil.Process(one.pid).cmdline()
    assert words[:5] == [sys.executable, "-m", STAGE, "sleep", plans[0]] and not any(words[5:])
    end_launches(tmp_path / "one")
    assert one.wait() == -signal.SIGKILL and two.poll() is None
    two.stdin.close()
    until(lambda: two.poll() is not None)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP])
def test_forks_outlive_the_server_and_what_comes_is_started(
    rigs: Callable[..., Rig], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: signal.Signals
) -> None:
    rig = rigs(tmp_path)
    before = rig.forked("sleep")
    rig.process.send_signal(number)
    until(lambda: rig.process.status() in (psutil.STATUS_ZOMBIE, psutil.STATUS_STOPPED))
    monkeypatch.setattr(forking, "ANSWER_SECONDS", 0.2)
    before.stdin.settimeout(0.2)
    assert before.poll() is None
    before.send_signal(signal.SIGTERM)
    assert before.wait() == -signal.SIGKILL, "who could tell is gone"
    fresh = rig.child("exit")
    assert isinstance(fresh, subprocess.Popen) and fresh.wait() == 1, "there is no such plan"
    assert not rig.process.is_running(), "a server that does not answer is ended"


def is_over(process: psutil.Process) -> bool:
    with suppress(psutil.Error):
        return process.status() == psutil.STATUS_ZOMBIE
    return True


@pytest.mark.parametrize("victims", ["runner", "server and runner", "a stopped server and its runner"])
def test_nothing_outlives_the_runner(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, victims: str) -> None:
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[2]))
    (tmp_path / "a").mkdir()
    with subprocess.Popen([sys.executable, "-m", PROGRAM, "runner", str(tmp_path)]) as process:
        runner = psutil.Process(process.pid)
        found = until(lambda: them if len(them := runner.children(recursive=True)) == 3 else None)
        (server,) = runner.children()
        if "server" in victims:
            server.send_signal(signal.SIGSTOP if "stopped" in victims else signal.SIGKILL)
        process.kill()
    forks = [each for each in found if each != server]
    until(lambda: all(map(is_over, forks)))
    if "stopped" in victims:
        server.kill()  # as the next runner does
    until(lambda: is_over(server))


def test_a_lifeline_ends_too_where_its_holder_left_something_unread() -> None:
    """The holder was killed before it read that the fork has begun: the other end of its socket is reset."""
    begin = "from nanochat.pipeline.orphan import die_with_starter; die_with_starter()"
    program = f"import os, time; {begin}; os.write(0, b'begun'); time.sleep(600)"
    mine, theirs = socket.socketpair()
    with subprocess.Popen(
        [sys.executable, "-c", program], stdin=theirs.fileno(), env={**os.environ, LIFELINE: "1"}
    ) as process:
        theirs.close()
        assert mine.recv(1) == b"b"
        mine.close()
        try:
            assert process.wait(60) == -signal.SIGKILL
        finally:
            process.kill()


def test_the_real_server_has_no_threads_and_is_ended_by_its_folder(rigs: Callable[..., Rig], tmp_path: Path) -> None:
    rig = rigs(tmp_path, SERVER)
    assert rig.forked(str(tmp_path / "plan.json")).wait() == 1
    assert "plan.json" in (tmp_path / "log").read_text(), "there is no such plan"
    assert rig.process.num_threads() == 1
    end_launches(tmp_path / "other")
    assert not is_over(rig.process)
    end_launches(tmp_path)
    until(lambda: is_over(rig.process))


def test_without_a_server_processes_are_started(rigs: Callable[..., Rig], tmp_path: Path) -> None:
    rig = rigs(tmp_path, "nanochat.there_is_no_such_module")
    assert isinstance(rig.child("exit"), subprocess.Popen)
