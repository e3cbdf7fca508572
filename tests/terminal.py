"""The `nanochat` command in a pseudo-terminal.

terminal = Terminal(folder, "status", "demo", "--watch")
terminal.until(lambda seen: "STAGE" in seen)
terminal.end()
"""

from __future__ import annotations

import errno
import fcntl
import os
import pty
import signal
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Callable, Mapping, Sequence


class Terminal:
    """A process in a pseudo-terminal, and all that it has written."""

    def __init__(
        self, words: Sequence[str], variables: Mapping[str, str], *, rows: int = 24, columns: int = 100
    ) -> None:
        self.main, child = pty.openpty()
        self.resize(rows, columns)
        environment = {**variables, "TERM": "xterm-256color"}
        environment.pop("COLUMNS", None)
        command = [sys.executable, "-m", "nanochat", *words]
        self.process = subprocess.Popen(
            command, stdin=child, stdout=child, stderr=child, env=environment, start_new_session=True,
            preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),
        )  # fmt: skip
        os.close(child)
        os.set_blocking(self.main, False)
        self.seen = ""

    def resize(self, rows: int, columns: int) -> None:
        fcntl.ioctl(self.main, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))

    def until(self, done: Callable[[str], bool], seconds: float = 120.0) -> None:
        deadline = time.monotonic() + seconds
        while not done(self.seen):
            assert time.monotonic() < deadline, self.seen[-3000:]
            try:
                self.seen += os.read(self.main, 1 << 16).decode("utf-8", "replace")
            except BlockingIOError:
                time.sleep(0.05)
            except OSError as error:  # the process has ended
                assert error.errno == errno.EIO
                break

    def end(self) -> None:
        """Kill the process."""
        self.process.send_signal(signal.SIGKILL)
        self.process.wait(30)
        os.close(self.main)
