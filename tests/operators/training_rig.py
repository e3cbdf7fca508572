"""A pipeline in a cluster in memory whose base is to be trained, and its controller.

rig = Rig(tmp_path)
rig.reconcile()                 # starts an attempt
rig.train(1)                    # it makes steps
told = rig.reconcile(after=60)  # the status, a minute later
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fake_cluster import FakeKube

from nanochat.pipeline.graph import build_graph
from nanochat.spec.load import check_pipeline
from nanochat.storage.artifacts import Artifacts
from nanochat.storage.opening import open_store
from nanochat.storage.store import Profile
from operators.config import Config
from operators.kube_client import PODS
from operators.pytorchjob import PYTORCHJOBS
from operators.reconciler import Run
from operators.services import Services
from operators.stores import Stores
from operators.suspicion import Suspicion

UID = "12ab34cd-0000-0000-0000-000000000000"
BEGAN = 1_800_000_000.0
PATIENCE = 60


@dataclass
class KeptEvents:
    """The Events that were emitted: reason and message."""

    told: list[tuple[str, str]] = field(default_factory=list)

    def emit(self, _reference: object, _level: str, reason: str, message: str) -> None:
        self.told.append((reason, message))


@dataclass
class Rig:
    """A pipeline whose base is to be trained, on nodes of one GPU each, and its controller. Nothing may fail: a stage
    whose attempt counts as failed does not go on."""

    folder: Path
    cluster: FakeKube = field(default_factory=lambda: FakeKube(BEGAN))
    steady: float = 1000.0
    base: dict[str, Any] = field(default_factory=dict)
    pools: dict[str, Any] = field(default_factory=dict)
    events: KeptEvents = field(default_factory=KeptEvents)
    spec: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        profiles = {"default": {"root": str(self.folder / "store")}}
        config = {"image": "trainer", "profiles": profiles, "pools": self.pools}
        self.config = Config.model_validate(config, by_alias=True)
        self.store = open_store(Profile(root=str(self.folder / "store")))
        self.base = {"nodes": 2, "minNodes": 1, "patienceSeconds": PATIENCE, "gpusPerNode": 1, **self.base}
        self.cluster.nodes = ["a", "b"]
        graph, made = build_graph(check_pipeline(self.document()).spec), Artifacts(self.store, self.folder / "made")
        for out in [out for stage in ("dataset", "tokenizer", "tokens") for out in graph.node(stage).outputs]:
            with made.writer(out.kind, out.key, "01-before") as writer:
                (writer.folder / "file").write_bytes(b"made")
                writer.commit(recipe={}, inputs={})
        self.restart()

    def document(self) -> dict[str, Any]:
        return {
            "apiVersion": "nanochat.dev/v1alpha1",
            "kind": "ChatPipeline",
            "metadata": {"name": "demo", "namespace": "team"},
            "spec": {
                "model": {"depth": 2},
                "retries": {"limit": 0, "stallSeconds": 100_000, "startSeconds": 100_000},
                "sources": {"text": {"kind": "world", "shards": 1}},
                "stages": {"base": self.base},
                **self.spec,
            },
        }

    def restart(self) -> None:
        """Another controller, which knows nothing."""
        self.services = Services(
            **self.cluster.services(),
            config=self.config,
            events=self.events,  # type: ignore[arg-type]
            stores=Stores(self.folder / "cache"),
            suspicion=Suspicion(),
        )
        self.run = Run("team", "demo", UID, self.services)

    def reconcile(self, *, after: float = 5.0, restarts: bool = False) -> dict[str, Any]:
        """What the status says after a reconciliation, by another controller where the former died."""
        if restarts:
            self.restart()
        self.cluster.now += after
        self.steady += after
        self.services.index.resync("")
        self.run.reconcile(self.cluster.declare(self.document(), uid=UID), self.cluster.now, self.steady)
        return self.cluster.status

    def train(self, attempt: int) -> None:
        """The attempt makes a step."""
        pod = self.cluster[PODS][f"demo-12ab-base-{attempt}-worker-0"]["metadata"]["uid"]
        launch = f"{attempt:02d}-{pod[:8]}"
        state = {"stage": "base", "launch": launch, "step": 10 * attempt, "time": self.cluster.now}
        self.store.write_json(f"runs/team.demo/{UID}/progress/base/{launch}.json", state)

    def jobs(self) -> dict[str, int]:
        """The jobs that are there, and their numbers of pods."""
        return {
            name: job["spec"]["pytorchReplicaSpecs"]["Worker"]["replicas"]
            for name, job in self.cluster[PYTORCHJOBS].items()
        }

    def attempts(self) -> list[tuple[str, int]]:
        return [(attempt["reason"], attempt["nodeCount"]) for attempt in self.cluster.status.get("attempts", ())]
