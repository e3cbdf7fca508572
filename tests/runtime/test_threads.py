"""What a process that computes sets for itself, before it imports PyTorch."""

from __future__ import annotations

import ctypes
import os
import runpy
import subprocess
import sys
from collections.abc import Callable

import pytest

from nanochat.cli import main as cli
from nanochat.runtime import threads
from nanochat.runtime.threads import cores
from nanochat.stages import __main__ as stages

REPORT = """
import os, resource, sys
from nanochat.runtime.threads import settle
settle()
print("torch" in sys.modules, *map(os.environ.get, ["OMP_NUM_THREADS", "OMP_WAIT_POLICY", "GOMP_SPINCOUNT"]))
for _ in range(3):
    bytearray(b"x") * (32 << 20)
begin = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(10):
    bytearray(b"x") * (32 << 20)
print((resource.getrusage(resource.RUSAGE_SELF).ru_minflt - begin) * resource.getpagesize() >> 20)
"""
UNSET = ("OMP_", "GOMP_", "MALLOC_", "GLIBC_TUNABLES")
glibc = pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "mallopt"), reason="mallopt is glibc's")


def settled(**variables: str) -> tuple[str, int]:
    """What a fresh process says of itself, and the MiB that the kernel mapped for ten tensors of 32 MiB in turn."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(UNSET)}
    run = subprocess.run(
        [sys.executable, "-c", REPORT], env=kept | variables, check=True, capture_output=True, text=True
    )
    first, second = run.stdout.splitlines()
    return first, int(second)


def test_threads_are_the_cores_and_wait_asleep_after_a_moment() -> None:
    assert settled()[0] == f"False {cores()} PASSIVE 1000"


def test_what_the_environment_says_counts() -> None:
    assert settled(OMP_NUM_THREADS="7", OMP_WAIT_POLICY="ACTIVE")[0] == "False 7 ACTIVE None"
    assert settled(GOMP_SPINCOUNT="5")[0] == f"False {cores()} PASSIVE 5"


@glibc
def test_memory_that_is_freed_is_used_again() -> None:
    assert settled()[1] < 32
    assert settled(MALLOC_MMAP_THRESHOLD_="131072", MALLOC_TRIM_THRESHOLD_="131072")[1] > 200


MATRICES = """
from nanochat.runtime.threads import settle
settle()
import psutil, torch
torch.set_num_threads(1)
process, weight = psutil.Process(), torch.ones(64, 64, dtype=torch.bfloat16)
def grown(first, last):
    begin = process.memory_info().rss
    for rows in range(first, last):
        torch.nn.functional.linear(torch.ones(rows, 64, dtype=torch.bfloat16), weight)
    return process.memory_info().rss - begin >> 20
grown(1, 300)
print(grown(300, 900))
"""


def test_kernels_of_many_shapes_do_not_fill_the_memory() -> None:
    """Prompts of 600 more lengths take no more room: 388 MiB where PyTorch keeps as many kernels as by itself."""
    kept = {name: value for name, value in os.environ.items() if name not in threads.KERNELS}
    run = subprocess.run([sys.executable, "-c", MATRICES], env=kept, check=True, capture_output=True, text=True)
    assert int(run.stdout) < 64


class Settled(Exception):
    pass


@pytest.mark.parametrize(
    ("where", "program"),
    [
        (stages, stages.main),
        (cli, lambda: cli.app(["serve", "--store", "/nowhere"], standalone_mode=False)),
        (cli, lambda: cli.app(["chat", "--store", "/nowhere"], standalone_mode=False)),
        (threads, lambda: runpy.run_module("nanochat.serving", run_name="__main__")),
    ],
)
def test_every_program_that_computes_begins_so(
    monkeypatch: pytest.MonkeyPatch, where: object, program: Callable[[], object]
) -> None:
    def settle() -> None:
        raise Settled

    monkeypatch.setattr(where, "settle", settle)
    with pytest.raises(Settled):
        program()
