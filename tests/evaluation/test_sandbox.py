"""The sandbox: right programs pass, wrong ones fail, and attacks get nowhere."""

from __future__ import annotations

import json
import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, astuple
from pathlib import Path

import pytest
from hostile_programs import CHEATS, ESCAPES, cheat_program, escape_program

import nanochat
import tasks
from nanochat.evaluation import confinement
from nanochat.evaluation.sandbox import PROBE, Sandbox, Verdict
from nanochat.evaluation.sandbox_child import decode, encode
from tasks import Program

REASON = Sandbox().unavailable()
isolated = pytest.mark.skipif(REASON is not None, reason=str(REASON))
# How an escape may end that is refused: a mistake in an attempt (NameError, TypeError, ...) is none of these.
REFUSALS = (
    "PermissionError", "OSError", "FileNotFoundError", "AssertionError", "RuntimeError", "ValueError", "itimer_error",
    "ImportError", "ModuleNotFoundError", "URLError", "gaierror",
)  # fmt: skip
NOBODY = 65534
DRIVER = """
import json, sys
from nanochat.evaluation.sandbox import Sandbox
from tasks import Program
limits, programs = json.load(sys.stdin)
verdicts = Sandbox(**limits).run_all([Program(*each) for each in programs])
print(json.dumps([[verdict.passed, verdict.reason] for verdict in verdicts]))
"""

Run = Callable[[Sandbox, Sequence[Program]], list[Verdict]]


@pytest.fixture(scope="module", params=["this user", "nobody"])
def run_all(request: pytest.FixtureRequest) -> Iterator[Run]:
    """Runs programs as the user of the tests, and, where that is root, from a process of nobody's."""
    if request.param == "this user":
        yield lambda sandbox, programs: sandbox.run_all(programs)
        return
    if os.geteuid() != 0:
        pytest.skip("only root can become nobody")
    folder = Path(tempfile.mkdtemp())  # pytest's own are closed to others
    for module in ("evaluation/sandbox", "evaluation/sandbox_child", "evaluation/confinement", "runtime/cgroup",
                   "runtime/threads"):  # fmt: skip
        copied = folder / f"nanochat/{module}.py"
        copied.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(Path(nanochat.__file__).parent / f"{module}.py", copied)
    shutil.copytree(Path(tasks.__file__).parent, folder / "tasks")
    subprocess.run(["chmod", "-R", "a+rX", folder], check=True)
    pythons = [sys.executable, shutil.which("python3", path="/usr/local/bin:/usr/bin")]
    python = next((each for each in pythons if each and _runs_as_nobody(each)), None)

    def run(sandbox: Sandbox, programs: Sequence[Program]) -> list[Verdict]:
        ran = subprocess.run(
            [str(python), "-c", DRIVER],
            input=json.dumps([asdict(sandbox), [astuple(program) for program in programs]]),
            user=NOBODY, group=NOBODY, extra_groups=[], cwd=folder, env={}, text=True, capture_output=True, check=True,
        )  # fmt: skip
        return [Verdict(*each) for each in json.loads(ran.stdout)]

    try:
        if python is None:
            pytest.skip("nobody can run no Python here")
        yield run
    finally:
        shutil.rmtree(folder)


def _runs_as_nobody(python: str) -> bool:
    try:
        subprocess.run([python, "-c", "import ctypes"], user=NOBODY, group=NOBODY, cwd="/", env={}, check=True)
    except (OSError, subprocess.CalledProcessError):
        return False
    return True


@isolated
def test_every_escape_is_refused(run_all: Run) -> None:
    attempts = [(mechanism, attempt) for mechanism, each in ESCAPES.items() for attempt in each]
    assert len(attempts) >= 100
    if platform.machine() != "x86_64":  # system calls have other numbers there
        attempts = [each for each in attempts if not re.search(r"\b(call|machine_code)\(", each[1])]
    verdicts = run_all(Sandbox(seconds=20.0, cpu_seconds=5), [escape_program(attempt) for _, attempt in attempts])
    for (mechanism, attempt), verdict in zip(attempts, verdicts, strict=True):
        assert not verdict.passed
        error, _, name = verdict.reason.partition(": ")
        killed = mechanism == "other numbers of the same calls" and error == "WrongAnswer"
        assert killed or (error == "LookupError" and name in REFUSALS), (mechanism, attempt, verdict)


@isolated
def test_no_cheat_passes(run_all: Run) -> None:
    cheats = [source for each in CHEATS.values() for source in each]
    assert len(CHEATS) >= 12 and len(cheats) >= 40
    honest = "def f(x): return x * x"
    verdicts = run_all(Sandbox(seconds=4.0, cpu_seconds=1), [cheat_program(source) for source in (*cheats, honest)])
    passed = [source for source, verdict in zip((*cheats, honest), verdicts, strict=True) if verdict.passed]
    assert passed == [honest]


def run(source: str, *, seconds: float = 6.0) -> bool:
    return Sandbox(seconds=seconds, cpu_seconds=1).run(cheat_program(source)).passed


@isolated
def test_right_passes_and_wrong_fails() -> None:
    assert run("def f(x): return x * x")
    assert not run("def f(x): return x + x")
    assert not run("def f(x) return")
    assert not run("x = 1")
    assert not run("def f(x): raise ValueError")
    assert run("import statistics, itertools, hashlib\ndef f(x):\n    print('noise')\n    return x ** 2")


@isolated
def test_environment_is_empty() -> None:
    os.environ["NANOCHAT_TEST_SECRET"] = "secret"
    try:
        verdict = Sandbox().run(escape_program("raise LookupError(sorted(os.environ))"))
        assert verdict.reason == "LookupError: LookupError"
        assert (
            Sandbox()
            .run(escape_program("assert 'NANOCHAT_TEST_SECRET' in os.environ"))
            .reason.endswith("AssertionError")
        )
    finally:
        del os.environ["NANOCHAT_TEST_SECRET"]


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
def test_humanevals_own_solutions_pass(mirror: Path, tmp_path: Path, run_all: Run) -> None:
    kind = tasks.find("humaneval")
    (file,) = kind.files["test"]
    shutil.copy(mirror / file.path, tmp_path / file.local)
    task = kind(tmp_path, "test")
    assert len(task) == 164
    programs = [task.grade(example, example.messages[-1]["content"]) for example in task]
    verdicts = run_all(Sandbox(seconds=30.0), [program for program in programs if isinstance(program, Program)])
    assert [verdict.reason for verdict in verdicts] == [""] * 164
    assert all(verdict.passed for verdict in verdicts)
