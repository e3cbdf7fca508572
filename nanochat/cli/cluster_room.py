"""Checks of the room for a pipeline's stages: Kueue's queue, and nodes that could ever hold their pods.

yield from looked(view, "stages", lambda: stage_checks(view))
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from decimal import Decimal

from nanochat.cli.checks import Check
from nanochat.cli.cluster_view import NODES, ClusterView, names
from nanochat.cli.doctor import BYTES_PER_CHARACTER, BYTES_PER_TOKEN, CHECKPOINTS, GIB
from nanochat.cli.node_fit import fit_of, quantity, requests_of
from nanochat.model.sizes import parameters
from nanochat.pipeline.graph import Graph
from nanochat.spec.pipeline import TRAINING, PipelineSpec
from operators import resources
from operators.elastic import Elastic
from operators.kube_client import CONFIG_MAPS, Resource
from operators.kube_error import KubeError, Object
from operators.kueue import LOCAL_QUEUES

CLUSTER_QUEUES = Resource(LOCAL_QUEUES.api_version, "ClusterQueue", "clusterqueues")
PRIORITIES = Resource(LOCAL_QUEUES.api_version, "WorkloadPriorityClass", "workloadpriorityclasses")
KARPENTER = Resource("karpenter.sh/v1", "NodePool", "nodepools")
AUTOSCALER = ("kube-system", "cluster-autoscaler-status")  # the ConfigMap in which it tells of itself, on all clouds
DISK = "ephemeral-storage"


# ---- queues -----------------------------------------------------------------------------------------------------


def queue_checks(view: ClusterView) -> Iterator[Check]:
    """The LocalQueue that the pipeline names, what is behind it, and its priority."""
    spec, kube = view.accepted.spec, view.kube
    if not spec.queue:
        yield Check(
            "queue", "ok", "the pipeline names none: its jobs start at once" if view.pipeline else "none is named"
        )
        return
    if not kube.serves(LOCAL_QUEUES):
        advice = "install Kueue (docs/pools.md), or take spec.queue out"
        yield Check("queue", "fail", f"spec.queue names {spec.queue}, and the cluster has no Kueue", advice)
        return
    found = kube.get(LOCAL_QUEUES, view.namespace, spec.queue)
    if found is None:
        there = [item["metadata"]["name"] for item in kube.listing(LOCAL_QUEUES, view.namespace).items]
        text = f"there is no LocalQueue {view.namespace}/{spec.queue}; there are: {names(there)}"
        yield Check("queue", "fail", text, "create it, or correct spec.queue")
        return
    behind = found["spec"].get("clusterQueue", "")
    stopped = next(
        (item for item in _conditions(found) if item["type"] == "Active" and item["status"] == "False"), None
    )
    if stopped is not None:
        text = f"LocalQueue {view.namespace}/{spec.queue} admits nothing: {stopped.get('message', '')}"
        yield Check("queue", "fail", text, f"see kubectl describe clusterqueue {behind}")
        return
    if spec.priority and kube.get(PRIORITIES, "", spec.priority) is None:
        text = f"spec.priority names {spec.priority}, and there is no such WorkloadPriorityClass"
        yield Check("queue", "fail", text, "create it, or correct spec.priority")
        return
    yield from _admission_checks(view, behind)


def _admission_checks(view: ClusterView, name: str) -> Iterator[Check]:
    """Whether a ClusterQueue that may borrow from no other could ever admit each stage."""
    where = f"LocalQueue {view.namespace}/{view.accepted.spec.queue}, ClusterQueue {name}"
    try:
        found = view.kube.get(CLUSTER_QUEUES, "", name) if name else None
    except KubeError as error:
        if error.status != 403:
            raise
        yield Check("queue", "ok", f"{where}, whose quotas you may not see")
        return
    groups = (found or {"spec": {}})["spec"].get("resourceGroups") or ()
    quotas = dict[str, Decimal]()  # of the flavor that has most: a pod is of one
    for flavor in (flavor for group in groups for flavor in group.get("flavors") or ()):
        for item in flavor.get("resources") or ():
            quotas[item["name"]] = max(quotas.get(item["name"], Decimal(0)), quantity(item["nominalQuota"]))
    shared = (found or {"spec": {}})["spec"].get("cohort") or (found or {"spec": {}})["spec"].get("cohortName")
    failed = False
    for stage in view.stages:
        nodes = resources.nodes(view.accepted.spec, stage)
        for resource, amount in requests_of(view.pods[stage]["spec"]).items():
            if resource not in quotas or (amount * nodes > quotas[resource] and not shared):
                failed, has = True, quotas.get(resource)
                said = f"covers no {resource}" if has is None else f"has {has:f} of {resource} at most"
                text = f"{where} {said}, and {stage} asks for {amount * nodes:f}"
                yield Check("queue", "fail", text, "raise its nominalQuota, or name another queue")
                break
    if not failed:
        yield Check("queue", "ok", where)


def _conditions(found: Object) -> Sequence[Object]:
    return (found.get("status") or {}).get("conditions") or ()


# ---- nodes ------------------------------------------------------------------------------------------------------


def stage_checks(view: ClusterView) -> Iterator[Check]:
    """For each stage, those that fare alike in one finding, whether some node could ever hold its pods."""
    spec, nodes = view.accepted.spec, view.kube.listing(NODES).items
    alike: dict[tuple[str, ...], list[str]] = {}
    for stage in view.stages:
        elastic = Elastic.of(spec, stage)
        fit = fit_of(view.pods[stage]["spec"], nodes, pods=elastic.least if elastic else resources.nodes(spec, stage))
        pool = "gpu" if resources.gpus(spec, stage) else "cpu"
        disk = (
            "" if fit.missing else _disk(view, stage, [node for node in nodes if node["metadata"]["name"] in fit.able])
        )
        alike.setdefault((fit.missing, fit.advice, disk, pool, *fit.able), []).append(stage)
    grows = _grows(view) if any(missing for missing, *_ in alike) else ""
    for (missing, advice, disk, pool, *able), stages in alike.items():
        who = view.listed(stages)
        if missing and not grows:
            view.homeless |= set(stages)
        if missing and grows:
            yield Check("stages", "warn", f"{who}: {missing}; {grows}", f"see that it makes nodes that do: {advice}")
        elif missing:
            set_in = f"pools.{pool}.pods of the chart, spec.pods or the stage's pod say what is asked for"
            yield Check("stages", "fail", f"{who}: {missing}", f"{advice}; {set_in}")
        elif disk:
            yield Check("stages", "warn", f"{who}: {disk}", "take nodes with larger disks")
        else:
            yield Check("stages", "ok", f"{who}: {len(able)} of {len(nodes)} nodes could hold a pod")


def _grows(view: ClusterView) -> str:
    """The words that the cluster makes nodes by itself; '' where nothing says so."""
    try:
        if view.kube.serves(KARPENTER):
            return "Karpenter may make others"
        return "the cluster autoscaler may make others" if view.kube.get(CONFIG_MAPS, *AUTOSCALER) else ""
    except KubeError as error:
        if error.status != 403:
            raise
        return "whether the cluster makes others by itself you may not see"


def _disk(view: ClusterView, stage: str, nodes: Sequence[Object]) -> str:
    """The warning that a stage may write more than the disk of each node has; '' where one has enough."""
    need = written(view.accepted.spec, view.accepted.graph, stage)
    has = max(
        (quantity((node.get("status") or {}).get("allocatable", {}).get(DISK, 0)) for node in nodes), default=Decimal(0)
    )
    if not has or need <= has:  # a node that says nothing of its disk is no finding
        return ""
    return (
        f"it writes about {need / GIB:.0f} GiB, and the largest of those nodes has {float(has) / GIB:.0f} GiB of {DISK}"
    )


def written(spec: PipelineSpec, graph: Graph, stage: str) -> float:
    """Bytes that a stage's pod keeps on its node's disk, about: text, tokens, checkpoints on their way to the store."""
    text = len(graph.horizon.text_shards) * spec.sources.text.characters_per_shard
    tokens = text / 4.8 * BYTES_PER_TOKEN
    parts = {
        "dataset": text * BYTES_PER_CHARACTER,
        "tokenizer": text * BYTES_PER_CHARACTER,
        "tokens": text * BYTES_PER_CHARACTER + tokens,
        "base": tokens,
    }
    state = parameters(graph.horizon.model) * 12 * CHECKPOINTS if stage in TRAINING else 0
    return GIB + parts.get(stage, 0.0) + state
