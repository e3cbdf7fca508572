"""PyTorchJobs of the Kubeflow training operator, a backend (`operators.job_backend`) in `kubeflow.training`'s models.

Jobs have workers only. Without a Master and without an elasticPolicy the training operator adds no init container and
calls the job done only when every worker is. Retries, timeouts and clean-up are the controller's: `restartPolicy` is
Never, and there is no backoffLimit and no TTL.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import replace

from kubeflow.training import models

from nanochat.spec.chatpipeline import ATTEMPT
from operators import resources
from operators.job_backend import JobRequest
from operators.kube_client import MERGE, KubeClient, Resource
from operators.kube_error import KubeError, Object
from operators.kube_models import from_json, to_json
from operators.kueue import PRIORITY, QUEUE
from operators.objects import Job, Pod, read_meta, read_pod
from operators.pod_template import Placement, build_template, metadata_of

PYTORCHJOBS = Resource("kubeflow.org/v1", "PyTorchJob", "pytorchjobs")
JOB_LABEL, INDEX_LABEL = "training.kubeflow.org/job-name", "training.kubeflow.org/replica-index"


class PyTorchJobs:
    """The PyTorchJobs of a cluster."""

    resource = PYTORCHJOBS

    def __init__(self, kube: KubeClient) -> None:
        self._kube = kube

    def build(self, request: JobRequest) -> models.KubeflowOrgV1PyTorchJob:
        """The job of an attempt, in the backend's own model."""
        if request.beside:
            return self._job(request, {})
        return self._job(request, {ATTEMPT: json.dumps(_record_of(request) | {"form": self.form(request)})})

    def form(self, request: JobRequest) -> str:
        """A digest of the job of an attempt, but for the nodes that it avoids; its annotation tells it."""
        job = to_json(self._job(replace(request, avoid={}), {}))
        return hashlib.sha256(json.dumps(job, sort_keys=True).encode()).hexdigest()[:16]

    def _job(self, request: JobRequest, annotations: dict[str, str]) -> models.KubeflowOrgV1PyTorchJob:
        spec, launch, metadata = request.spec, request.launch, metadata_of(request)
        queue = {QUEUE: spec.queue} if spec.queue else {}
        urgent = {PRIORITY: spec.priority} if spec.queue and spec.priority else {}
        metadata.labels, metadata.annotations = {**(metadata.labels or {}), **queue, **urgent}, annotations
        placement = Placement(self.pod_name(request.name, "0"), JOB_LABEL, INDEX_LABEL)
        worker = models.KubeflowOrgV1ReplicaSpec(
            replicas=request.nodes,
            restart_policy="Never",
            template=build_template(request, placement),
        )
        return models.KubeflowOrgV1PyTorchJob(
            api_version=PYTORCHJOBS.api_version,
            kind=PYTORCHJOBS.kind,
            metadata=metadata,
            spec=models.KubeflowOrgV1PyTorchJobSpec(
                nproc_per_node=str(resources.processes(spec, launch.stage)),
                # Kueue starts what it admits; otherwise nobody may touch this switch.
                run_policy=models.KubeflowOrgV1RunPolicy(clean_pod_policy="Running", suspend=bool(spec.queue)),
                pytorch_replica_specs={"Worker": worker},
            ),
        )

    def create(self, request: JobRequest) -> Job | None:
        """Create the job of an attempt; None where an object of its name exists."""
        created = self._kube.create(PYTORCHJOBS, to_json(self.build(request)))
        return None if created is None else self.read_job(created)

    def delete(self, job: Job) -> None:
        """Delete a job with its pods; one that is gone already is no error."""
        meta = job.meta
        self._kube.delete(PYTORCHJOBS, meta.namespace, meta.name, uid=meta.uid, propagation="Background")

    def keep_pods(self, job: Job) -> None:
        """Let the training operator, for which a deleted pod is a failed one, not clean up after it."""
        self._patch(job, {"spec": {"runPolicy": {"cleanPodPolicy": "None"}}})

    def label(self, job: Job, labels: Mapping[str, str]) -> Job | None:
        """Give a job these labels; None where it is gone."""
        changed = self._patch(job, {"metadata": {"labels": {**labels}}})
        return None if changed is None else self.read_job(changed)

    def _patch(self, job: Job, change: Object) -> Object | None:
        """Change one very job; None where it is gone."""
        meta = job.meta
        body = {**change, "metadata": {"uid": meta.uid, **change.get("metadata", {})}}
        path, what = PYTORCHJOBS.path(meta.namespace, meta.name), f"PyTorchJob {meta.namespace}/{meta.name}"
        try:
            return self._kube.json("patch", path, what=what, body=body, content_type=MERGE)
        except KubeError as error:
            if error.status not in (404, 409):  # another one of the name has another uid
                raise
            return None

    def pod_name(self, job: str, index: str) -> str:
        """The name of a job's pod."""
        return f"{job}-worker-{index}"

    def read_job(self, body: Object) -> Job:
        """Observe a job, from its object in the API server."""
        # The pods' template is most of a job, and nothing reads it.
        bare = {**body, "spec": {"runPolicy": body["spec"].get("runPolicy") or {}, "pytorchReplicaSpecs": {}}}
        model = from_json(models.KubeflowOrgV1PyTorchJob, bare)
        meta, status = model.metadata, model.status or models.KubeflowOrgV1JobStatus()
        holding = {item.type: item.message or "" for item in status.conditions or () if item.status == "True"}
        return Job(
            meta=read_meta(meta),
            owners=frozenset(owner.uid for owner in meta.owner_references or ()),
            attempt=(meta.annotations or {}).get(ATTEMPT, ""),
            queue=(meta.labels or {}).get(QUEUE, ""),
            suspended=bool(model.spec.run_policy.suspend),
            taken_up=bool(status.conditions or status.start_time),
            started=status.start_time.strftime("%Y-%m-%dT%H:%M:%SZ") if status.start_time else "",
            succeeded="Succeeded" in holding,
            failed="Failed" in holding,
            message=holding.get("Failed", ""),
        )

    def read_pod(self, body: Object) -> Pod:
        """Observe a pod of a job."""
        return read_pod(body, job_label=JOB_LABEL, index_label=INDEX_LABEL)


def _record_of(request: JobRequest) -> Object:
    """The beginning of the attempt's record, by which a controller adopts a job that has none."""
    spec, launch = request.spec, request.launch
    return {
        "stage": launch.stage,
        "number": launch.attempt,
        "keys": [out.key for out in launch.outputs],
        "device_batch_size": launch.device_batch_size,
        "memory": launch.memory,
        "started": request.started,
        "nodes": request.nodes,
        "processes": resources.processes(spec, launch.stage),
        "gpus": request.nodes * resources.gpus(spec, launch.stage),
        "hourly": request.nodes * resources.hourly(request.config, spec, launch.stage, request.accepted.graph),
    }
