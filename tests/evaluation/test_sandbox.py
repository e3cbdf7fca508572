"""The sandbox: right programs pass, wrong ones fail, and attacks get nowhere."""

from __future__ import annotations

import os
import shutil
import sys
import time
from pathlib import Path

import pytest

import tasks
from nanochat.evaluation import confinement
from nanochat.evaluation.sandbox import CHILD, PROBE, Sandbox
from nanochat.evaluation.sandbox_child import decode, encode
from tasks import Program

TEST = """
def check(candidate):
    assert candidate(2) == 4
    assert candidate(3) == 9
"""
REASON = Sandbox().unavailable()
isolated = pytest.mark.skipif(REASON is not None, reason=str(REASON))


def run(source: str, *, test: str = TEST, seconds: float = 6.0) -> bool:
    return Sandbox(seconds=seconds, cpu_seconds=1).run(Program(source, test, "f")).passed


def escaped(attempt: str) -> object:
    """What an attempt inside the sandbox comes to: its result, or 'refused' where it raises."""
    body = "\n".join(f"        {line}" for line in attempt.strip().splitlines())
    source = f"def f():\n    try:\n{body}\n    except BaseException as error:\n        return 'refused'\n"
    test = "def check(candidate):\n    raise ValueError(candidate())\n"
    return Sandbox(seconds=6.0, cpu_seconds=2).run(Program(source, test, "f")).reason


@isolated
def test_right_passes_and_wrong_fails() -> None:
    assert run("def f(x): return x * x")
    assert not run("def f(x): return x + x")
    assert not run("def f(x) return")
    assert not run("x = 1")
    assert not run("def f(x): raise ValueError")
    assert run("import statistics, itertools, hashlib\ndef f(x):\n    print('noise')\n    return x ** 2")


@isolated
def test_ending_the_program_is_not_passing() -> None:
    for end in ("import sys; sys.exit(0)", "import os; os._exit(0)", "raise SystemExit(0)", "quit()"):
        assert not run(end)
        assert not run(f"def f(x):\n    {end}")


@isolated
def test_answers_that_claim_to_equal_everything_fail() -> None:
    source = """
class Same(int):
    def __eq__(self, other): return True
    def __ne__(self, other): return False
    __hash__ = int.__hash__
def f(x): return Same(7)
"""
    assert not run(source)
    assert not run(source.replace("(int)", "").replace("Same(7)", "Same()").replace("int.__hash__", "None"))


@isolated
def test_patching_and_searching_find_nothing() -> None:
    search = """
import builtins, gc, json, os, sys
def f(x):
    frame, seen = sys._getframe(), []
    while frame:
        seen += [str(v) for v in frame.f_locals.values()] + [str(v) for v in frame.f_globals.values()]
        frame = frame.f_back
    seen += [str(v) for o in gc.get_objects() if isinstance(o, dict) for v in o.values()]
    seen = {s for s in seen if len(s) == 32 and set(s) <= set("0123456789abcdef")}
    for token in [*seen, "token", "pass"]:
        line = json.dumps({"confined": True, "token": token}).encode() + b"\\n"
        for fd in range(10):
            try: os.write(fd, line)
            except OSError: pass
    return 0
"""
    assert not run(search)
    assert not run("import builtins\nbuiltins.AssertionError = Exception\ncheck = lambda c: None\ndef f(x): return 0")
    assert not run("import sys, __main__\n__main__.encode = lambda v: ['list']\ndef f(x): return 0")


@isolated
def test_what_must_not_work_is_refused() -> None:
    own = os.getpid()
    attempts = {
        "return open('/etc/passwd').read()[:9]",
        "return open('/proc/self/environ').read()[:9]",
        f"return open('/proc/{own}/mem', 'rb').read(1)",
        f"return open({str(CHILD)!r}).read()[:9]",
        f"return open({str(Path(confinement.__file__))!r}).read()[:9]",
        "import os; return os.listdir('/')",
        "import os; return os.listdir('.')",
        "return open('written', 'w').write('x')",
        "return open('/tmp/written', 'w').write('x')",
        "import os; os.mkdir('/tmp/made'); return 'made'",
        "import os; os.unlink('/tmp/none'); return 'removed'",
        "import socket; socket.socket(); return 'socket'",
        "import socket; socket.socketpair(); return 'socket'",
        "import posix; return 'ran' if posix.system('true') == 0 else 1 / 0",
        "import os; return os.posix_spawn('/bin/true', ['true'], {})",
        "import os; os.execv('/bin/true', ['true'])",
        "import os; return os.fork()",
        "import threading; threading.Thread(target=print).start(); return 'thread'",
        "import os; os.kill(os.getppid(), 0); return 'signalled'",
        f"import os; os.kill({own}, 0); return 'signalled'",
        "import resource; resource.setrlimit(resource.RLIMIT_CPU, (99, 99)); return 'raised'",
        "import subprocess; return subprocess.check_output(['true'])",
        "import ctypes; return 'traced' if ctypes.CDLL(None).ptrace(16, 1, 0, 0) == 0 else 1 / 0",
        "import ctypes; return 'unshared' if ctypes.CDLL(None).unshare(0x10000000) == 0 else 1 / 0",
    }
    for attempt in sorted(attempts):
        assert escaped(attempt) == "ValueError: refused", attempt


@isolated
def test_environment_is_empty() -> None:
    os.environ["NANOCHAT_TEST_SECRET"] = "secret"
    try:
        assert "SECRET" not in str(escaped("import os; return sorted(os.environ)"))
    finally:
        del os.environ["NANOCHAT_TEST_SECRET"]


@isolated
def test_bombs_are_bounded() -> None:
    started = time.monotonic()
    assert not run("def f(x): return len(bytearray(4 << 30))")
    assert not run("import os\ndef f(x):\n    while True:\n        try: os.fork()\n        except OSError: pass")
    assert not run("def f(x):\n    while True: print('endless' * 1000)")
    assert not run("import os\nos.write(3, b'1' * (4 << 20))\ndef f(x): return 1")
    assert not run("def f(x): return 'long' * 1000000")
    assert not run("import time\ndef f(x): time.sleep(60)", seconds=0.5)
    assert not run("def f(x): return f(x)\nimport sys; sys.setrecursionlimit(10 ** 9)")
    assert not run("def f(x): return 10 ** 10000")
    assert time.monotonic() - started < 60  # far above what it takes, far below for ever


@isolated
def test_nothing_is_left_open_or_running() -> None:
    before = sorted(os.listdir("/proc/self/fd"))
    run("import time\ntime.sleep(60)\ndef f(x): return 0", seconds=0.3)
    assert sorted(os.listdir("/proc/self/fd")) == before


def test_without_confinement_no_program_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "plan9")
    with pytest.raises(confinement.NoConfinement, match="plan9"):
        confinement.confine(memory=1 << 30, cpu_seconds=1)
    assert Sandbox(memory=1 << 20).run(PROBE).passed is False


def test_plain_data_crosses_unchanged() -> None:
    for value in (
        None, True, 3, -2.5, float("inf"), "text \ud800", b"\x00\xff", [1, [2, (3,)]],
        {"a": {1, 2}, (1, 2): None}, 1 + 2j,
    ):  # fmt: skip
        again = decode(encode(value))
        assert again == value
        assert type(again) is type(value)
    with pytest.raises(TypeError, match="no plain data"):
        encode(object())


@pytest.mark.parametrize(
    ("free", "share", "workers"),
    [(64 << 30, 1, 64), (8 << 30, 1, 8), (8 << 30, 4, 2), (3 << 30, 4, 1), (100 << 20, 1, 1), (64 << 30, 8, 8)],
)
def test_programs_at_a_time_follow_the_memory(
    monkeypatch: pytest.MonkeyPatch, free: int, share: int, workers: int
) -> None:
    """64 cores; a program and its judge may take half a GiB each."""
    monkeypatch.setattr("nanochat.evaluation.sandbox.cores", lambda: 64)
    monkeypatch.setattr("nanochat.evaluation.sandbox.free_memory", lambda: free)
    assert Sandbox().workers(share) == workers


@isolated
def test_humanevals_own_solutions_pass(mirror: Path, tmp_path: Path) -> None:
    kind = tasks.find("humaneval")
    (file,) = kind.files["test"]
    shutil.copy(mirror / file.path, tmp_path / file.local)
    task = kind(tmp_path, "test")
    examples = [task[i] for i in range(0, len(task), 10)]
    programs = [task.grade(example, example.messages[-1]["content"]) for example in examples]
    assert all(isinstance(program, Program) for program in programs)
    verdicts = Sandbox(seconds=30.0).run_all([program for program in programs if isinstance(program, Program)])
    assert [verdict.reason for verdict in verdicts] == [""] * len(examples)
    assert all(verdict.passed for verdict in verdicts)
