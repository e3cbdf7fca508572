"""Signals that ask for an end: SIGHUP as SIGTERM, also from a terminal that is gone; under nohup not at all."""

from __future__ import annotations

import fcntl
import os
import signal
import subprocess
import sys
import termios
from pathlib import Path

import pytest

PROGRAM = """
import sys, time
from nanochat.runtime.stopping import on_stop
asked = []
on_stop(lambda number, frame: asked.append(number))
with open(sys.argv[1], "w") as ready:
    ready.write("ready")
while not asked:
    time.sleep(0.05)
print("a last word", flush=True)
sys.exit(asked[0])
"""


@pytest.fixture
def ready(tmp_path: Path) -> Path:
    path = tmp_path / "ready"
    os.mkfifo(path)
    return path


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_it_is_told(ready: Path, number: signal.Signals) -> None:
    process = subprocess.Popen([sys.executable, "-c", PROGRAM, ready], stdout=subprocess.PIPE)
    assert ready.read_text() == "ready"
    process.send_signal(number)
    assert process.communicate(timeout=60)[0] == b"a last word\n" and process.returncode == number


def test_what_is_ignored_stays_so(ready: Path) -> None:
    command = ["nohup", sys.executable, "-c", PROGRAM, ready]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, stdin=subprocess.DEVNULL)
    assert ready.read_text() == "ready"
    process.send_signal(signal.SIGHUP)
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=60)
    assert process.returncode == signal.SIGTERM


def test_the_terminal_may_be_gone(ready: Path) -> None:
    ours, its = os.openpty()
    process = subprocess.Popen(
        [sys.executable, "-c", PROGRAM, ready],
        stdin=its, stdout=its, stderr=its, start_new_session=True,
        preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),
    )  # fmt: skip
    os.close(its)
    assert ready.read_text() == "ready"
    os.close(ours)  # hangs up
    assert process.wait(60) == signal.SIGHUP
