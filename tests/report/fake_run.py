"""A run as the runner and the stages leave it in storage, with numbers of a small demo."""

from __future__ import annotations

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
