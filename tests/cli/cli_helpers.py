"""Running the `nanochat` command as a user does, and what one mistake may print."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

STRIPPED = ("NANOCHAT_ROOT", "NANOCHAT_ENDPOINT", "NANOCHAT_PROFILES", "MLFLOW_TRACKING_URI")


def nanochat(home: Path, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """`nanochat ...` in the folder `home`, whose folder `state` holds all it makes, unless NANOCHAT_HOME says else."""
    kept = {name: value for name, value in os.environ.items() if name not in STRIPPED}
    variables = {**kept, "NANOCHAT_HOME": str(home / "state"), "COLUMNS": "200", "OMP_NUM_THREADS": "1", **environment}
    command = [sys.executable, "-m", "nanochat.cli.main", *arguments]
    return subprocess.run(command, cwd=home, env=variables, capture_output=True, text=True, timeout=300, check=False)


def mistake(done: subprocess.CompletedProcess[str]) -> str:
    """The one sentence of a command that failed."""
    printed = done.stdout + done.stderr
    assert done.returncode not in (0, None), printed
    assert "Traceback" not in printed, printed
    found = [line for line in printed.splitlines() if line.startswith(("error: ", "Failed: "))]
    assert len(found) == 1, printed
    return found[0]


def last_words(done: subprocess.CompletedProcess[str]) -> dict[str, str]:
    """The last line on each stage."""
    found = {}
    for line in done.stdout.splitlines():
        stage, _, rest = line.partition(" ")
        found[stage] = rest.strip()
    return found
