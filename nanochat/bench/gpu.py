"""Measurements and tests on a CUDA GPU, in less than eight minutes: `make bench-gpu`; the tests alone: `make test-gpu`.

    python -m nanochat.bench.gpu [--only tests|steps] [--out FILE]

Steps are those of the speedrun on one of its eight GPUs, 32 rows of 2,048 tokens, at depth 12 and 20. Without a GPU it
ends with one sentence. All that was measured is in the file after each part: nothing is lost when the time is over.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
import xml.etree.ElementTree as ElementTree
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from nanochat.bench.figures import Spread
from nanochat.bench.measurement import Contender, Measurement, machine_table, measure_machine, own_task
from nanochat.bench.shapes import Shape, describe
from nanochat.bench.tables import Table, bytes_, costs, number, percent, print_tables, seconds
from nanochat.bench.train import derived
from nanochat.bench.workers import Workers, take_turns
from nanochat.pipeline.profiles import resolve_profile
from nanochat.runtime.threads import cores
from nanochat.spec.bounds import one_of, path
from nanochat.spec.errors import NanochatError, UserError

SECONDS = 460.0  # for all of it
ROUNDS, STEPS = 5, 2
DEPTHS = (12, 20)
TESTS = Path("tests/gpu")
RESUME = "test_stopped_and_resumed_is_equal_bit_for_bit"
HALF = 100 << 30  # bytes; a GPU with less takes half of the rows at a time
PARTS = ("tests", "steps")


def main() -> None:
    """Entry point; exit code 2 where it cannot be measured here, 1 where a test fails."""
    parser = argparse.ArgumentParser(description="Measure training on a CUDA GPU and run the tests that need one.")
    parser.add_argument("--only", type=one_of(PARTS), help="Just the tests, or just the steps.")
    parser.add_argument("--out", type=path, default=Path("bench-gpu.json"), help="File for all that was measured.")
    options = parser.parse_args()
    wanted = PARTS if options.only is None else (options.only,)
    try:
        sys.exit(measure(require_gpu(), wanted, options.out, ends=time.monotonic() + SECONDS))
    except NanochatError as error:
        print(f"error: {error.message}", file=sys.stderr)
        sys.exit(2)


def require_gpu() -> dict[str, Any]:
    """The GPU and the versions beside it; UserError where there is none."""
    if not torch.cuda.is_available():
        built = f"CUDA {torch.version.cuda}" if torch.version.cuda else "no CUDA"
        raise UserError(
            f"there is no CUDA GPU that PyTorch {torch.__version__}, built with {built}, can use: run this where one is"
        )
    return {
        "gpu": torch.cuda.get_device_name(),
        "memory": torch.cuda.get_device_properties(0).total_memory,
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
    }


def measure(about: Mapping[str, Any], wanted: Sequence[str], out: Path, *, ends: float) -> int:
    """All parts that are wanted, each with what is left of the time -> the exit code."""
    document: dict[str, Any] = {"bench": "gpu", "date": time.strftime("%Y-%m-%d"), **about, "parts": {}}
    print(f"{about['gpu']}, PyTorch {about['torch']}, CUDA {about['cuda']}", flush=True)
    if "steps" in wanted:
        rows = 32 if about["memory"] > HALF else 16
        for depth in DEPTHS:
            shape = [f"model.depth={depth}", f"stages.base.deviceBatchSize={rows}", *SPEEDRUN]
            document["parts"][f"depth {depth}"] = part = attempt(lambda shape=shape: steps(shape, ends=ends))
            out.write_text(json.dumps(document, indent=1))
            print_tables(step_tables(f"depth {depth}", part), markdown=False)
    code = 0
    if "tests" in wanted:
        document["parts"]["tests"] = found = attempt(lambda: run_tests(TESTS, ends=ends))
        out.write_text(json.dumps(document, indent=1))
        code = int(bool(found.get("error") or found.get("failed")))
        print(f"tests: {found.get('error') or found}")
    print(f"All that was measured is in {out}.")
    return code


# Depth and the vocabulary of 65,536 are the speedrun's; an eighth of its 524,288 tokens is one GPU's.
SPEEDRUN = ["model.sequenceLength=2048", "stages.tokenizer.vocabSize=65536", "stages.base.totalBatchTokens=65536"]


def attempt(call: Any) -> dict[str, Any]:
    """A part's figures, or why there are none: the others are measured all the same."""
    try:
        return call()
    except NanochatError as error:
        return {"error": error.message}


def steps(shape: Sequence[str], *, ends: float) -> dict[str, Any]:
    """Steps of base, compiled, against this device's matrix products."""
    given = Shape(None, tuple(shape))
    spec = given.read()
    asked = Measurement(shape=given, spec=spec, rounds=ROUNDS, threads=cores(), peer=None, profile=resolve_profile())
    with Workers(ends=ends) as workers:
        machine = measure_machine(asked, workers)
        contender = Contender("ours, compiled", own_task(given, "base", STEPS, "always"), asked.variables)
        (found,) = take_turns([contender.start(workers)], rounds=ROUNDS)
    return {"shape": describe(spec), "machine": machine, "measured": found.to_dict() | derived(found, machine["bound"])}


def run_tests(tests: Path, *, ends: float) -> dict[str, Any]:
    """The tests of training, inference and evaluation: how many passed, and whether resuming gives the same bits."""
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.xml"
        pytest = [sys.executable, "-m", "pytest", "-p", "xdist.plugin", "-n", "4"]
        command = [*pytest, str(tests), "-m", "gpu", "-q", "-W", "default", f"--junitxml={report}"]
        left = max(1.0, ends - time.monotonic())
        alone = os.environ | {"PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}  # others' plugins do not know of -n
        try:
            done = subprocess.run(command, timeout=left, env=alone, check=False)
        except subprocess.TimeoutExpired:
            raise UserError(
                "the tests did not end in the time that was left: run them alone with make test-gpu"
            ) from None
        if not report.exists():
            raise UserError(
                f"pytest ended with exit code {done.returncode} and no report: is it installed, and {tests} here?"
            )
        return read_report(report)


def read_report(report: Path) -> dict[str, Any]:
    """A JUnit report in numbers, the names of what failed, and the tests of resuming."""
    outcomes: dict[str, str] = {}
    for case in ElementTree.parse(report).iter("testcase"):
        kinds = [child.tag for child in case if child.tag in ("failure", "error", "skipped")]
        outcomes[case.get("name", "")] = kinds[0] if kinds else "passed"
    failed = [name for name, outcome in outcomes.items() if outcome in ("failure", "error")]
    resumed = [outcome for name, outcome in outcomes.items() if name.startswith(RESUME)]
    return {
        "passed": sum(outcome == "passed" for outcome in outcomes.values()),
        "skipped": sum(outcome == "skipped" for outcome in outcomes.values()),
        "failed": failed,
        "bit_exact_resume": bool(resumed) and set(resumed) == {"passed"},
    }


def step_tables(title: str, part: Mapping[str, Any]) -> list[Table]:
    """One depth's figures for people."""
    if "error" in part:
        return [Table(f"{title}: {part['error']}", [""], [])]
    item = part["measured"]
    figures = item["figures"]
    rows = [
        ["a step", seconds(figures["seconds"], each=figures["steps"]["median"])],
        ["tokens/s", number(item["tokens_per_second"])],
        ["of the bound", percent(item["flop_utilisation"])],
        ["peak memory", bytes_(figures["peak_memory"])],
        ["largest costs", costs(item["costs"])],
        ["until the first step", seconds(asdict(Spread.of([sum(item["parts"].values())])))],
    ]
    return [machine_table(part["machine"]), Table(title, ["", ""], rows)]


if __name__ == "__main__":
    main()
