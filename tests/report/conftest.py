"""What the tests of reports share."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
from fake_run import EVIL, FakeRun


@pytest.fixture(scope="session")
def uri(tmp_path_factory: pytest.TempPathFactory) -> str:
    """One tracking database for all tests here: making its tables takes seconds."""
    return f"sqlite:///{tmp_path_factory.mktemp('mlflow')}/mlflow.db"


@pytest.fixture
def run(tmp_path: Path) -> FakeRun:
    """A run with every kind of thing in it."""
    run = FakeRun(tmp_path)
    compression = {
        "vocabSize": {"ours": 1024, "gpt2": 50256},
        "texts": [{"name": "news", "bytes": 1000, "tokens": {"ours": 250, "gpt2": 200}}],
        "missing": {"gpt4": "its vocabulary could not be had"},
    }
    run.stage("dataset", {"text/shard_00000": run.artifact("text/shard_00000", {"a": "b"}, launch="99-zz", run="gone")})
    run.stage(
        "tokenizer", {"tokenizer/bpe": run.artifact("tokenizer/bpe", {"compression.json": json.dumps(compression)})}
    )
    run.attempt("tokenizer", 1, seconds=4.2)
    training = {
        "steps": 600, "tokens": 2_457_600, "seconds": 240.0, "loss": 1.234, "device": "cpu", "precision": "bfloat16",
        "processes": 2, "metrics": {"val/bpb": 0.8123}, "skippedData": [[100, 150]],
    }  # fmt: skip
    run.stage("base", {"model/base": run.artifact("model/base", {"w": ""}, launch="02-aa", **training)})
    run.attempt("base", 1, seconds=30, reason="Infrastructure", message="killed by SIGKILL")
    run.attempt("base", 2, seconds=252)
    curve = {step: {"train/loss": 7 * math.exp(-step / 100) + 1 + 0.3 * math.sin(step)} for step in range(1, 601)}
    for step in range(100, 601, 100):
        curve[step]["val/bpb"] = 2 * math.exp(-step / 200) + 0.8
    curve[50]["train/loss"] = math.nan
    run.journal("base", curve)
    base = {
        "metrics": {"val_bpb": {"value": 0.8123, "n": 81920, "stderr": 0.0031}},
        "notRun": {"core": "it is switched off (stages.evalBase.core)"},
        "tasks": {"copa": {"accuracy": 0.55, "stderr": 0.05, "n": 100, "centered": 0.1, "baseline": 0.5, "shots": 0}},
        "samples": [{"prompt": "The ball is", "completion": EVIL}],
    }
    run.stage("eval-base", {"evaluation/base": run.artifact("evaluation/base", {"results.json": json.dumps(base)})})
    run.attempt("eval-base", 1, seconds=12)
    counts = {"prompts": 64.0, "samples": 512.0, "reward": 510.0, "groups_without_advantage": 62.0}
    counts |= {"sampled_tokens": 9805.0, "unfinished": 0.0}
    run.stage("mid", {"model/mid": run.artifact("model/mid", {"w": ""}, steps=100, counts=counts)})
    run.attempt("mid", 1, seconds=3600)
    mid = {
        "metrics": {
            "chatcore": {"value": 0.0884, "n": 4000, "stderr": 0.004},
            "world-sums": {"value": 0.935, "n": 200, "stderr": 0.0174},
            "arc-easy": {"value": 0.3876, "n": 2376, "stderr": 0.01},
        },
        "notRun": {"humaneval": "no sandbox here"},
        "tasks": {}, "samples": [{"prompt": "What is 2 + 2?", "completion": "4."}],
    }  # fmt: skip
    run.stage("eval-mid", {"evaluation/mid": run.artifact("evaluation/mid", {"results.json": json.dumps(mid)})})
    run.attempt("eval-mid", 1, seconds=60)
    run.stage("sft", {"model/sft": "key-model-sft"}, phase="Failed", message="the loss is not finite")
    run.stage("report", {"report/report": "key-report-report"}, phase="Running")
    run.close()
    return run
