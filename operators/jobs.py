"""One attempt as Kubernetes objects: the plan in an immutable ConfigMap, and a Worker-only PyTorchJob.

    config_map, job = build(request)

Without a Master and without an elasticPolicy the training operator adds no init container and calls the job done only
when every worker is. Retries, timeouts and clean-up are the controller's: `restartPolicy: Never`, no backoffLimit, no
TTL.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import Any

from nanochat.pipeline.graph import Node
from nanochat.pipeline.plan import StagePlan
from nanochat.pipeline.planner import Start
from nanochat.spec.chatpipeline import API_VERSION, KIND, PIPELINE, STAGE, UID
from nanochat.spec.pipeline import PipelineSpec
from nanochat.spec.pods import PodSettings
from operators import resources
from operators.admission import CONFIG_MAP, Accepted
from operators.attempts import ATTEMPT
from operators.config import Config, StoreProfile
from operators.networks import PRESETS, Network

PLAN_FOLDER = "/etc/nanochat/plan"
FILES_FOLDER = "/etc/nanochat/files"
WORK = "/work"
PORT = 23456
USER = 1000
GPU = "nvidia.com/gpu"
QUEUE, PRIORITY = "kueue.x-k8s.io/queue-name", "kueue.x-k8s.io/priority-class"
SHARED_MEMORY = {"cpu": "64Mi", "gpu": "1Gi"}  # of each process

Object = dict[str, Any]


@dataclass(frozen=True, slots=True)
class JobRequest:
    """All that an attempt is built from."""

    uid: str
    accepted: Accepted
    launch: Start
    run: str  # the run's folder
    config: Config
    started: float
    avoid: tuple[str, ...] = ()  # nodes that may have been why the last attempt ended

    @property
    def spec(self) -> PipelineSpec:
        return self.accepted.spec

    @property
    def node(self) -> Node:
        return self.accepted.graph.node(self.launch.stage)

    @property
    def profile(self) -> StoreProfile:
        return self.accepted.profile

    @property
    def settings(self) -> PodSettings:
        return resources.pod_settings(self.config, self.spec, self.launch.stage)


def attempt_name(name: str, uid: str, stage: str, number: int) -> str:
    """The name of an attempt's objects: a DNS-1035 label of at most 32 + 20 characters."""
    return f"{name}-{uid[:4]}-{stage}-{number}"


def build(request: JobRequest) -> tuple[Object, Object]:
    """The ConfigMap and the PyTorchJob of an attempt."""
    meta, launch, spec = request.accepted.pipeline.metadata, request.launch, request.spec
    name = attempt_name(meta.name, request.uid, launch.stage, launch.attempt)
    labels = {PIPELINE: meta.name, UID: request.uid, STAGE: launch.stage, ATTEMPT: str(launch.attempt)}
    metadata = {
        "name": name,
        "namespace": meta.namespace,
        "labels": labels,
        "ownerReferences": [
            {
                "apiVersion": API_VERSION,
                "kind": KIND,
                "name": meta.name,
                "uid": request.uid,
                "controller": True,
                "blockOwnerDeletion": False,
            }
        ],
    }
    config_map = {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": metadata,
        "immutable": True,
        "data": {"plan.json": json.dumps(asdict(_plan(request)))},
    }
    nodes, processes = resources.nodes(spec, launch.stage), resources.processes(spec, launch.stage)
    told = {
        "stage": launch.stage,
        "number": launch.attempt,
        "keys": [out.key for out in launch.outputs],
        "device_batch_size": launch.device_batch_size,
        "memory": launch.memory,
        "started": request.started,
        "nodes": nodes,
        "processes": processes,
        "gpus": nodes * resources.gpus(spec, launch.stage),
    }
    queue = {QUEUE: spec.queue} if spec.queue else {}
    urgent = {PRIORITY: spec.priority} if spec.queue and spec.priority else {}
    job = {
        "apiVersion": "kubeflow.org/v1",
        "kind": "PyTorchJob",
        "metadata": metadata | {"labels": labels | queue | urgent, "annotations": {ATTEMPT: json.dumps(told)}},
        "spec": {
            "nprocPerNode": str(processes),
            # Kueue starts what it admits; otherwise nobody may touch this switch.
            "runPolicy": {"cleanPodPolicy": "Running", "suspend": bool(spec.queue)},
            "pytorchReplicaSpecs": {
                "Worker": {"replicas": nodes, "restartPolicy": "Never", "template": _pod(request, name, labels, nodes)}
            },
        },
    }
    return config_map, job


def _plan(request: JobRequest) -> StagePlan:
    """The plan, but for what only the pod knows: its launch and work folder."""
    meta, stage = request.accepted.pipeline.metadata, request.launch.stage
    graph, processes = request.accepted.graph, resources.processes(request.spec, request.launch.stage)
    cores = resources.cpu(request.settings, request.spec, stage, graph)
    return StagePlan(
        stage=stage,
        name=meta.name,
        namespace=meta.namespace,
        run=request.run,
        attempt=request.launch.attempt,
        launch="",
        outputs=request.launch.outputs,
        inputs=dict(request.node.needs),
        spec=_spec(request, cores),
        horizon=graph.horizon.to_dict(),
        profile={
            "root": request.profile.root,
            "endpoint": request.profile.endpoint,
            "region": request.profile.region,
            "anonymous": request.profile.anonymous,
        },
        cache=f"{WORK}/cache",
        work="",
        nodes=resources.nodes(request.spec, stage),
        processes=processes,
        # From the request, not from the node: sums are split by thread, and a resumed run has to add as before.
        threads=max(1, int(cores / processes)),
        tracking=request.profile.tracking,
    )


def _spec(request: JobRequest, cores: float) -> Object:
    """The spec with this attempt's device batch size and, for the tokens, as many workers as cores are asked for."""
    data = request.spec.to_yaml_dict()
    stage = request.launch.stage
    section = data["stages"]["evalBase" if stage == "eval-base" else "evalChat" if stage.startswith("eval-") else stage]
    if "deviceBatchSize" in section:
        section["deviceBatchSize"] = request.launch.device_batch_size
    if stage == "tokens" and section["workers"] is None:
        section["workers"] = max(1, round(cores))
    identity = data["stages"]["mid"]["identity"]
    if identity and identity.startswith(CONFIG_MAP):
        data["stages"]["mid"]["identity"] = f"file://{FILES_FOLDER}/{identity.rpartition('/')[2]}"
    return data


def _pod(request: JobRequest, name: str, labels: Object, nodes: int) -> Object:
    """The pod template."""
    spec, stage, settings = request.spec, request.launch.stage, request.settings
    network = PRESETS[settings.network] if settings.network else Network()
    user = settings.run_as_user or USER
    context: Object = {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}}
    context["readOnlyRootFilesystem"] = True
    if network.host:
        context["capabilities"]["add"] = ["IPC_LOCK"]
    container: Object = {
        "name": "pytorch",
        "image": settings.image or request.config.image,
        "imagePullPolicy": settings.image_pull_policy or "IfNotPresent",
        "command": ["python", "-m", "nanochat.pipeline.launcher", f"{PLAN_FOLDER}/plan.json"],
        "env": _environment(request, name, network),
        "envFrom": [_bare(source.to_yaml_dict()) for source in settings.env_from],
        "resources": _resources(request, network),
        "securityContext": context,
        "terminationMessagePolicy": "File",
        "volumeMounts": [
            {"name": "plan", "mountPath": PLAN_FOLDER, "readOnly": True},
            {"name": "work", "mountPath": WORK},
            {"name": "tmp", "mountPath": "/tmp"},
            {"name": "shm", "mountPath": "/dev/shm"},
        ],
    }
    if request.profile.secret:
        container["envFrom"].append({"secretRef": {"name": request.profile.secret}})
    kind = "gpu" if resources.gpus(spec, stage) else "cpu"
    shm = settings.shared_memory or _times(SHARED_MEMORY[kind], resources.processes(spec, stage))
    pod: Object = {
        "containers": [container],
        "volumes": [
            {"name": "plan", "configMap": {"name": name}},
            {"name": "work", "emptyDir": {}},
            {"name": "tmp", "emptyDir": {}},
            {"name": "shm", "emptyDir": {"medium": "Memory", "sizeLimit": shm}},
        ],
        "automountServiceAccountToken": False,
        "enableServiceLinks": False,
        "terminationGracePeriodSeconds": spec.stop_grace_seconds,
        "securityContext": {
            "runAsNonRoot": True,
            "runAsUser": user,
            "runAsGroup": user,
            "fsGroup": user,
            "seccompProfile": {"type": "RuntimeDefault"},
        },
    }
    identity = spec.stages.mid.identity or ""
    if stage == "dataset" and identity.startswith(CONFIG_MAP):
        source = identity.removeprefix(CONFIG_MAP).partition("/")[0]
        pod["volumes"].append({"name": "files", "configMap": {"name": source}})
        container["volumeMounts"].append({"name": "files", "mountPath": FILES_FOLDER, "readOnly": True})
    if network.host:
        pod |= {"hostNetwork": True, "dnsPolicy": "ClusterFirstWithHostNet"}
    account = settings.service_account or request.profile.service_account
    if account:
        pod["serviceAccountName"] = account
    if settings.image_pull_secrets:
        pod["imagePullSecrets"] = [{"name": secret} for secret in settings.image_pull_secrets]
    if settings.node_selector:
        pod["nodeSelector"] = dict(settings.node_selector)
    if settings.tolerations:
        pod["tolerations"] = [_bare(item.to_yaml_dict()) for item in settings.tolerations]
    if settings.priority_class:
        pod["priorityClassName"] = settings.priority_class
    if request.avoid:
        expression = {"key": "kubernetes.io/hostname", "operator": "NotIn", "values": list(request.avoid)}
        preferred = [{"weight": 100, "preference": {"matchExpressions": [expression]}}]
        pod["affinity"] = {"nodeAffinity": {"preferredDuringSchedulingIgnoredDuringExecution": preferred}}
    if nodes > 1:
        pod["topologySpreadConstraints"] = [
            {
                "maxSkew": 1,
                "topologyKey": settings.topology_key or "kubernetes.io/hostname",
                "whenUnsatisfiable": "DoNotSchedule",
                "nodeTaintsPolicy": "Honor",
                "labelSelector": {"matchLabels": {"training.kubeflow.org/job-name": name}},
            }
        ]
    return {
        "metadata": {"labels": {**settings.labels, **labels}, "annotations": dict(settings.annotations)},
        "spec": pod,
    }


def _environment(request: JobRequest, name: str, network: Network) -> list[Object]:
    field = {
        "NANOCHAT_POD_UID": "metadata.uid",
        "NANOCHAT_NODE_RANK": "metadata.labels['training.kubeflow.org/replica-index']",
    }
    values = {
        "NANOCHAT_MASTER": f"{name}-worker-0",
        "NANOCHAT_MASTER_PORT": str(PORT),
        "NANOCHAT_WORK": WORK,
        "NANOCHAT_STORE_PATIENCE": str(request.config.store_patience_seconds),
        "HOME": WORK,
        **network.environment,
    }
    given = {item.name: _bare(item.to_yaml_dict()) for item in request.settings.env}
    return [
        *({"name": n, "valueFrom": {"fieldRef": {"fieldPath": path}}} for n, path in field.items()),
        *({"name": n, "value": value} for n, value in values.items() if n not in given),
        *given.values(),
    ]


def _resources(request: JobRequest, network: Network) -> Object:
    """Requests and limits: memory is limited to what is asked for, CPU is not limited."""
    spec, stage, settings = request.spec, request.launch.stage, request.settings
    graph, asked = request.accepted.graph, settings.resources
    memory = str(resources.memory(settings, spec, stage, graph, factor=request.launch.memory))
    cores = f"{round(1000 * resources.cpu(settings, spec, stage, graph))}m"
    requests: Object = {**asked.requests, "cpu": cores, "memory": memory}
    limits: Object = {**asked.limits}
    if request.launch.memory > 1.0 or "memory" not in limits:
        limits["memory"] = memory
    named = {name.split("/")[0] for name in (*requests, *limits)}
    for device, count in network.devices.items():
        if device.split("/")[0] not in named:  # whoever names one of the kind, as rdma/hca_shared, knows better
            limits[device] = count
    gpus = resources.gpus(spec, stage)
    if gpus:
        limits[GPU] = str(gpus)
    # An extended resource has to be a limit.
    limits |= {name: value for name, value in requests.items() if "/" in name and name not in limits}
    return {"requests": {k: str(v) for k, v in requests.items()}, "limits": {k: str(v) for k, v in limits.items()}}


def _times(quantity: str, count: int) -> str:
    number = quantity.rstrip("KMGTPi")
    return f"{int(number) * count}{quantity[len(number) :]}"


def _bare(value: Any) -> Any:
    """Without what is not set."""
    if isinstance(value, dict):
        return {key: _bare(item) for key, item in value.items() if item is not None}
    return value
