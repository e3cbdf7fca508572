"""`nanochat serve` in a process of its own, for tests and for the fuzzer."""

from __future__ import annotations

import socket
import subprocess
import sys
from pathlib import Path
from typing import Any


def free_port() -> int:
    """A port that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def start_serve(folder: Path, *, before: str = "", **options: Any) -> tuple[subprocess.Popen[Any], str]:
    """The process that serves the model in a folder, and its address; `before` is code that it runs first."""
    port = free_port()
    script = f"""
from nanochat.runtime.threads import settle
settle()
from pathlib import Path
from nanochat.cli.serve import serve
from nanochat.inference import Engine
{before}
serve(folder=Path({str(folder)!r}), port={port})
"""
    return subprocess.Popen([sys.executable, "-c", script], **options), f"http://127.0.0.1:{port}"
