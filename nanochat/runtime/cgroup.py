"""Limits of this process's control group: what a container or pod may use of its machine. Imports no torch.

    cpu_quota()      # cores, or None
    free_memory()    # bytes
    kernel_kills()   # processes; where one ended by SIGKILL and there are more now, memory was why

Version 2 and version 1 of the kernel's interface are read, in the process's own group and all those above it: the
tightest decides.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

ROOT = Path("/")


def cpu_quota(root: Path = ROOT) -> float | None:
    """Cores' worth of time that the group may use; None where there is no limit."""
    found = []
    for folder in _folders(root, "cpu"):
        with suppress(OSError, ValueError):
            if (folder / "cpu.max").is_file():
                quota, period = (folder / "cpu.max").read_text().split()
            else:
                quota, period = (_read(folder / f"cpu.cfs_{name}_us") for name in ("quota", "period"))
            if float(quota) > 0 and float(period) > 0:  # 'max' is no number, and -1 no limit
                found.append(float(quota) / float(period))
    return min(found, default=None)


def free_memory(root: Path = ROOT) -> int:
    """Bytes that can still be used: of the machine, and within the group's limit."""
    found = [_machine_memory(root)]
    for folder in _folders(root, "memory"):
        for limit, used, cached in (
            ("memory.max", "memory.current", "inactive_file"),
            ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
        ):
            with suppress(OSError, ValueError):
                most = int(_read(folder / limit))  # 'max' is no number
                given_back = _table(folder / "memory.stat").get(cached, 0)  # file contents that can be dropped
                found.append(max(0, most - int(_read(folder / used)) + given_back))
    return min(found)


def kernel_kills(root: Path = ROOT) -> int:
    """How many processes of the own group the kernel has killed for memory; 0 where nobody counts them.

    A limit of any group above counts in the group of the process that it killed.
    """
    for folder in _folders(root, "memory"):
        for name in ("memory.events", "memory.oom_control"):
            if (kills := _table(folder / name).get("oom_kill")) is not None:
                return kills
    return 0


def _folders(root: Path, controller: str) -> Iterator[Path]:
    """Folders of the group and of those above it, for either version of the interface."""
    groups = root / "sys/fs/cgroup"
    with suppress(OSError):
        for line in (root / "proc/self/cgroup").read_text().splitlines():
            number, controllers, path = line.split(":", 2)
            if number == "0":
                top = groups
            elif controller in controllers.split(","):
                top = groups / controller
            else:
                continue
            # In a container the path can be the machine's, while the files of its own group lie at the top.
            parts = [part for part in path.split("/") if part and part != ".."]
            yield from (top.joinpath(*parts[:depth]) for depth in range(len(parts), -1, -1))


def _machine_memory(root: Path) -> int:
    with suppress(OSError, KeyError):
        return _table(root / "proc/meminfo")["MemAvailable:"] * 1024
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def _read(path: Path) -> str:
    return path.read_text().strip()


def _table(path: Path) -> dict[str, int]:
    """Lines of a name and a number; none where there is no such file."""
    with suppress(OSError):
        lines = (line.split() for line in path.read_text().splitlines())
        return {words[0]: int(words[1]) for words in lines if len(words) > 1}
    return {}
