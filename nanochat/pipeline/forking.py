"""Launchers and stages as forks of one process, which has imported PyTorch and the stages.

    forks = ForkServer(folder, threads=2)
    forks.begin()                       # starts `nanochat.stages.fork_server`, which takes a second or two
    forks.importing                     # until then
    child = forks.start_child(["-m", "nanochat.stages", plan], log=log, variables={})
    forks.close()

A process that is started imports for almost two seconds of processor time. A fork has a session, an environment, a
folder, an output, a lifeline and a command line of its own, as one that is started by `orphan.start_child`, which is
what starts those that can't be forked: with another number of threads, and where there is no server or it is gone.
"""

from __future__ import annotations

import json
import os
import select
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Protocol

from nanochat.pipeline.orphan import MODULES, SERVER, environment_of, folder_of, start_child

THREADS = "OMP_NUM_THREADS"
IMPORT_SECONDS = 300.0  # that the server may take to begin
ANSWER_SECONDS = 10.0  # that it may take to fork, and to tell how a fork has ended
ROOM = 4096  # bytes of a command line
READY = b"ready"
BEGUN, ENDED = b"begun", b"ended"  # what is told of a fork, with its process id and its exit code


class Child(Protocol):
    """A process, forked or started, as far as it is used: `subprocess.Popen` is one."""

    returncode: int | None

    @property
    def stdin(self) -> Any: ...  # its lifeline, which ends it when closed

    def poll(self) -> int | None: ...

    def wait(self) -> int: ...

    def kill(self) -> None: ...

    def send_signal(self, sig: int, /) -> None: ...


class StartChild(Protocol):
    """Starts Python with a lifeline; `orphan.start_child`."""

    def __call__(self, arguments: Sequence[str], *, log: Path, variables: Mapping[str, str]) -> Child: ...


class Forked:
    """A process that the server has forked."""

    def __init__(self, pid: int, channel: socket.socket) -> None:
        """The server tells its exit code by `channel`, whose other end is its standard input too."""
        self.pid, self.stdin, self.returncode = pid, channel, None
        self._process: int | None = None  # a descriptor, which stays that of this process
        with suppress(ProcessLookupError):
            self._process = os.pidfd_open(pid)

    def poll(self) -> int | None:
        """The exit code, below 0 by a signal; None while it runs."""
        return self._ended(0)

    def wait(self) -> int:
        """Wait for the end."""
        code = self._ended(None)
        assert code is not None
        return code

    def kill(self) -> None:
        """SIGKILL."""
        self.send_signal(signal.SIGKILL)

    def send_signal(self, sig: int, /) -> None:
        """Send a signal, unless it has ended."""
        if self._process is not None:
            with suppress(ProcessLookupError):
                signal.pidfd_send_signal(self._process, sig)

    def _ended(self, milliseconds: int | None) -> int | None:
        if self.returncode is None:
            if self._process is not None:
                poll = select.poll()
                poll.register(self._process, select.POLLIN)
                if not poll.poll(milliseconds):
                    return None
            code = self._told()
            if self.returncode is None:  # a signal's handler may have asked meanwhile
                self.returncode = code
        return self.returncode

    def _told(self) -> int:
        """The exit code that the server tells; where it is gone, or stands, nobody knows."""
        with suppress(OSError, ValueError):
            return read_number(self.stdin, ENDED)
        return -signal.SIGKILL

    def __del__(self) -> None:
        if self._process is not None:
            os.close(self._process)


class Forks:
    """A server that is ready, for the runner and for launchers, who ask it by the same socket."""

    def __init__(self, control: socket.socket, threads: int) -> None:
        """`threads` are those that PyTorch computes with in each fork."""
        self._control, self._threads = control, threads

    def start_child(self, arguments: Sequence[str], *, log: Path, variables: Mapping[str, str]) -> Child:
        """As `orphan.start_child`."""
        forked = self.fork(arguments, log=log, variables=variables)
        return forked or start_child(arguments, log=log, variables=variables)

    def fork(self, arguments: Sequence[str], *, log: Path, variables: Mapping[str, str]) -> Forked | None:
        """Have a process forked; None where that can't be, and what the server may fork later ends at once."""
        if arguments[0] != "-m" or arguments[1] not in MODULES:
            return None
        if variables.get(THREADS, str(self._threads)) != str(self._threads):
            return None
        request = {
            "arguments": list(arguments),
            "environment": environment_of(variables),
            "folder": str(folder_of(log) or Path.cwd()),
        }
        mine, theirs = socket.socketpair()
        mine.settimeout(ANSWER_SECONDS)
        try:
            with theirs, log.open("ab") as output:
                socket.send_fds(self._control, [b"fork"], [theirs.fileno(), output.fileno()])
                mine.sendall(json.dumps(request).encode() + b"\n")
            return Forked(read_number(mine, BEGUN), mine)
        except (OSError, ValueError):
            mine.close()
            return None


class ForkServer:
    """The server of a run: started once, and ended with it."""

    def __init__(self, folder: Path, *, threads: int, module: str = SERVER) -> None:
        """`folder` holds the launches, and tells whose server it is."""
        self._folder, self._threads, self._module = folder, threads, module
        self._process: subprocess.Popen[bytes] | None = None
        self._control: socket.socket | None = None
        self._since = 0.0
        self._ready = False

    @staticmethod
    def possible() -> bool:
        """Whether this system can."""
        return sys.platform == "linux" and hasattr(os, "pidfd_open")

    def begin(self) -> None:
        """Start it, once."""
        if self._process is not None:
            return
        mine, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        mine.setblocking(False)
        with theirs:
            given = (theirs.fileno(), mine.fileno())
            self._process = start_child(
                ["-m", self._module, str(self._folder), *map(str, given), str(self._threads), " " * ROOM],
                log=Path(os.devnull),
                variables={THREADS: str(self._threads), "PYTHONUNBUFFERED": "1", "TOKENIZERS_PARALLELISM": "false"},
                descriptors=given,
            )
        self._control, self._since = mine, time.monotonic()

    @property
    def begun(self) -> bool:
        return self._process is not None

    @property
    def importing(self) -> bool:
        """Whether it is about to be ready. One that can't is ended: a stage that is started tells why."""
        if self._ready or self._control is None:
            return False
        try:
            self._ready = self._control.recv(len(READY)) == READY
        except BlockingIOError:
            if time.monotonic() - self._since < IMPORT_SECONDS:
                return True
        except OSError:
            pass
        if not self._ready:
            self.close()
        return False

    def start_child(self, arguments: Sequence[str], *, log: Path, variables: Mapping[str, str]) -> Child:
        """Fork a process, or start it where there is nobody to fork it."""
        if not self.importing and self._control is not None:
            if forked := Forks(self._control, self._threads).fork(arguments, log=log, variables=variables):
                return forked
            self.close()  # it is gone, or stands
        return start_child(arguments, log=log, variables=variables)

    def close(self) -> None:
        """End the server; its forks have lifelines of their own."""
        self._ready = False
        if self._control is not None:
            self._control.close()
            self._control = None
        if self._process is not None and self._process.stdin is not None:
            self._process.kill()
            self._process.wait()
            self._process.stdin.close()


def read_number(channel: socket.socket, what: bytes) -> int:
    """The number that is told next, which has to be about `what`; OSError or ValueError where none is."""
    word, _, number = read_line(channel).partition(b" ")
    if word != what:
        raise ValueError(f"{word!r} was told")
    return int(number)


def read_line(channel: socket.socket, *, at_once: int = 1) -> bytes:
    """The next line that comes, without its end; OSError where none comes in time, ValueError where none comes at all.

    Nothing that follows it is lost where one byte is read `at_once`.
    """
    found = b""
    while not found.endswith(b"\n"):
        more = channel.recv(at_once)
        if not more:
            raise ValueError("the other end is gone")
        found += more
    return found[:-1]
