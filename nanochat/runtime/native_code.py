"""A C++ source of this package as a library for this machine, compiled once and kept. Imports no torch.

    library = ctypes.CDLL(str(compiled(source, "FORMAT=float")))     # Uncompiled says why not

It is kept in ~/.cache/nanochat/native (XDG_CACHE_HOME), by all that decides what it is: source, headers of its folder,
command, compiler and the CPU's instructions. OpenMP's functions are left open, for PyTorch brings them: both then share
one set of threads.
"""

from __future__ import annotations

import hashlib
import os
import platform
import shlex
import subprocess
import tempfile
from collections.abc import Sequence
from functools import cache
from pathlib import Path

from nanochat.runtime.compiler import cxx_compiler
from nanochat.storage import files

OPTIONS = ("-std=c++17", "-O2", "-fvect-cost-model=dynamic", "-march=native", "-fPIC")
SECONDS = 600.0  # that a compiler may take; it takes two, and on a crowded machine long


class Uncompiled(Exception):
    """There is no library, and the message says why."""


def compiled(source: Path, *defined: str) -> Path:
    """The library of a source with these macros; `Uncompiled` where it can't be made."""
    command = _compiler()
    try:
        library = _library(source, defined)
        if not library.exists():
            with tempfile.TemporaryDirectory() as scratch:
                code, linked = Path(scratch, "code.o"), files.temporary(library)
                _run([*command, *_options(defined), "-fopenmp", "-c", str(source), "-o", str(code)])
                _run([*command, "-shared", str(code), "-o", str(linked)])
                os.replace(linked, library)
    except OSError as error:
        raise Uncompiled(f"its code can't be kept ({error.strerror or error})") from None
    return library


def takes_time(source: Path, *defined: str) -> bool:
    """Whether `compiled` is going to compile."""
    try:
        return not _library(source, defined).exists()
    except (OSError, Uncompiled):
        return False


def _library(source: Path, defined: Sequence[str]) -> Path:
    command = _compiler()
    version = _run([*command, "--version"])
    texts = [file.read_text() for file in (source, *sorted(source.parent.glob("*.h")))]
    parts = [*texts, *command, version, *_options(defined), platform.machine(), instructions()]
    return _folder() / f"{hashlib.sha256(chr(0).join(parts).encode()).hexdigest()[:32]}.so"


def _compiler() -> list[str]:
    command = cxx_compiler()
    if command is None:
        raise Uncompiled("there is no C++ compiler; install g++")
    return shlex.split(command)


def _options(defined: Sequence[str]) -> list[str]:
    return [*OPTIONS, *(f"-D{each}" for each in defined)]


def instructions() -> str:
    """The instructions that this machine's CPU has, as Linux names them; '' elsewhere."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return ""
    return next((line for line in lines if line.startswith(("flags", "Features"))), "")


@cache
def _folder() -> Path:
    """The user's own folder for such code, or a new one where there is no home to write to."""
    home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    folder = home / "nanochat" / "native"
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        usable = os.access(folder, os.W_OK) and folder.stat().st_uid == os.getuid()
    except (OSError, RuntimeError):
        usable = False
    return folder if usable else Path(tempfile.mkdtemp(prefix="nanochat-native-"))


def _run(command: list[str]) -> str:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=SECONDS, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise Uncompiled(f"{command[0]} can't be run ({type(error).__name__})") from None
    if done.returncode:
        said = next((line for line in done.stderr.splitlines() if "error" in line), done.stderr)
        raise Uncompiled(f"{command[0]} can't compile it ({said.strip()[:200]})")
    return done.stdout
