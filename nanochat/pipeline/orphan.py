"""Processes that must not outlive those who need them, however these end.

The runner starts the launcher, and the launcher its stage, with a lifeline: standard input is a pipe that nobody
writes to and whose other end only the starter holds. It ends when the starter does, also by SIGKILL, also while the
child still starts, and whatever stands between them (torchrun):

    child = start_child(["-m", "nanochat.stages", plan], log=work / "launch.log", variables={})
    die_with_starter(cleanup=...)            # in the child, first thing

What lies in the working folder is not imported: a `tasks.py` or `torch.py` there is somebody else's.
A stopped process (SIGSTOP) runs no thread of its own: `end_launches` kills it from outside.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path

import psutil

LIFELINE = "NANOCHAT_LIFELINE"  # set where standard input is one
PLAN = "plan.json"
LAUNCHER, STAGE, SERVER = "nanochat.pipeline.launcher", "nanochat.stages", "nanochat.stages.fork_server"
MODULES = {LAUNCHER, STAGE}  # whose processes make up a launch
END_SECONDS = 10.0  # that a process killed by SIGKILL may take to be gone


def start_child(
    arguments: Sequence[str], *, log: Path, variables: Mapping[str, str], descriptors: Sequence[int] = ()
) -> subprocess.Popen[bytes]:
    """Start Python in a session of its own and with a lifeline, its output at the end of `log`; it keeps the open files
    of these `descriptors`."""
    with log.open("ab") as output:
        return subprocess.Popen(
            [sys.executable, *arguments],
            stdout=output,
            stderr=subprocess.STDOUT,
            stdin=subprocess.PIPE,
            env=environment_of(variables),
            cwd=folder_of(log),
            pass_fds=descriptors,
            start_new_session=True,
        )


def environment_of(variables: Mapping[str, str]) -> dict[str, str]:
    """A child's environment: this process's, with these variables."""
    safe = {LIFELINE: "1", "PYTHONSAFEPATH": "1"}
    if path := os.environ.get("PYTHONPATH"):  # where an empty entry, as in ":/opt/lib", means the working folder
        safe["PYTHONPATH"] = os.pathsep.join(filter(None, path.split(os.pathsep)))
    return {**os.environ, **safe, **variables}


def folder_of(log: Path) -> Path | None:
    """A child's folder: None for this process's, to which variables of the environment may be relative, or else that of
    its log."""
    return None if in_folder() else log.parent


def in_folder() -> bool:
    """Whether this process's working folder is still there."""
    try:
        os.getcwd()
    except OSError:
        return False
    return True


def die_with_starter(*, cleanup: Callable[[], None] | None = None) -> None:
    """End with SIGKILL, after `cleanup`, once the lifeline ends; without a lifeline nothing happens."""
    if LIFELINE not in os.environ:
        return

    def watch() -> None:
        with suppress(OSError):  # a socket is reset, where something was not read yet at the other end
            while os.read(0, 1):
                continue
        _end(cleanup)

    threading.Thread(target=watch, name="lifeline", daemon=True).start()


def die_with_parent(parent: int) -> None:
    """End with SIGKILL once the parent is not process `parent` (any more): for workers, whose input is their own."""

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(0.25)
        _end(None)

    threading.Thread(target=watch, name="die-with-parent", daemon=True).start()


def _end(cleanup: Callable[[], None] | None) -> None:
    try:
        if cleanup is not None:
            cleanup()
    finally:
        os.kill(os.getpid(), signal.SIGKILL)


def end_launches(folder: Path) -> None:
    """SIGKILL every process of the launches whose plans lie in or below `folder`, and the server of forks whose folder
    it is, and wait until they are gone.

    The calling process is spared. Processes are told by the plan on their command line, so that it does not matter
    who started them, whether that one lives, or what session they are in.
    """
    deadline = time.monotonic() + END_SECONDS
    while (found := _processes(folder)) and time.monotonic() < deadline:
        for process in found:
            with suppress(psutil.Error):
                process.kill()
        time.sleep(0.02)


def _processes(folder: Path) -> set[psutil.Process]:
    """Processes of launches, with all that they started; zombies have no command line and are left out."""
    found: set[psutil.Process] = set()
    for process in psutil.process_iter(["cmdline"]):
        words = process.info["cmdline"] or ()
        if SERVER in words:
            ours = any(Path(word) == folder for word in words)
        else:
            paths = [Path(word) for word in words if word.endswith(f"/{PLAN}")]
            ours = not MODULES.isdisjoint(words) and any(path.is_relative_to(folder) for path in paths)
        if ours:
            found.add(process)
            with suppress(psutil.Error):
                found.update(process.children(recursive=True))
    return {process for process in found if process.pid != os.getpid() and _lives(process)}


def _lives(process: psutil.Process) -> bool:
    try:
        return process.status() != psutil.STATUS_ZOMBIE
    except psutil.Error:
        return False
