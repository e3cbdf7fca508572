"""Running generated programs: `Sandbox().run(program)` says whether a program passes its test.

Each program gets two processes of its own (see `sandbox_child`), with an empty environment, in new sessions, both
confined (see `confinement`): no network, no file but Python's standard library, no other process, no file written,
hard limits on memory, CPU time and messages, and killed when the time is over. Passing is proved by an unguessable
token that only the process with the test has, and prints after the test has held. Exit codes prove nothing.

What remains: the kernel itself, through the few system calls that are left; names, sizes and times of files, which
can be asked for (not read) by one who guesses the path; and programs that are right on the tests only.

`unavailable()` tries all of it; where it gives a reason, no program may be run.
"""

from __future__ import annotations

import json
import os
import secrets
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from nanochat.runtime.cgroup import free_memory
from nanochat.runtime.threads import cores
from tasks import Program

PROCESSES = 2  # of each program: the candidate and its judge
CHILD = Path(__file__).with_name("sandbox_child.py")

# What must not work inside, as a program that names what did.
PROBE = Program(
    source="""
def escapes():
    import os, socket
    found = []
    attempts = {
        "reading /etc/passwd": lambda: open("/etc/passwd").read(),
        "listing /": lambda: os.listdir("/"),
        "reading /proc": lambda: open("/proc/self/status").read(),
        "writing a file": lambda: open("/tmp/escaped", "w").close(),
        "a socket": lambda: socket.socket().close(),
        "a new process": lambda: os._exit(0) if os.fork() == 0 else None,
        "signalling": lambda: os.kill(os.getppid(), 0),
        "starting a program": lambda: os.execv("/bin/true", ["true"]),
    }
    for name, attempt in attempts.items():
        try:
            attempt()
        except Exception:
            continue
        found.append(name)
    return found
""",
    test="""
def check(candidate):
    found = candidate()
    assert found == [], "the sandbox does not hold: " + ", ".join(found)
""",
    entry_point="escapes",
)


@dataclass(frozen=True, slots=True)
class Verdict:
    """Whether a program passed, and if not, why in a few words."""

    passed: bool
    reason: str = ""


@dataclass(frozen=True, slots=True)
class Sandbox:
    """Limits of one program."""

    seconds: float = 8.0  # of wall-clock time, for the program and its test together
    cpu_seconds: int = 6
    memory: int = 512 << 20  # bytes of address space

    def unavailable(self) -> str | None:
        """Why programs cannot be isolated here; None where they can."""
        verdict = self.run(PROBE)
        return None if verdict.passed else f"programs cannot be isolated here: {verdict.reason}"

    def run_all(self, programs: Sequence[Program], *, share: int = 1) -> list[Verdict]:
        """Run programs side by side, on one `share`th of this machine."""
        with ThreadPoolExecutor(self.workers(share)) as pool:
            return list(pool.map(self.run, programs))

    def workers(self, share: int = 1) -> int:
        """Programs at a time: one a core, and no more than the free memory has room for at their limits."""
        room = free_memory() // (PROCESSES * self.memory)
        return max(1, min(cores(), room) // share)

    def run(self, program: Program) -> Verdict:
        """Run one program against its test."""
        token = secrets.token_hex(16)
        task = {
            "source": program.source, "test": program.test, "entry_point": program.entry_point,
            "memory": self.memory, "cpu_seconds": self.cpu_seconds, "token": token,
        }  # fmt: skip
        try:
            answer = self._exchange(json.dumps(task).encode())
        except subprocess.TimeoutExpired:
            return Verdict(False, "out of time")
        try:
            result = json.loads(answer)
        except ValueError:
            return Verdict(False, "the test ended without a result")
        passed = secrets.compare_digest(str(result.get("token", "")), token)
        return Verdict(passed, str(result.get("reason", "")))

    def _exchange(self, task: bytes) -> bytes:
        """Start candidate and judge with pipes between them; what the judge said. Both are dead afterwards."""
        request_end, requests = os.pipe()
        answers, answer_end = os.pipe()
        started: list[subprocess.Popen[bytes]] = []
        try:
            try:
                started.append(_start(["candidate"], stdin=request_end, stdout=answer_end))
                arguments = ["judge", str(answers), str(requests)]
                judge = _start(arguments, stdin=subprocess.PIPE, stdout=subprocess.PIPE, keep=(answers, requests))
                started.append(judge)
            finally:
                for fd in (request_end, requests, answers, answer_end):
                    os.close(fd)  # the processes have them, and each must see the end of the other
            said, _ = judge.communicate(task, timeout=self.seconds)
            return said
        finally:
            for process in started:
                process.kill()  # neither can have started another process
                process.communicate()


def _start(arguments: list[str], *, stdin: int, stdout: int, keep: tuple[int, ...] = ()) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, "-I", "-S", str(CHILD), *arguments],
        stdin=stdin, stdout=stdout, stderr=subprocess.DEVNULL, pass_fds=keep, env={}, cwd="/", start_new_session=True,
    )  # fmt: skip
