"""A run as the runner and the stages leave it in storage, with numbers of a small demo."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

from nanochat.storage import Artifacts, Profile, Store, open_store
from nanochat.tracking.journal import Journal

RUN = "runs/default.demo/0123456789ab"
START = 1_795_000_000.0
EVIL = "<script>alert('x')</script> & \"quotes\" | `ticks` **bold**"


class Clock:
    """Time that moves by half a second whenever it is asked."""

    def __init__(self, start: float) -> None:
        self.now = start

    def __call__(self) -> float:
        self.now += 0.5
        return self.now


class FakeRun:
    """Writes what a run leaves behind."""

    def __init__(self, folder: Path) -> None:
        self.store: Store = open_store(Profile(root=str(folder / "store")))
        self.artifacts = Artifacts(self.store, folder / "cache")
        self.stages: list[dict[str, Any]] = []
        self.spec: dict[str, Any] = {
            "model": {"depth": 4, "sequenceLength": 256},
            "cost": {"gpuHour": 3.0},
            "sources": {"text": {"kind": "world"}},
            "stages": {
                "tokenizer": {"vocabSize": 1024},
                "base": {"nodes": 1, "gpusPerNode": 0},
                "mid": {"nodes": 1, "gpusPerNode": 8, "mixture": [{"task": "world-sums"}]},
                "rl": {"enabled": False},
            },
        }

    def artifact(self, ref: str, files: dict[str, str], *, launch: str = "01-aa", **metadata: Any) -> str:
        """Commit an artifact; returns its key."""
        kind, name = ref.split("/")
        key = f"key-{kind}-{name}"
        with self.artifacts.writer(kind, key, launch) as writer:
            for path, text in files.items():
                (writer.folder / path).write_text(text, encoding="utf-8")
            writer.commit(recipe={"name": name}, inputs={}, metadata=metadata)
        return key

    def attempt(self, stage: str, number: int, *, seconds: float, reason: str = "Succeeded", message: str = "") -> None:
        """Record an attempt."""
        data = {
            "number": number, "started": START, "ended": START + seconds, "launch": f"{number:02d}-aa",
            "device_batch_size": 8, "outcome": {"reason": reason, "message": message},
        }  # fmt: skip
        self.store.write_json(f"{RUN}/attempts/{stage}/{number:04d}.json", data)

    def stage(self, name: str, keys: dict[str, str], *, phase: str = "Succeeded", message: str = "") -> None:
        """Add a stage to the status."""
        self.stages.append({"stage": name, "phase": phase, "message": message, "why": "", "keys": keys})

    def journal(self, stage: str, metrics: dict[int, dict[str, float]]) -> None:
        """Write a stage's metrics, with a sample and the environment."""
        with Journal(self.store, RUN, stage=stage, launch="01-aa", interval=1e9, clock=Clock(START)) as journal:
            for step, values in metrics.items():
                journal.metrics(step, values)
            gpus = [{"name": "Test GPU", "memory": 80 << 30}] * 8
            data = {"platform": "Linux", "cpu": "A CPU", "cpus": 2, "memory": 8 << 30, "gpus": gpus, "torch": "2.13.0"}
            data |= {"commit": "0123456789ab+", "user": "ami"}
            journal.event("environment", **data)

    def close(self) -> None:
        """Write declaration and status."""
        self.store.write_json(
            f"{RUN}/pipeline.json", {"metadata": {"name": "demo", "namespace": "default"}, "spec": self.spec}
        )
        horizon = {"parameters": 2_211_840, "tokens": 2_457_600, "steps": 600, "flops": 3.3e13, "shards": 1}
        self.store.write_json(f"{RUN}/status.json", {"phase": "Running", "horizon": horizon, "stages": self.stages})


def whole_run(folder: Path) -> FakeRun:
    """A run with every kind of thing in it."""
    run = FakeRun(folder)
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
            "arc-easy": {"value": 0.3876, "n": 2500, "stderr": 0.01},
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
