"""Two pipelines of two namespaces that share a store, one of them with forged files, in a cluster in memory."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fake_cluster import FakeKube

from nanochat.pipeline.graph import Graph
from nanochat.pipeline.runs import RunPaths
from nanochat.storage.artifacts import Artifacts
from nanochat.storage.opening import open_store
from nanochat.storage.store import Profile, Store
from operators.config import Config
from operators.kube_client import CONFIG_MAPS, PODS
from operators.kube_error import Object
from operators.pytorchjob import PYTORCHJOBS
from operators.reconciler import Run
from operators.run_state import Ready
from operators.services import Services
from operators.stores import Stores

BEGAN = 1_800_000_000.0
GIGABYTE = object()  # the content of a file that holds so many zeros
FORGED, WELL = "forged", "well"
UIDS = {FORGED: "12ab34cd-0000-0000-0000-000000000000", WELL: "56ef78ab-0000-0000-0000-000000000000"}


class Events:
    """Nobody reads them."""

    def emit(self, *_arguments: Any) -> None: ...


@dataclass
class TwoPipelines:
    """The cluster, the store, and a controller."""

    folder: Path
    cluster: FakeKube = field(default_factory=lambda: FakeKube(BEGAN))
    steady: float = 1000.0
    annotations: dict[str, str] = field(default_factory=dict)
    tracking: str | None = None  # address of MLflow
    stages: Mapping[str, Any] = field(default_factory=dict)  # their settings in both
    uids: Mapping[str, str] = field(default_factory=lambda: UIDS)

    def __post_init__(self) -> None:
        # By two profiles they share one store, so that neither waits for what the other makes.
        profile = {"root": str(self.folder / "store"), "tracking": self.tracking}
        config = {"image": "trainer", "profiles": dict.fromkeys(UIDS, profile)}
        self.config = Config.model_validate(config, by_alias=True)
        self.store: Store = open_store(Profile(root=str(self.folder / "store")))
        self.restart()

    def restart(self) -> None:
        """Another controller, which knows nothing."""
        self.services = Services(
            **self.cluster.services(),
            config=self.config,
            events=Events(),  # type: ignore[arg-type]
            stores=Stores(self.folder / "cache"),
        )
        self.runs = {name: Run(f"team-{name}", name, uid, self.services) for name, uid in self.uids.items()}

    def paths(self, name: str = FORGED) -> RunPaths:
        """Where a run's files are."""
        return RunPaths.of(namespace=f"team-{name}", name=name, uid=self.uids[name])

    def forge(self, path: str, content: Any) -> None:
        """Put a file into the store: bytes, JSON, or a GIGABYTE."""
        target = self.folder / "store" / path
        target.parent.mkdir(parents=True, exist_ok=True)
        if content is GIGABYTE:
            with target.open("wb") as file:
                file.truncate(1 << 30)
        else:
            target.write_bytes(content if isinstance(content, bytes) else json.dumps(content).encode())

    def reconcile(self, name: str, *, after: float = 5.0) -> Mapping[str, Any]:
        """The status after a reconciliation."""
        self.cluster.now += after
        self.steady += after
        self.services.index.resync("")
        body: Object = {
            "apiVersion": "nanochat.dev/v1alpha1",
            "kind": "ChatPipeline",
            "metadata": {"name": name, "namespace": f"team-{name}", "annotations": dict(self.annotations)},
            "spec": {
                "store": name,
                "model": {"depth": 2},
                "sources": {"text": {"kind": "world", "shards": 1}},
                "stages": dict(self.stages),
            },
        }
        self.runs[name].reconcile(self.cluster.declare(body, uid=self.uids[name]), self.cluster.now, self.steady)
        return self.cluster.status_of(name)

    def graph(self, name: str) -> Graph:
        """The stages of a pipeline that was reconciled."""
        state = self.runs[name]._state
        assert isinstance(state, Ready)
        return state.accepted.graph

    def work(self, name: str) -> None:
        """The stages that run end well, as their pods and the training operator would leave it."""
        run = self.runs[name].snapshot
        assert run is not None
        artifacts = Artifacts(self.store, self.folder / "cache")
        for job in [item for item in self.cluster[PYTORCHJOBS].values() if item["metadata"]["name"].startswith(name)]:
            pod = self.cluster[PODS].get(f"{job['metadata']['name']}-worker-0")
            if pod is None or pod["status"]["phase"] != "Running":
                continue
            plan = json.loads(self.cluster[CONFIG_MAPS][job["metadata"]["name"]]["data"]["plan.json"])
            for out in plan["outputs"]:
                with artifacts.writer(out["kind"], out["key"], f"01-{pod['metadata']['uid'][:8]}") as writer:
                    (writer.folder / "file").write_text(out["key"])
                    writer.commit(recipe=out["recipe"], inputs=out["inputs"], metadata={})
            pod["status"] = {"phase": "Succeeded", "containerStatuses": [_ended(self.cluster.stamp())]}
            job["status"] |= {"conditions": [{"type": "Succeeded", "status": "True"}]}
            for body in (pod, job):
                body["metadata"]["resourceVersion"] = str(self.cluster.next_version())

    def run_to_its_end(self, name: str = WELL, *, turns: int = 40) -> str:
        """The phase in which a pipeline ends."""
        phase = ""
        for _ in range(turns):
            phase = self.reconcile(name)["phase"]
            if phase in ("Succeeded", "Failed"):
                break
            self.work(name)
        return phase


def _ended(stamp: str) -> Object:
    state = {"terminated": {"exitCode": 0, "reason": "Completed", "finishedAt": stamp}}
    return {"name": "pytorch", "image": "i", "imageID": "i", "ready": False, "restartCount": 0, "state": state}
