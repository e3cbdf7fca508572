"""A cluster in memory, for the loop: it makes a job's pods at once, and they run until a test says otherwise."""

from __future__ import annotations

import copy
import itertools
import json
from datetime import UTC, datetime
from typing import Any

from nanochat.spec.chatpipeline import UID
from operators.status_schema import PipelineStatus

Object = dict[str, Any]


class FakeCluster:
    """What the loop asks of `operators.cluster.Cluster`. `now` is its clock, in seconds since 1970."""

    def __init__(self, now: float) -> None:
        self.now = now
        self.jobs_: dict[str, Object] = {}
        self.pods_: dict[str, Object] = {}
        self.maps: dict[str, Object] = {}
        self.status: Object = {}
        self.created: list[str] = []  # names of all jobs, in their order
        self._numbers = itertools.count(1)

    def stamp(self) -> str:
        return datetime.fromtimestamp(self.now, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")

    def jobs(self, _namespace: str, uid: str) -> list[Object]:
        return copy.deepcopy([job for job in self.jobs_.values() if job["metadata"]["labels"][UID] == uid])

    def pods(self, _namespace: str, uid: str) -> list[Object]:
        return copy.deepcopy([pod for pod in self.pods_.values() if pod["metadata"]["labels"][UID] == uid])

    def create_config_map(self, body: Object) -> bool:
        new = body["metadata"]["name"] not in self.maps
        if new:
            self.maps[body["metadata"]["name"]] = body
        return new

    def delete_config_map(self, _namespace: str, name: str) -> None:
        self.maps.pop(name, None)

    def create_job(self, body: Object) -> bool:
        name = body["metadata"]["name"]
        if name in self.jobs_:
            return False
        self.created.append(name)
        meta = body["metadata"] | {"uid": f"job-{next(self._numbers)}", "generation": 1}
        self.jobs_[name] = copy.deepcopy(body) | {"metadata": meta, "status": {"startTime": self.stamp()}}
        worker = body["spec"]["pytorchReplicaSpecs"]["Worker"]
        for index in range(worker["replicas"]):
            labels = meta["labels"] | {
                "training.kubeflow.org/job-name": name,
                "training.kubeflow.org/replica-index": str(index),
            }
            self.pods_[f"{name}-worker-{index}"] = {
                "metadata": {
                    "name": f"{name}-worker-{index}",
                    "uid": f"{next(self._numbers):08x}-pod",
                    "labels": labels,
                    "creationTimestamp": self.stamp(),
                },
                "spec": {"nodeName": f"node-{index}"},
                "status": {"phase": "Running", "startTime": self.stamp()},
            }
        return True

    def delete_job(self, _namespace: str, name: str) -> None:
        self.jobs_.pop(name, None)
        self.pods_ = {n: p for n, p in self.pods_.items() if not n.startswith(f"{name}-worker-")}

    def delete_pod(self, _namespace: str, name: str, *, uid: str, grace: int | None = None) -> None:
        if name in self.pods_ and self.pods_[name]["metadata"]["uid"] == uid:
            del self.pods_[name]

    def patch_status(self, _namespace: str, _name: str, status: Object, *, uid: str) -> None:
        self.status = {k: v for k, v in (self.status | copy.deepcopy(status)).items() if v is not None}
        PipelineStatus.model_validate_json(json.dumps(self.status), strict=True, by_alias=True, by_name=False)
