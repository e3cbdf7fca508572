"""A pipeline of all stages that runs in half a minute, and the `nanochat` command as a user types it."""

from __future__ import annotations

import contextlib
import io
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any
from unittest import mock

import psutil
import pytest
import yaml

from nanochat.cli.main import main

PIPELINE = """
apiVersion: nanochat.dev/v1alpha1
kind: ChatPipeline
metadata: {name: small}
spec:
  model: {depth: 1, width: 32, headDim: 16, sequenceLength: 64}
  sources: {text: {kind: world, charactersPerShard: 200000, shards: 1, validationShard: 9}}
  stages:
    tokenizer: {vocabSize: 400, maxChars: 200000}
    base: {steps: 4, totalBatchTokens: 256, deviceBatchSize: 4, compile: never, evalTokens: 512}
    mid:
      mixture: [{task: world-facts, rows: 200}]
      validation: [{task: world-facts, split: test, rows: 20}]
      steps: 3
      totalBatchTokens: 256
      deviceBatchSize: 4
      compile: never
      evalTokens: 512
    sft:
      mixture: [{task: world-sums, rows: 200}]
      validation: [{task: world-facts, split: test, rows: 20}]
      steps: 3
      rowsPerStep: 4
      compile: never
    rl:
      tasks: [{task: world-sums, rows: 8}]
      steps: 2
      promptsPerStep: 2
      samplesPerPrompt: 2
      maxNewTokens: 8
      compile: never
      evalEvery: 2
      evalRows: 2
    evalBase: {core: false, bitsPerByteTokens: 512}
    evalChat: {tasks: [{task: world-facts}, {task: world-sums}], maxPerTask: 4, maxNewTokens: 8, samplePrompts: ["Hi"]}
"""


STRIPPED = ("NANOCHAT_ROOT", "NANOCHAT_ENDPOINT", "NANOCHAT_PROFILES", "MLFLOW_TRACKING_URI")
# For runs that are not about tracking: nothing listens there, and MLflow, which takes seconds, is not even imported.
UNTRACKED = {"MLFLOW_TRACKING_URI": "http://127.0.0.1:9"}
COMMAND = [sys.executable, "-m", "nanochat.cli.main"]


def variables_of(home: Path, environment: Mapping[str, str]) -> dict[str, str]:
    """The variables under which the command keeps all it has in `home/state`, unless NANOCHAT_HOME says else."""
    kept = {name: value for name, value in os.environ.items() if name not in STRIPPED}
    return {**kept, "NANOCHAT_HOME": str(home / "state"), "COLUMNS": "200", **environment}


def nanochat(home: Path, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run the command in the folder `home` to its end."""
    own = variables_of(home, environment)
    command = [*COMMAND, *arguments]
    return subprocess.run(command, cwd=home, env=own, capture_output=True, text=True, timeout=300, check=False)


def called(home: Path, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run the command in this process, which saves the start of one; for what trains nothing."""
    command, out, err = ["nanochat", *arguments], io.StringIO(), io.StringIO()
    with (
        mock.patch.dict(os.environ, variables_of(home, environment), clear=True),
        mock.patch.object(sys, "argv", command),
        contextlib.chdir(home),
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
        pytest.raises(SystemExit) as ended,
    ):
        main()
    return subprocess.CompletedProcess(command, ended.value.code or 0, out.getvalue(), err.getvalue())


def started(home: Path, *arguments: str, log: Path | None = None, **environment: str) -> subprocess.Popen[str]:
    """Start the command; its output is in `output.log` of the home, or of the folder `log`."""
    own = variables_of(home, environment)
    with ((log or home) / "output.log").open("w") as out:
        return subprocess.Popen(
            [*COMMAND, *arguments], cwd=home, env=own, stdout=out, stderr=subprocess.STDOUT, text=True
        )


def mistake(done: subprocess.CompletedProcess[str]) -> str:
    """The one sentence of a command that failed."""
    printed = done.stdout + done.stderr
    assert done.returncode not in (0, None), printed
    assert "Traceback" not in printed, printed
    found = [line for line in printed.splitlines() if line.startswith(("error: ", "Failed: "))]
    assert len(found) == 1, printed
    return found[0]


def output(home: Path) -> str:
    """The output so far of the command that was `started`."""
    return (home / "output.log").read_text()


def lines(text: str) -> dict[str, str]:
    """The last word on each stage."""
    found = {}
    for line in text.splitlines():
        stage, _, rest = line.partition(" ")
        found[stage] = rest.strip()
    return found


def wait_until(condition: Callable[[], Any], *, process: subprocess.Popen[str], home: Path) -> Any:
    """The condition's first true value; fails where the command ends before."""
    deadline = time.monotonic() + 120
    while not (found := condition()):
        assert process.poll() is None and time.monotonic() < deadline, output(home)
        time.sleep(0.1)
    return found


def launch_processes(home: Path) -> list[psutil.Process]:
    """Processes of stages of this home: launchers, torchrun, ranks."""
    found = []
    for process in psutil.process_iter(["cmdline"]):
        words = process.info["cmdline"] or ()
        if any(word.startswith(str(home)) and word.endswith("plan.json") for word in words):
            found.append(process)
    return found


def stored(home: Path, pattern: str) -> list[dict[str, Any]]:
    """JSON files of the store in the home, by path."""
    return [json.loads(path.read_text()) for path in sorted((home / "state").glob(pattern))]


def write_pipeline(home: Path, **sections: Mapping[str, Any]) -> None:
    """Put small.yaml, with sections of its stages changed, into the home."""
    data = yaml.safe_load(PIPELINE)
    for name, values in sections.items():
        section = data["spec"] if name == "retries" else data["spec"]["stages"]
        section[name] = {**section.get(name, {}), **values}
    (home / "small.yaml").write_text(yaml.safe_dump(data))
