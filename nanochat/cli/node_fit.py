"""Whether nodes could ever hold a pod: as the scheduler decides, on nodes where nothing else runs. Pure functions.

    fit = fit_of(pod["spec"], nodes, pods=2)      # objects as the API server gives them; how many pods at once
    fit.missing                                   # '' where all of them find room; else the reason
    fit.advice

Looked at are taints, labels, GPUs and other devices, CPU, memory, ephemeral storage, and how pods are spread.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal

from kubernetes.utils.quantity import parse_quantity

from operators.kube_error import Object

GPU = "nvidia.com/gpu"
HOST = "kubernetes.io/hostname"
# Taints that come and go with a node's health, or with who is about to take it away.
PASSING = ("node.kubernetes.io/", "node.cloudprovider.kubernetes.io/", "ToBeDeletedByClusterAutoscaler",
           "DeletionCandidateOfClusterAutoscaler", "karpenter.sh/disrupted", "karpenter.sh/unregistered")  # fmt: skip
ABSENT = "absent"  # beside which the rest of a node is no matter
SHOWN = {"cpu": 1, "memory": 1 << 30, "ephemeral-storage": 1 << 30}  # divisors of the amounts in sentences


@dataclass(frozen=True, slots=True)
class Obstacle:
    """A reason why one node cannot hold a pod. `kind` is taint, label, resource, or ABSENT for a missing device."""

    kind: str
    text: str
    advice: str
    weight: int = 1


@dataclass(frozen=True, slots=True)
class Fit:
    """Where pods of one shape find room."""

    able: tuple[str, ...]  # nodes that could hold one
    unwell: tuple[str, ...]  # nodes that could, were they ready and not cordoned
    missing: str = ""
    advice: str = ""


def quantity(text: object) -> Decimal:
    """The number that a quantity means; 0 where it is none."""
    try:
        return parse_quantity(str(text))
    except ValueError:
        return Decimal(0)


def requests_of(pod: Object) -> dict[str, Decimal]:
    """The amounts that a pod's containers ask for together; a device is asked for by its limit."""
    found = defaultdict[str, Decimal](Decimal)
    for container in pod.get("containers") or ():
        resources = container.get("resources") or {}
        asked = {**(resources.get("limits") or {}), **(resources.get("requests") or {})}
        for name, amount in asked.items():
            found[name] += quantity(amount)
    return {name: amount for name, amount in found.items() if amount}


def fit_of(pod: Object, nodes: Sequence[Object], *, pods: int = 1) -> Fit:
    """The fit of a pod's spec, `pods` of them at once."""
    asked = requests_of(pod)
    obstacles = {_name(node): _obstacles(pod, asked, node) for node in nodes}
    free = [node for node in nodes if not obstacles[_name(node)]]
    able = [node for node in free if not _is_unwell(node)]
    unwell = tuple(_name(node) for node in free if _is_unwell(node))
    names = tuple(_name(node) for node in able)
    if not able and unwell:
        advice = f"see kubectl describe node {unwell[0]}; where it is cordoned: kubectl uncordon {unwell[0]}"
        return Fit(names, unwell, f"only {_listed(unwell)} could hold a pod, and takes none now", advice)
    if not able:
        return Fit(names, unwell, *_reason(nodes, obstacles))
    room = _room(pod, asked, [node for node in nodes if _is_eligible(pod, node) and not _is_unwell(node)])
    if room < pods:
        found = f"there is room for {room} of its {pods} pods, on {_listed(names)}, were all else gone"
        return Fit(names, unwell, found, "add nodes, or ask for fewer: nodes of the stage, or minNodes")
    return Fit(names, unwell)


def _reason(nodes: Sequence[Object], obstacles: Mapping[str, Sequence[Obstacle]]) -> tuple[str, str]:
    """Why no node will do, by the one that comes nearest, and what to do."""
    if not nodes:
        return "the cluster has no nodes", "add some"
    nearest = min(obstacles, key=lambda name: (sum(item.weight for item in obstacles[name]), name))
    found = [item for item in obstacles[nearest] if item.kind == ABSENT] or obstacles[nearest]
    who = nearest if len(nodes) == 1 else f"the nearest of {len(nodes)}, {nearest},"
    text = f"no node could ever hold a pod: {who} {', and '.join(item.text for item in found)}"
    return text, "; ".join(dict.fromkeys(item.advice for item in found))


def _obstacles(pod: Object, asked: Mapping[str, Decimal], node: Object) -> list[Obstacle]:
    name, labels = _name(node), node["metadata"].get("labels") or {}
    there = (node.get("status") or {}).get("allocatable") or {}
    found = list[Obstacle]()
    for taint in _taints(node):
        if not any(taint["key"].startswith(start) for start in PASSING) and not _tolerates(pod, taint):
            value = f"={taint['value']}" if taint.get("value") else ""
            text = f"has the taint {taint['key']}{value}:{taint['effect']}, which is not tolerated"
            advice = f"add a toleration of it, or take it off: kubectl taint node {name} {taint['key']}-"
            weight = 10 if "node-role.kubernetes.io/" in taint["key"] else 1  # not meant for pods like these
            found.append(Obstacle("taint", text, advice, weight))
    for key, value in (pod.get("nodeSelector") or {}).items():
        if labels.get(key) != value:
            advice = f"label the nodes that are meant: kubectl label node NAME {key}={value}; or correct nodeSelector"
            found.append(Obstacle("label", f"lacks the label {key}={value}", advice))
    for resource, amount in asked.items():
        has = quantity(there.get(resource, 0))
        if has < amount:
            found.append(_shortage(resource, amount, has))
    return found


def _shortage(resource: str, asked: Decimal, has: Decimal) -> Obstacle:
    if resource not in SHOWN and not has:
        plugin = "GPUs, and NVIDIA's device plugin, which offers them" if resource == GPU else f"{resource}"
        advice = f"add nodes with {plugin} (docs/clouds.md)"
        return Obstacle(ABSENT, f"offers no {resource}, of which {_amount(resource, asked)} are asked for", advice, 5)
    text = f"has {_amount(resource, has)} of the {_amount(resource, asked)} {resource} that are asked for"
    if resource == GPU:
        return Obstacle("resource", text, f"set gpusPerNode of the stage to {has} at most, or add nodes with more")
    return Obstacle("resource", text, f"lower {resource} in resources.requests, or add larger nodes")


def _amount(resource: str, amount: Decimal) -> str:
    unit = " GiB" if SHOWN.get(resource, 1) > 1 else ""
    return f"{float(amount / SHOWN.get(resource, 1)):.4g}{unit}"


def _room(pod: Object, asked: Mapping[str, Decimal], nodes: Sequence[Object]) -> int:
    """Pods that find room on these nodes, spread over their domains as the pod says."""
    spread = next(iter(pod.get("topologySpreadConstraints") or ()), None)
    key = spread["topologyKey"] if spread else HOST
    domains = Counter[str]()
    for node in nodes:
        domain = (node["metadata"].get("labels") or {}).get(key, _name(node) if key == HOST else "")
        if domain:
            domains[domain] += _holds(pod, asked, node)
    if spread is None or not domains:
        return sum(domains.values())
    most = min(domains.values()) + int(spread.get("maxSkew") or 1)
    return sum(min(count, most) for count in domains.values())


def _holds(pod: Object, asked: Mapping[str, Decimal], node: Object) -> int:
    """Pods that one empty node can hold."""
    if _obstacles(pod, asked, node):
        return 0
    there = (node.get("status") or {}).get("allocatable") or {}
    counts = [int(quantity(there.get(name, 0)) // amount) for name, amount in asked.items()]
    return min([*counts, int(quantity(there.get("pods", 110)))])


def _is_eligible(pod: Object, node: Object) -> bool:
    """Whether a node counts as a place to spread over: its labels and taints suit, whatever its size."""
    return all(item.kind not in ("taint", "label") for item in _obstacles(pod, {}, node))


def _is_unwell(node: Object) -> bool:
    """Whether a node takes no pods for the moment."""
    conditions = (node.get("status") or {}).get("conditions") or ()
    ready = next((item["status"] for item in conditions if item["type"] == "Ready"), "True")
    passing = any(taint["key"].startswith(start) for taint in _taints(node) for start in PASSING)
    return bool(node["spec"].get("unschedulable")) or ready != "True" or passing


def _taints(node: Object) -> list[Object]:
    """The taints that keep pods away."""
    taints = (node.get("spec") or {}).get("taints") or ()
    return [taint for taint in taints if taint.get("effect") in ("NoSchedule", "NoExecute")]


def _tolerates(pod: Object, taint: Object) -> bool:
    return any(_matches(item, taint) for item in pod.get("tolerations") or ())


def _matches(toleration: Object, taint: Object) -> bool:
    if toleration.get("effect") not in (None, "", taint["effect"]):
        return False
    if not toleration.get("key"):
        return toleration.get("operator") == "Exists"
    same = toleration["key"] == taint["key"]
    exists = toleration.get("operator") == "Exists"
    return same and (exists or (toleration.get("value") or "") == (taint.get("value") or ""))


def _name(node: Object) -> str:
    return node["metadata"]["name"]


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
