"""An API server in memory: it makes a job's pods at once, and they run until a test says otherwise.

Where a test names `nodes`, each has room for one pod: the others wait. Where there is a `queue`, jobs in it get their
pods when a test admits them.
"""

from __future__ import annotations

import copy
import itertools
import json
from datetime import UTC, datetime
from typing import Any

from nanochat.spec.chatpipeline import UID
from operators.claims import Claims
from operators.cluster import Cluster
from operators.index import Index
from operators.kube_client import CONFIG_MAPS, EVENTS, PIPELINES, PODS, Listing, Resource
from operators.kube_error import KubeError, Object
from operators.kueue import LOCAL_QUEUES, WORKLOADS
from operators.pytorchjob import PYTORCHJOBS, PyTorchJobs
from operators.status_schema import PipelineStatus


class FakeKube:
    """`operators.kube_client.KubeClient` without a network. `now` is its clock, in seconds since 1970."""

    def __init__(self, now: float) -> None:
        self.now = now
        self.objects: dict[Resource, dict[str, Object]] = {
            resource: {} for resource in (PIPELINES, PYTORCHJOBS, PODS, CONFIG_MAPS, EVENTS, WORKLOADS, LOCAL_QUEUES)
        }
        self.created: list[str] = []  # names of all jobs, in their order
        self.asked: list[str] = []  # verb and plural of every request
        self.refuses_jobs: KubeError | None = None
        self.takes_up_jobs = True  # the training operator runs
        self.nodes: list[str] | None = None  # None: room for all
        self.quota: int | None = None  # of pods; None: no quota
        self.queue: set[str] | None = None  # names of jobs that are admitted to the queue; None: all are
        self.lose_answer = False  # to the next creation of a job
        self._numbers = itertools.count(1)

    def __getitem__(self, resource: Resource) -> dict[str, Object]:
        return self.objects[resource]

    @property
    def status(self) -> Object:
        """The status of the one pipeline."""
        return next((found.get("status", {}) for found in self[PIPELINES].values()), {})

    def status_of(self, name: str) -> Object:
        """The status of a pipeline."""
        return self[PIPELINES][name].get("status", {})

    def next_version(self) -> int:
        """The version of an object that a test has changed."""
        return next(self._numbers)

    def services(self) -> dict[str, Any]:
        """What `Services` takes of a cluster. No watch is at work: the index is as complete as `resync` leaves it."""
        backend = PyTorchJobs(self)  # type: ignore[arg-type]
        index = Index(self, backend, lambda namespace, name: None)  # type: ignore[arg-type]
        index.resync("")
        claims = Claims(index, clock=lambda: self.now)
        claims.learn()
        return {"cluster": Cluster(self), "backend": backend, "index": index, "claims": claims}  # type: ignore[arg-type]

    def declare(self, body: Object, *, uid: str) -> Object:
        """Put a ChatPipeline there, or the next state of it."""
        meta, known = body["metadata"], self[PIPELINES].get(body["metadata"]["name"], {})
        before = known.get("metadata", {})
        generation = before["generation"] + (known.get("spec") != body.get("spec")) if known else 1
        created = before["creationTimestamp"] if before.get("uid") == uid else self.stamp()
        stamped = meta | {"uid": uid, "generation": generation, "creationTimestamp": created}
        self._store(PIPELINES, body | {"metadata": stamped, "status": known.get("status", {})})
        return copy.deepcopy(self[PIPELINES][meta["name"]])

    def stamp(self) -> str:
        return datetime.fromtimestamp(self.now, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")

    def _store(self, resource: Resource, body: Object) -> None:
        meta = body["metadata"]
        known = {
            "uid": f"{next(self._numbers):08x}-{resource.kind.lower()}",
            "resourceVersion": str(next(self._numbers)),
        }
        self[resource][meta["name"]] = copy.deepcopy(body | {"metadata": known | meta})
        self[resource][meta["name"]]["metadata"]["resourceVersion"] = known["resourceVersion"]

    # ---- as KubeClient --------------------------------------------------------------------------------------------

    def within(self, _timeout: object) -> FakeKube:
        return self

    def listing(
        self, resource: Resource, _namespace: str = "", labelSelector: str = UID, fieldSelector: str = ""
    ) -> Listing:
        self.asked.append(f"list {resource.plural}")
        if resource in (EVENTS, WORKLOADS):
            about = fieldSelector.partition("=")[2]
            told = [body for body in self[resource].values() if about in ("", body["involvedObject"]["uid"])]
            return Listing(copy.deepcopy(told), next(self._numbers))
        label, _, value = labelSelector.partition("=")
        found = [
            body
            for body in self[resource].values()
            if resource is PIPELINES
            or (label in body["metadata"]["labels"] and value in ("", body["metadata"]["labels"][label]))
        ]
        return Listing(copy.deepcopy(found), next(self._numbers))

    def get(self, resource: Resource, _namespace: str, name: str) -> Object | None:
        self.asked.append(f"get {resource.plural}")
        return copy.deepcopy(self[resource].get(name))

    def create(self, resource: Resource, body: Object) -> Object | None:
        self.asked.append(f"create {resource.plural}")
        name = body["metadata"]["name"]
        if name in self[resource]:
            return None
        if resource is PYTORCHJOBS:
            if self.refuses_jobs is not None:
                raise self.refuses_jobs
            self.created.append(name)
            body = body | {"metadata": body["metadata"] | {"generation": 1}}
        self._store(resource, body)
        if resource is PYTORCHJOBS and self.takes_up_jobs:
            self.take_up(name)
        if resource is PYTORCHJOBS and self.lose_answer:
            self.lose_answer = False
            raise KubeError("the API server cannot be reached")
        return copy.deepcopy(self[resource][name])

    def delete(
        self,
        resource: Resource,
        _namespace: str,
        name: str,
        *,
        uid: str = "",
        grace: int | None = None,
        **_options: Any,
    ) -> None:
        self.asked.append(f"delete {resource.plural}" + (f" in {grace} s" if grace is not None else ""))
        found = self[resource].get(name)
        if found is None or (uid and found["metadata"]["uid"] != uid):
            return
        del self[resource][name]
        if resource is PYTORCHJOBS:
            self.objects[PODS] = {n: p for n, p in self[PODS].items() if not n.startswith(f"{name}-worker-")}
            self.place_pods()

    def json(self, verb: str, path: str, *, body: Object, **_options: Any) -> Object:
        """Only patches of a pipeline's status and of a job are asked for so."""
        if PYTORCHJOBS.plural in path:
            self.asked.append(f"{verb} {PYTORCHJOBS.plural} {json.dumps(body.get('spec', body))}")
            found = self[PYTORCHJOBS][path.rpartition("/")[2]]
            labels = found["metadata"]["labels"] | body["metadata"].get("labels", {})
            self._store(PYTORCHJOBS, found | {"metadata": found["metadata"] | {"labels": labels}})
            return copy.deepcopy(self[PYTORCHJOBS][found["metadata"]["name"]])
        self.asked.append(f"{verb} status")
        name = path.split("/")[-2]
        found = self[PIPELINES][name]
        if body["metadata"].get("resourceVersion") not in (None, found["metadata"]["resourceVersion"]):
            raise KubeError("the object has been modified", status=409)
        status = {k: v for k, v in (found.get("status", {}) | copy.deepcopy(body["status"])).items() if v is not None}
        PipelineStatus.model_validate_json(json.dumps(status), strict=True, by_alias=True, by_name=False)
        self._store(PIPELINES, found | {"status": status})
        return copy.deepcopy(self[PIPELINES][name])

    def change(self, resource: Resource, body: Object) -> None:
        """Put the next state of an object there."""
        self._store(resource, body)

    def take_up(self, job: str) -> None:
        """The training operator sees a job for the first time."""
        self._store(PYTORCHJOBS, self[PYTORCHJOBS][job] | {"status": {"startTime": self.stamp()}})
        self._start(self[PYTORCHJOBS][job])

    def start_pods(self, job: str) -> None:
        """Make the pods of a job anew."""
        self._start(self[PYTORCHJOBS][job])

    def _start(self, job: Object) -> None:
        """The training operator."""
        meta, worker = job["metadata"], job["spec"]["pytorchReplicaSpecs"]["Worker"]
        if self.queue is not None and job["spec"]["runPolicy"]["suspend"]:
            return
        owner = {"apiVersion": PYTORCHJOBS.api_version, "kind": PYTORCHJOBS.kind, "name": meta["name"]}
        owner |= {"uid": meta["uid"], "controller": True}
        for index in range(worker["replicas"]):
            labels = meta["labels"] | {
                "training.kubeflow.org/job-name": meta["name"],
                "training.kubeflow.org/replica-index": str(index),
            }
            pod = {
                "metadata": {
                    "name": f"{meta['name']}-worker-{index}",
                    "namespace": meta["namespace"],
                    "labels": labels,
                    "ownerReferences": [owner],
                    "creationTimestamp": self.stamp(),
                },
                "spec": {},
                "status": {"phase": "Pending"},
            }
            if self.quota is not None and len(self[PODS]) >= self.quota:
                self._refuse(meta, pod["metadata"]["name"])
                break
            self._store(PODS, pod)
        self.place_pods()

    def _refuse(self, job: Object, pod: str) -> None:
        """The Event with which the training operator tells that a pod could not be made."""
        why = f'Error creating: pods "{pod}" is forbidden: exceeded quota: gpus'
        about = {"kind": PYTORCHJOBS.kind, "name": job["name"], "namespace": job["namespace"], "uid": job["uid"]}
        told = {"type": "Warning", "reason": "FailedCreatePod", "message": why, "lastTimestamp": self.stamp()}
        meta = {"name": f"{pod}.refused", "namespace": job["namespace"]}
        self._store(EVENTS, {"metadata": meta, "involvedObject": about, **told})

    def place_pods(self) -> None:
        """The scheduler and the kubelets."""
        used = {pod["spec"].get("nodeName") for pod in self[PODS].values()}
        for name, pod in [*self[PODS].items()]:
            if "nodeName" in pod["spec"]:
                continue
            index = pod["metadata"]["labels"]["training.kubeflow.org/replica-index"]
            free = [f"node-{index}"] if self.nodes is None else [node for node in self.nodes if node not in used]
            if free:
                used.add(free[0])
                state = {"phase": "Running", "startTime": self.stamp()}
                self._store(PODS, pod | {"spec": {"nodeName": free[0]}, "status": state})
            else:
                reason = {"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": "no room"}
                self[PODS][name]["status"] = {"phase": "Pending", "conditions": [reason]}

    def lose_node(self, node: str) -> None:
        """A node goes, and its pods with it."""
        assert self.nodes is not None
        self.nodes.remove(node)
        self.objects[PODS] = {n: p for n, p in self[PODS].items() if p["spec"].get("nodeName") != node}

    def admit(self, job: str) -> None:
        """Kueue admits a job."""
        assert self.queue is not None
        self.queue.add(job)
        found = self[PYTORCHJOBS][job]
        found["spec"]["runPolicy"]["suspend"] = False
        self._store(PYTORCHJOBS, found | {"status": {"startTime": self.stamp()}})
        self._start(self[PYTORCHJOBS][job])
