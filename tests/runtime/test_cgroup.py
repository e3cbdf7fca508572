"""Limits of a container, in both versions of the kernel's interface."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from nanochat.runtime import threads
from nanochat.runtime.cgroup import cpu_quota, free_memory, kernel_kills

GIB = 1 << 30
MACHINE = {"proc/meminfo": f"MemTotal: {128 * GIB >> 10} kB\nMemAvailable: {100 * GIB >> 10} kB\n"}
V1 = "memory.limit_in_bytes", "memory.usage_in_bytes", "memory.stat"
V2 = "memory.max", "memory.current", "memory.stat"


def machine(root: Path, **files: str) -> Path:
    for name, content in (MACHINE | files).items():
        path = root / name.replace("__", "/")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)
    return root


def group(folder: str, names: tuple[str, str, str], limit: object, used: int, cached: int) -> dict[str, str]:
    stat = f"anon 5\ninactive_file {cached}\ntotal_inactive_file {cached}\n"
    return {
        f"sys/fs/cgroup/{folder}{name}": text
        for name, text in zip(names, (f"{limit}\n", f"{used}\n", stat), strict=True)
    }


@pytest.mark.parametrize(
    ("files", "free"),
    [
        ({}, 100 * GIB),
        ({"proc/self/cgroup": "0::/\n"}, 100 * GIB),
        # a pod: what it has written to files counts as used and can be taken back
        ({"proc/self/cgroup": "0::/\n"} | group("", V2, 4 * GIB, 3 * GIB, 2 * GIB), 3 * GIB),
        ({"proc/self/cgroup": "0::/\n"} | group("", V2, "max", 3 * GIB, 0), 100 * GIB),
        # a service of a machine: the slice above it is tighter
        (
            {"proc/self/cgroup": "0::/a.slice/b.service\n"}
            | group("a.slice/b.service/", V2, 8 * GIB, GIB, 0)
            | group("a.slice/", V2, 4 * GIB, 2 * GIB, 0),
            2 * GIB,
        ),
        # version 1, in a container that sees its group at the top and the machine's path in /proc
        ({"proc/self/cgroup": "4:memory:/kubepods/x\n0::/\n"} | group("memory/", V1, 2 * GIB, GIB, 0), GIB),
        ({"proc/self/cgroup": "4:memory:/x\n"} | group("memory/x/", V1, 1 << 63, GIB, 0), 100 * GIB),
        ({"proc/self/cgroup": "0::/\n"} | group("", V2, GIB, 2 * GIB, 0), 0),
    ],
)
def test_free_memory_is_what_machine_and_group_both_have(tmp_path: Path, files: dict[str, str], free: int) -> None:
    assert free_memory(machine(tmp_path, **files)) == free


@pytest.mark.parametrize(
    ("files", "cores"),
    [
        ({}, None),
        ({"sys/fs/cgroup/cpu.max": "max 100000\n"}, None),
        ({"sys/fs/cgroup/cpu.max": "150000 100000\n"}, 1.5),
        ({"sys/fs/cgroup/cpu/cpu.cfs_quota_us": "-1\n", "sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000\n"}, None),
        ({"sys/fs/cgroup/cpu/cpu.cfs_quota_us": "50000\n", "sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000\n"}, 0.5),
    ],
)
def test_quota_of_cpu_time(tmp_path: Path, files: dict[str, str], cores: float | None) -> None:
    files = {"proc/self/cgroup": "7:cpu,cpuacct:/pod\n0::/pod\n"} | files
    assert cpu_quota(machine(tmp_path, **files)) == cores


@pytest.mark.parametrize(
    ("groups", "files", "kills"),
    [
        ("0::/\n", {}, 0),  # nobody counts
        ("", {"memory.events": "oom_kill 4\n"}, 0),
        ("0::/\n", {"memory.events": "low 0\nmax 9\noom 5\noom_kill 4\noom_group_kill 0\n"}, 4),
        ("0::/a/b\n", {"a/b/memory.events": "oom_kill 1\n", "a/memory.events": "oom_kill 7\n"}, 1),
        ("0::/../x\n", {"memory.events": "oom_kill 2\n"}, 2),  # of a container
        ("4:memory:/x\n0::/\n", {"memory/x/memory.oom_control": "oom_kill_disable 0\nunder_oom 0\noom_kill 3\n"}, 3),
        ("4:memory:/docker/x\n", {"memory/memory.oom_control": "under_oom 0\noom_kill 5\n"}, 5),
        ("4:cpu,memory:/x\n", {"memory/x/memory.oom_control": "oom_kill_disable 0\nunder_oom 0\n"}, 0),  # old kernels
    ],
)
def test_kills_for_memory_are_those_of_the_own_group(
    tmp_path: Path, groups: str, files: dict[str, str], kills: int
) -> None:
    found = {f"sys/fs/cgroup/{name}": text for name, text in files.items()}
    assert kernel_kills(machine(tmp_path, **{"proc/self/cgroup": groups}, **found)) == kills


@pytest.mark.parametrize(("quota", "cores"), [(None, 6), (1.5, 2), (0.2, 1), (64.0, 6)])
def test_cores_are_no_more_than_there_is_time_of(
    monkeypatch: pytest.MonkeyPatch, quota: float | None, cores: int
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(6)), raising=False)
    monkeypatch.setattr(threads, "cpu_quota", lambda: quota)
    assert threads.cores() == cores
