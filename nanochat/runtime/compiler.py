"""The C++ compiler that torch.compile needs on a CPU. Imports no torch."""

from __future__ import annotations

import os
import shutil


def cxx_compiler() -> str | None:
    """The command that CXX names, else g++ or clang++; None where there is none of them."""
    return os.environ.get("CXX") or shutil.which("g++") or shutil.which("clang++")
