"""One attempt's ConfigMap, with its plan, and the template of its pods, in the models of `kubernetes`.

    plan = plan_of(request)
    config_map = build_config_map(request, plan)
    template = build_template(request, network_of_job)

A backend (`operators.job_backend`) makes a job around the template.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass

from kubernetes import client

from nanochat.pipeline.plan import StagePlan
from nanochat.spec.chatpipeline import API_VERSION, ATTEMPT, KIND, PIPELINE, STAGE, UID
from nanochat.spec.pods import hide_values
from operators import resources
from operators.admission import CONFIG_MAP
from operators.job_backend import JobRequest
from operators.kube_error import Object
from operators.kube_models import from_json
from operators.networks import PRESETS, Network

PLAN_FOLDER = "/etc/nanochat/plan"
FILES_FOLDER = "/etc/nanochat/files"
WORK = "/work"
PORT = 23456
USER = 1000
GPU = "nvidia.com/gpu"
IDLE = ["sleep", "infinity"]
SHARED_MEMORY = {"cpu": (64, "Mi"), "gpu": (1, "Gi")}  # of each process


@dataclass(frozen=True, slots=True)
class Placement:
    """How a backend names the pods of a job, so that they find each other."""

    master: str  # host name of the pod with index 0
    job_label: str  # label of all pods of the job, whose value is the job's name
    index_label: str  # label with the pod's index


def metadata_of(request: JobRequest) -> client.V1ObjectMeta:
    """The metadata of an attempt's objects: they go with the pipeline that they are labelled with."""
    meta, launch = request.accepted.pipeline.metadata, request.launch
    owner = client.V1OwnerReference(
        api_version=API_VERSION,
        kind=KIND,
        name=meta.name,
        uid=request.uid,
        controller=True,
        block_owner_deletion=False,
    )
    labels = {PIPELINE: meta.name, UID: request.uid}
    if not request.beside:
        labels |= {STAGE: launch.stage, ATTEMPT: str(launch.attempt)}
    return client.V1ObjectMeta(name=request.name, namespace=meta.namespace, labels=labels, owner_references=[owner])


def build_config_map(request: JobRequest, plan: str) -> client.V1ConfigMap:
    """The immutable ConfigMap with the plan's JSON."""
    return client.V1ConfigMap(metadata=metadata_of(request), immutable=True, data={"plan.json": plan})


def plan_of(request: JobRequest) -> str:
    """The plan as JSON, but for what only the pod knows: its launch and work folder."""
    meta, stage = request.accepted.pipeline.metadata, request.launch.stage
    graph, processes = request.accepted.graph, resources.processes(request.spec, request.launch.stage)
    cores = resources.cpu(request.settings, request.spec, stage, graph)
    plan = StagePlan(
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
        profile=asdict(request.profile.location()),
        cache=f"{WORK}/cache",
        work="",
        nodes=request.nodes,
        processes=processes,
        # From the request, not from the node: sums are split by thread, and a resumed run has to add as before.
        threads=max(1, int(cores / processes)),
        tracking=request.profile.tracking,
    )
    return json.dumps(asdict(plan))


def _spec(request: JobRequest, cores: float) -> Object:
    """The spec with this attempt's device batch size and, for the tokens, as many workers as cores are asked for."""
    data = hide_values(request.spec.to_yaml_dict())
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


def build_template(request: JobRequest, placement: Placement) -> client.V1PodTemplateSpec:
    """The template of an attempt's pods."""
    spec, settings = request.spec, request.settings
    network = PRESETS[settings.network] if settings.network else Network()
    user = settings.run_as_user or USER
    pod = client.V1PodSpec(
        containers=[_container(request, placement, network)],
        volumes=_volumes(request),
        automount_service_account_token=False,
        enable_service_links=False,
        termination_grace_period_seconds=spec.stop_grace_seconds,
        security_context=client.V1PodSecurityContext(
            run_as_non_root=True,
            run_as_user=user,
            run_as_group=user,
            fs_group=user,
            seccomp_profile=client.V1SeccompProfile(type="RuntimeDefault"),
        ),
        host_network=True if network.host else None,
        dns_policy="ClusterFirstWithHostNet" if network.host else None,
        service_account_name=settings.service_account or request.profile.service_account,
        image_pull_secrets=[client.V1LocalObjectReference(name=name) for name in settings.image_pull_secrets] or None,
        node_selector=settings.node_selector or None,
        tolerations=[from_json(client.V1Toleration, item.to_yaml_dict()) for item in settings.tolerations] or None,
        priority_class_name=settings.priority_class,
        affinity=_avoiding(request.avoid) if request.avoid else None,
    )
    selector = client.V1LabelSelector(match_labels={placement.job_label: request.name})
    if request.beside:
        pods = {"key": placement.job_label, "operator": "In", "values": [request.name, request.beside]}
        selector = client.V1LabelSelector(match_expressions=[client.V1LabelSelectorRequirement(**pods)])
        _make_idle(pod)
    if request.nodes > 1 or request.beside:
        spread = client.V1TopologySpreadConstraint(
            max_skew=1,
            topology_key=settings.topology_key or "kubernetes.io/hostname",
            when_unsatisfiable="DoNotSchedule",
            node_taints_policy="Honor",
            label_selector=selector,
        )
        pod.topology_spread_constraints = [spread]
    labels = {**settings.labels, **(metadata_of(request).labels or {})}
    return client.V1PodTemplateSpec(
        metadata=client.V1ObjectMeta(labels=labels, annotations=settings.annotations), spec=pod
    )


def _make_idle(pod: client.V1PodSpec) -> None:
    """Leave of a pod what decides where it fits: it runs nothing, reads nothing and ends at once."""
    container: client.V1Container = pod.containers[0]  # type: ignore[index]
    container.command, pod.termination_grace_period_seconds = IDLE, 1
    container.env = container.env_from = container.volume_mounts = pod.volumes = None


def _container(request: JobRequest, placement: Placement, network: Network) -> client.V1Container:
    """The container, under the restricted standard but for what the host's network needs."""
    settings = request.settings
    sources = [from_json(client.V1EnvFromSource, source.to_yaml_dict()) for source in settings.env_from]
    if request.profile.secret:
        sources.append(client.V1EnvFromSource(secret_ref=client.V1SecretEnvSource(name=request.profile.secret)))
    mounts = {"plan": PLAN_FOLDER, "work": WORK, "tmp": "/tmp", "shm": "/dev/shm"}
    if _files_of(request):
        mounts["files"] = FILES_FOLDER
    return client.V1Container(
        name="pytorch",
        image=settings.image or request.config.image,
        image_pull_policy=settings.image_pull_policy or "IfNotPresent",
        command=["python", "-m", "nanochat.pipeline.launcher", f"{PLAN_FOLDER}/plan.json"],
        env=_environment(request, placement, network),
        env_from=sources,
        resources=_resources(request, network),
        security_context=client.V1SecurityContext(
            allow_privilege_escalation=False,
            read_only_root_filesystem=True,
            capabilities=client.V1Capabilities(drop=["ALL"], add=["IPC_LOCK"] if network.host else None),
        ),
        termination_message_policy="FallbackToLogsOnError",  # where it ends before it has a word of its own
        volume_mounts=[
            client.V1VolumeMount(name=name, mount_path=path, read_only=name in ("plan", "files") or None)
            for name, path in mounts.items()
        ],
    )


def _volumes(request: JobRequest) -> list[client.V1Volume]:
    """The volumes: the plan, and what the container writes to."""
    spec, stage, settings = request.spec, request.launch.stage, request.settings
    size, unit = SHARED_MEMORY["gpu" if resources.gpus(spec, stage) else "cpu"]
    shared = settings.shared_memory or f"{size * resources.processes(spec, stage)}{unit}"
    memory = client.V1EmptyDirVolumeSource(medium="Memory", size_limit=shared)
    volumes = [
        client.V1Volume(name="plan", config_map=client.V1ConfigMapVolumeSource(name=request.name)),
        client.V1Volume(name="work", empty_dir=client.V1EmptyDirVolumeSource()),
        client.V1Volume(name="tmp", empty_dir=client.V1EmptyDirVolumeSource()),
        client.V1Volume(name="shm", empty_dir=memory),
    ]
    if files := _files_of(request):
        volumes.append(client.V1Volume(name="files", config_map=client.V1ConfigMapVolumeSource(name=files)))
    return volumes


def _files_of(request: JobRequest) -> str:
    """The name of the ConfigMap with the identity, which one stage reads; '' for all others."""
    identity = request.spec.stages.mid.identity or ""
    if request.launch.stage != "dataset" or not identity.startswith(CONFIG_MAP):
        return ""
    return identity.removeprefix(CONFIG_MAP).partition("/")[0]


def _avoiding(nodes: Mapping[str, float]) -> client.V1Affinity:
    """An affinity that prefers all other nodes, and of these the least suspected; pods can still run on any."""
    most = max(nodes.values())
    terms = [
        client.V1PreferredSchedulingTerm(
            weight=max(1, round(100 * score / most)),
            preference=client.V1NodeSelectorTerm(
                match_fields=[client.V1NodeSelectorRequirement(key="metadata.name", operator="NotIn", values=[node])]
            ),
        )
        for node, score in nodes.items()
    ]
    return client.V1Affinity(
        node_affinity=client.V1NodeAffinity(preferred_during_scheduling_ignored_during_execution=terms)
    )


def _environment(request: JobRequest, placement: Placement, network: Network) -> list[client.V1EnvVar]:
    """The variables; what the pod's settings name goes over the values here."""
    fields = {
        "NANOCHAT_POD_UID": "metadata.uid",
        "NANOCHAT_NODE_RANK": f"metadata.labels['{placement.index_label}']",
    }
    values = {
        "NANOCHAT_MASTER": placement.master,
        "NANOCHAT_MASTER_PORT": str(PORT),
        "NANOCHAT_WORK": WORK,
        "NANOCHAT_STORE_PATIENCE": str(request.config.store_patience_seconds),
        "HOME": WORK,
        **network.environment,
    }
    if request.launch.stage != "dataset":
        values["HF_TOKEN"] = ""  # a Secret's keys are in all pods, and this one is for the stage that fetches data
    given = {item.name: from_json(client.V1EnvVar, item.to_yaml_dict()) for item in request.settings.env}
    sources = {
        name: client.V1EnvVarSource(field_ref=client.V1ObjectFieldSelector(field_path=path))
        for name, path in fields.items()
    }
    return [
        *(client.V1EnvVar(name=name, value_from=source) for name, source in sources.items()),
        *(client.V1EnvVar(name=name, value=value) for name, value in values.items() if name not in given),
        *given.values(),
    ]


def _resources(request: JobRequest, network: Network) -> client.V1ResourceRequirements:
    """Requests and limits: memory is limited to what is asked for, CPU is not limited."""
    spec, stage, settings = request.spec, request.launch.stage, request.settings
    graph, asked = request.accepted.graph, settings.resources
    memory = str(resources.memory(settings, spec, stage, graph, factor=request.launch.memory))
    cores = f"{round(1000 * resources.cpu(settings, spec, stage, graph))}m"
    requests = {**asked.requests, "cpu": cores, "memory": memory}
    limits = dict(asked.limits)
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
    return client.V1ResourceRequirements(
        requests={name: str(value) for name, value in requests.items()},
        limits={name: str(value) for name, value in limits.items()},
    )
