"""What a run on the cluster came to: its weights, whether every step was trained, what it left behind."""

from __future__ import annotations

import time
from pathlib import Path

from site_of_tests import NAMESPACE, Site, Status

from nanochat.pipeline.leases import RENEW_SECONDS
from nanochat.storage.artifacts import Artifacts
from nanochat.storage.checkpoints import Checkpoints
from nanochat.tracking.journal import JournalReader

LABEL = "nanochat.dev/pipeline"


def weights(site: Site, status: Status, cache: Path, stage: str = "base") -> dict[str, str]:
    """SHA-256 of each file of a stage's model, fetched whole and verified."""
    key = next(item["keys"][f"model/{stage}"] for item in status["stages"] if item["name"] == stage)
    artifacts = Artifacts(site.store(root=status["profile"]["root"]), cache)
    found = artifacts.find("model", key)
    assert found is not None
    artifacts.fetch(found)
    return {record.path: record.sha256 for record in found.files if record.path.endswith(".safetensors")}


def check_lineage(site: Site, status: Status, steps: int) -> None:
    """Every step was trained, and none counts twice."""
    reader = JournalReader(site.store(root=status["profile"]["root"]), status["run"])
    points = reader.history("base").metrics["train/loss"]
    assert [point.step for point in points] == sorted({point.step for point in points})
    assert len(points) == steps


def check_checkpoints(site: Site, status: Status, steps: int, cache: Path) -> None:
    """No checkpoint of base is beyond its end."""
    key = next(item["keys"]["model/base"] for item in status["stages"] if item["name"] == "base")
    newest = Checkpoints(site.store(root=status["profile"]["root"]), "base", key, cache).newest()
    assert newest is None or newest.step <= steps


def left_behind(site: Site, name: str, run: str) -> list[str]:
    """The objects, and leases of living processes, that are still there of a pipeline that was deleted."""
    found = site.get("pytorchjobs,pods,configmaps", "-n", NAMESPACE, "-l", f"{LABEL}={name}")["items"]
    store = site.store()
    renewed = [entry.path for entry in store.list("leases") if time.time() - entry.modified < 3 * RENEW_SECONDS]
    leases = [path for path in renewed if run.encode() in store.read(path, 1 << 20)]
    return [f"{item['kind']} {item['metadata']['name']}" for item in found] + leases
