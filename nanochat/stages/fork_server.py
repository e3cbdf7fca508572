"""The process whose forks are launchers and stages of a local run: `nanochat.pipeline.forking` starts it, and asks it.

It imports what stages of training and evaluation import, PyTorch before all, and computes nothing: no thread of it may
be needed in a fork. It ends with the runner, its forks as if they had been started by whoever asked for them.
"""

from __future__ import annotations

import ctypes
import gc
import importlib
import json
import os
import selectors
import socket
import sys
import traceback
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NoReturn

from nanochat.pipeline.forking import ANSWER_SECONDS, BEGUN, ENDED, READY, Forks, read_line
from nanochat.pipeline.orphan import LAUNCHER
from nanochat.runtime.threads import settle

COMPUTE = ("base", "mid", "sft", "rl", "evaluate")
IMPORTED = ("pipeline.launcher", "stages.__main__", *(f"stages.{name}" for name in COMPUTE))
LARGEST = 1 << 20  # bytes of a request that are read at once


def imports() -> None:
    """Import what forks would import; what there is then is left alone by their garbage collection."""
    settle()
    gc.disable()
    for name in IMPORTED:
        importlib.import_module(f"nanochat.{name}")
    gc.freeze()
    gc.enable()


def run(arguments: Sequence[str], forks: Forks) -> NoReturn:
    """Be `python -m MODULE PLAN`, in a fork."""
    if LAUNCHER in arguments:
        os._exit(importlib.import_module("nanochat.pipeline.launcher").main(forks.start_child))
    os._exit(importlib.import_module("nanochat.stages.__main__").main())


class Server:
    """Forks at request until the runner is gone."""

    def __init__(self, control: socket.socket, client: Forks, run: Callable[[Sequence[str], Forks], NoReturn]) -> None:
        """`client` is for forks, which ask for forks too."""
        self._control, self._client, self._run = control, client, run
        self._waiting = selectors.DefaultSelector()
        self._waiting.register(0, selectors.EVENT_READ)
        self._waiting.register(control, selectors.EVENT_READ)

    def serve(self) -> None:
        """Go on until the lifeline ends."""
        while True:
            for key, _ in self._waiting.select():
                if key.fileobj == 0:
                    return
                if key.fileobj is self._control:
                    self._take()
                else:
                    self._tell_end(key.fd, *key.data)

    def _take(self) -> None:
        """Fork at a request. Nobody may be there any more who asked."""
        _, descriptors, _, _ = socket.recv_fds(self._control, 16, 2)
        channel, output = socket.socket(fileno=descriptors[0]), descriptors[1]
        try:
            channel.settimeout(ANSWER_SECONDS)
            request = json.loads(read_line(channel, at_once=LARGEST))
            channel.setblocking(True)  # the fork waits for its end
            title = command_line(request["arguments"])
            pid = os.fork()
            if pid == 0:
                self._become(request, title, channel, output)
            self._waiting.register(os.pidfd_open(pid), selectors.EVENT_READ, (pid, channel))
        except (OSError, ValueError):
            channel.close()
        finally:
            os.close(output)

    def _tell_end(self, descriptor: int, pid: int, channel: socket.socket) -> None:
        """Tell how a fork has ended."""
        _, status = os.waitpid(pid, 0)
        self._waiting.unregister(descriptor)
        os.close(descriptor)
        with channel, suppress(OSError):
            channel.sendall(b"%s %d\n" % (ENDED, os.waitstatus_to_exitcode(status)))

    def _become(self, request: dict[str, Any], title: bytes, channel: socket.socket, output: int) -> NoReturn:
        """Go on as the process that was asked for, and tell so; it keeps nothing of the server's but the way to ask."""
        try:
            os.setsid()
            for descriptor, number in ((channel.fileno(), 0), (output, 1), (output, 2)):
                os.dup2(descriptor, number)
            for key in list(self._waiting.get_map().values()):
                if key.data is not None:
                    os.close(key.fd)
                    key.data[1].close()
            os.close(output)
            os.environ.clear()
            os.environ.update(request["environment"])
            os.chdir(request["folder"])
            show(title)
            channel.sendall(b"%s %d\n" % (BEGUN, os.getpid()))
            for each in (channel, self._control, self._waiting):
                each.close()
            sys.argv = [request["arguments"][1], *request["arguments"][2:]]
            self._run(request["arguments"], self._client)
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(1)


def command_line(arguments: Sequence[str]) -> bytes:
    """The text to show for a process with these arguments; ValueError where there is no room for it."""
    text = b"".join(os.fsencode(word) + b"\0" for word in (sys.executable, *arguments))
    if len(text) > _place()[1]:
        raise ValueError("the command line is too long")
    return text


def show(text: bytes) -> None:
    """Have the system show another command line of this process: by it launches are told from others, as `ps` shows."""
    begin, room = _place()
    ctypes.memmove(begin, text.ljust(room, b"\0"), room)


def _place() -> tuple[int, int]:
    """Where in its memory this process's command line stands, and how many bytes are there."""
    fields = Path("/proc/self/stat").read_text().rpartition(")")[2].split()
    begin, end = int(fields[45]), int(fields[46])  # arg_start and arg_end; the first field here is the third of all
    return begin, end - begin


def main(imports: Callable[[], None] = imports, run: Callable[[Sequence[str], Forks], NoReturn] = run) -> None:
    """Serve the runner, by the descriptors that it names."""
    control, client = (socket.socket(fileno=int(word)) for word in sys.argv[2:4])
    for each in (control, client):
        each.set_inheritable(False)
    imports()
    server = Server(control, Forks(client, int(sys.argv[4])), run)
    control.send(READY)
    server.serve()


if __name__ == "__main__":
    main()
