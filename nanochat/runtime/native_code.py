"""A C++ source of this package as a library for this machine, compiled once and kept. Imports no torch.

    library = ctypes.CDLL(str(compiled(source, "FORMAT=float")))     # Uncompiled says why not

It is kept in ~/.cache/nanochat/native (XDG_CACHE_HOME), by all that decides what it is: source, headers of its folder,
command, compiler and the CPU's instructions. OpenMP's functions are left open, for PyTorch brings them: both then share
one set of threads. Where there is no compiler, it is the library for the best of LEVELS that this CPU reaches, if the
image has some: `build` makes them.
"""

from __future__ import annotations

import hashlib
import os
import platform
import shlex
import subprocess
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from nanochat.runtime.compiler import cxx_compiler
from nanochat.storage import files

NATIVE = "-march=native"
OPTIONS = ("-std=c++17", "-O2", "-fvect-cost-model=dynamic", NATIVE, "-fPIC")
BUILT = Path(__file__).parents[2] / "native"  # the folder of libraries that an image brings
SECONDS = 600.0  # that a compiler may take; it takes two, and on a crowded machine long


@dataclass(frozen=True, slots=True)
class Level:
    """CPUs that a library is made for beforehand."""

    name: str
    machine: str
    options: tuple[str, ...]
    needed: frozenset[str]  # instructions, as Linux names them


_V3 = frozenset(("avx", "avx2", "bmi1", "bmi2", "f16c", "fma", "abm", "movbe", "xsave"))
_V4 = _V3 | {"avx512f", "avx512bw", "avx512cd", "avx512dq", "avx512vl"}
LEVELS = (  # the best first
    Level("avx512-bf16", "x86_64", ("-march=x86-64-v4", "-mavx512bf16"), _V4 | {"avx512_bf16"}),
    Level("x86-64-v4", "x86_64", ("-march=x86-64-v4",), _V4),
    Level("x86-64-v3", "x86_64", ("-march=x86-64-v3",), _V3),
    Level("armv8-a", "aarch64", ("-march=armv8-a",), frozenset()),
)


class Uncompiled(Exception):
    """There is no library, and the message says why."""


def compiled(source: Path, *defined: str) -> Path:
    """The library of a source with these macros; `Uncompiled` where it can't be made, and none was brought."""
    if cxx_compiler() is None:
        return _brought(source, defined)
    try:
        library = _library(source, defined)
        if not library.exists():
            _compile(source, _options(defined), library)
    except OSError as error:
        raise Uncompiled(f"its code can't be kept ({error.strerror or error})") from None
    return library


def build(source: Path, *defined: str, folder: Path) -> list[Path]:
    """Make the libraries of a source with these macros for all CPUs of this machine's kind."""
    libraries = []
    for level in LEVELS:
        if level.machine == platform.machine():
            libraries.append(folder / _name(source, defined, level))
            _compile(source, _options(defined, level), libraries[-1])
    return libraries


def level_of(library: Path) -> str:
    """The level that a library was made for beforehand; '' where it was compiled here."""
    return library.stem.partition("-")[2]


def _brought(source: Path, defined: Sequence[str]) -> Path:
    if not BUILT.is_dir():
        raise Uncompiled("there is no C++ compiler; install g++")
    has = set(instructions().split())
    fitting = [level for level in LEVELS if level.machine == platform.machine() and level.needed <= has]
    found = [library for level in fitting if (library := BUILT / _name(source, defined, level)).exists()]
    if not found:
        raise Uncompiled(f"there is no C++ compiler, and in {BUILT} nothing for this code and this CPU; install g++")
    return found[0]


def _name(source: Path, defined: Sequence[str], level: Level) -> str:
    return f"{_digest(source, _options(defined, level))}-{level.name}.so"


def _compile(source: Path, options: Sequence[str], library: Path) -> None:
    command = _compiler()
    with tempfile.TemporaryDirectory() as scratch:
        code, linked = Path(scratch, "code.o"), files.temporary(library)
        _run([*command, *options, "-fopenmp", "-c", str(source), "-o", str(code)])
        _run([*command, "-shared", str(code), "-o", str(linked)])
        os.replace(linked, library)


def takes_time(source: Path, *defined: str) -> bool:
    """Whether `compiled` is going to compile."""
    try:
        return not _library(source, defined).exists()
    except (OSError, Uncompiled):
        return False


def _library(source: Path, defined: Sequence[str]) -> Path:
    command = _compiler()
    version = _run([*command, "--version"])
    parts = [*command, version, *_options(defined), platform.machine(), instructions()]
    return _folder() / f"{_digest(source, parts)}.so"


def _digest(source: Path, parts: Sequence[str]) -> str:
    texts = [file.read_text() for file in (source, *sorted(source.parent.glob("*.h")))]
    return hashlib.sha256(chr(0).join((*texts, *parts)).encode()).hexdigest()[:32]


def _compiler() -> list[str]:
    command = cxx_compiler()
    if command is None:
        raise Uncompiled("there is no C++ compiler; install g++")
    return shlex.split(command)


def _options(defined: Sequence[str], level: Level | None = None) -> list[str]:
    chosen = OPTIONS if level is None else (*(option for option in OPTIONS if option != NATIVE), *level.options)
    return [*chosen, *(f"-D{each}" for each in defined)]


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
