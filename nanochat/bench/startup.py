"""`nanochat bench startup`: from a process's start to its first step, by parts, and a run that computes nothing."""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import psutil

from nanochat.bench.figures import Measured, times_faster
from nanochat.bench.measurement import (
    Contender,
    Measurement,
    compare,
    machine_table,
    measure_machine,
    ours,
    ratio_tables,
    theirs,
)
from nanochat.bench.shapes import describe
from nanochat.bench.tables import Table, seconds
from nanochat.bench.workers import Workers, with_package
from nanochat.spec.errors import UserError

CACHED = "a run with all in the store"
# A home of its own, whatever store and tracking server are usual here; an empty variable is none.
DEFAULTS = dict.fromkeys(("NANOCHAT_ROOT", "NANOCHAT_ENDPOINT", "NANOCHAT_PROFILES", "MLFLOW_TRACKING_URI"), "")
LONGEST = 1800.0  # seconds of a run
WHOLE = {"seconds", "cpu_seconds", "once"}  # figures that are no part of a start

# All stages, each of a few seconds: what is measured is the second run, which computes nothing.
PIPELINE = """
apiVersion: nanochat.dev/v1alpha1
kind: ChatPipeline
metadata: {name: bench}
spec:
  model: {depth: 1, width: 32, headDim: 16, sequenceLength: 64}
  sources: {text: {kind: world, charactersPerShard: 200000, shards: 1, validationShard: 9}}
  stages:
    tokenizer: {vocabSize: 400, maxChars: 200000}
    base: {steps: 1, totalBatchTokens: 256, deviceBatchSize: 4, compile: never, evalTokens: 512}
    mid:
      mixture: [{task: world-facts, rows: 20}]
      validation: [{task: world-facts, split: test, rows: 20}]
      steps: 1
      totalBatchTokens: 256
      deviceBatchSize: 4
      compile: never
      evalTokens: 512
    sft:
      mixture: [{task: world-sums, rows: 20}]
      validation: [{task: world-facts, split: test, rows: 20}]
      steps: 1
      rowsPerStep: 4
      compile: never
    rl: {enabled: false}
    evalBase: {core: false, bitsPerByteTokens: 512}
    evalChat: {tasks: [{task: world-sums}], maxPerTask: 2, maxNewTokens: 4, samplePrompts: ["Hi"]}
"""


def measure_startup(asked: Measurement) -> dict[str, Any]:
    """Start everything anew in each round -> the document for programs."""
    contenders = [*ours(asked, stage="base", steps=1), *theirs(asked, stage="base", steps=1)]
    rounds: dict[str, list[dict[str, float]]] = {contender.name: [] for contender in contenders} | {CACHED: []}
    with Workers() as workers, tempfile.TemporaryDirectory() as folder:
        machine = measure_machine(asked, workers)
        run(Path(folder), asked.variables)
        for number in range(asked.rounds):
            for contender in contenders if number % 2 == 0 else reversed(contenders):
                rounds[contender.name].append(start(contender))
            rounds[CACHED].append(run(Path(folder), asked.variables))
    found = [Measured(name, items) for name, items in rounds.items()]
    return {
        "bench": "startup",
        "shape": describe(asked.spec),
        "machine": machine,
        "measured": [item.to_dict() for item in found],
        "times_faster": compare(found[:-1], lambda a, b: times_faster(a, b, over="once")),
    }


def start(contender: Contender) -> dict[str, float]:
    """One process, to its second step: seconds of each part; compiling is what the first step takes longer."""
    with Workers() as workers:
        began = time.monotonic()
        worker = contender.start(workers)
        parts = worker.answer()["parts"]
        whole = time.monotonic() - began
        second = worker.ask("step")
        used = psutil.Process(worker.process.pid).cpu_times()
    first = parts.pop("first step")
    parts |= {"compile": max(0.0, first - second["seconds"]), "first step": min(first, second["seconds"])}
    return {**parts, "seconds": whole, "cpu_seconds": used.user + used.system, "once": 1.0}


def run(home: Path, variables: Mapping[str, str]) -> dict[str, float]:
    """`nanochat run` of the small pipeline in a home of its own, to its end."""
    file = home / "bench.yaml"
    file.write_text(PIPELINE)
    before, began = psutil.Process().cpu_times(), time.monotonic()
    try:
        done = subprocess.run(
            [sys.executable, "-P", "-m", "nanochat.cli.main", "run", str(file)],
            env=with_package({**variables, "NANOCHAT_HOME": str(home), **DEFAULTS}),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=LONGEST,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise UserError(f"the small pipeline that is run to be cached has not ended in {LONGEST:.0f} s") from None
    whole, after = time.monotonic() - began, psutil.Process().cpu_times()
    if done.returncode:
        last = (done.stdout.strip().splitlines() or ["it said nothing"])[-1]
        raise UserError(f"the small pipeline that is run to be cached did not end well: {last[:300]}")
    used = after.children_user + after.children_system - before.children_user - before.children_system
    return {"seconds": whole, "cpu_seconds": used, "once": 1.0}


def startup_tables(document: Mapping[str, Any]) -> list[Table]:
    """The document for people."""
    measured = document["measured"]
    whole = [
        [item["name"], *[seconds(item["figures"][name]) for name in ("seconds", "cpu_seconds")]] for item in measured
    ]
    tables = [
        machine_table(document["machine"]),
        Table("Start, to the first step or the end", ["", "time", "CPU time"], whole),
    ]
    for item in measured:
        parts = [[name, seconds(spread)] for name, spread in item["figures"].items() if name not in WHOLE]
        if parts:
            tables.append(Table(f"Parts: {item['name']}", ["", "time"], parts))
    return tables + ratio_tables(document, "Starts a second, round by round")
