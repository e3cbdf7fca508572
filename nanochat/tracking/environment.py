"""The machine and the software that a stage ran on, for the journal and the report."""

from __future__ import annotations

import getpass
import os
import platform
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

import psutil

from nanochat import __version__
from nanochat.runtime.threads import cores


def environment() -> dict[str, Any]:
    """Platform, CPUs, memory, GPUs, versions, commit and user, as JSON. GPUs are told only where torch is loaded."""
    return {
        "platform": platform.platform(),
        "cpu": _cpu_name(),
        "cpus": cores(),
        "memory": psutil.virtual_memory().total,  # bytes
        "gpus": _gpus(),
        "python": platform.python_version(),
        "torch": _version("torch"),
        "nanochat": __version__,
        "commit": commit(),
        "user": None if "NANOCHAT_POD_UID" in os.environ else user(),  # a pod's says nothing of people
    }


def user() -> str | None:
    """The name of whoever runs this process; None where the system knows none."""
    try:
        return getpass.getuser()
    except (OSError, KeyError, ImportError):  # a container's user may have no name
        return None


def commit() -> str | None:
    """The commit that the package runs from, with `+` where files are changed; None where it is not a checkout.

    Images carry it in $NANOCHAT_COMMIT.
    """
    given = os.environ.get("NANOCHAT_COMMIT")
    if given:
        return given
    root = Path(__file__).resolve().parents[2]
    if not (root / ".git").exists():
        return None
    try:
        revision = _git(root, "rev-parse", "--short=12", "HEAD")
        return revision + ("+" if _git(root, "status", "--porcelain", "--untracked-files=no") else "")
    except (OSError, subprocess.SubprocessError):
        return None


def _git(root: Path, *arguments: str) -> str:
    done = subprocess.run(["git", "-C", str(root), *arguments], capture_output=True, text=True, timeout=5, check=True)
    return done.stdout.strip()


def _gpus() -> list[dict[str, Any]]:
    torch = sys.modules.get("torch")  # a CPU stage does not import it for this
    if torch is None or not torch.cuda.is_available():
        return []
    found = (torch.cuda.get_device_properties(i) for i in range(torch.cuda.device_count()))
    return [{"name": gpu.name, "memory": gpu.total_memory} for gpu in found]


def _cpu_name() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None
