"""Which nodes could ever hold a pod, and how many of its pods find room."""

from __future__ import annotations

from typing import Any

import pytest
from doctored_cluster import gpu_node, node

from nanochat.cli.node_fit import fit_of


def pod(requests: dict[str, str] | None = None, limits: dict[str, str] | None = None, **spec: Any) -> dict[str, Any]:
    return {"containers": [{"resources": {"requests": requests or {}, "limits": limits or {}}}], **spec}


SPREAD = [{"maxSkew": 1, "topologyKey": "kubernetes.io/hostname", "whenUnsatisfiable": "DoNotSchedule"}]


@pytest.mark.parametrize(("resource", "asked", "says"), [
    ("cpu", "65", "has 64 of the 65 cpu"),
    ("memory", "300Gi", "has 256 GiB of the 300 GiB memory"),
    ("ephemeral-storage", "1Ti", "has 900 GiB of the 1024 GiB ephemeral-storage"),
    ("rdma/hca", "1", "offers no rdma/hca, of which 1 are asked for"),
])  # fmt: skip
def test_what_is_too_large_is_named(resource: str, asked: str, says: str) -> None:
    fit = fit_of(pod({resource: asked}), [node("a")])
    assert says in fit.missing and fit.advice and not fit.able


@pytest.mark.parametrize(("toleration", "tolerated"), [
    ({"key": "dedicated", "operator": "Exists"}, True),
    ({"key": "dedicated", "value": "chat"}, True),
    ({"key": "dedicated", "operator": "Equal", "value": "chat", "effect": "NoSchedule"}, True),
    ({"operator": "Exists"}, True),
    ({"operator": "Exists", "effect": "NoExecute"}, False),
    ({"key": "dedicated", "value": "other"}, False),
    ({"key": "other", "operator": "Exists"}, False),
])  # fmt: skip
def test_tolerations_are_matched_as_the_scheduler_does(toleration: dict[str, str], tolerated: bool) -> None:
    tainted = node("a", {"key": "dedicated", "value": "chat", "effect": "NoSchedule"})
    assert bool(fit_of(pod(tolerations=[toleration]), [tainted]).able) is tolerated


def test_taints_that_only_advise_keep_nobody_away() -> None:
    assert fit_of(pod(), [node("a", {"key": "x", "effect": "PreferNoSchedule"})]).able == ("a",)


def test_the_nearest_node_gives_the_reason() -> None:
    """A machine with GPUs that is kept for others is nearer than one without any."""
    kept = gpu_node("gpus", 8, {"key": "dedicated", "effect": "NoSchedule"})
    fit = fit_of(pod(limits={"nvidia.com/gpu": "8"}), [node("plain"), kept])
    assert "gpus, has the taint dedicated:NoSchedule" in fit.missing and "plain" not in fit.missing


@pytest.mark.parametrize(
    ("spread", "pods", "room"), [(SPREAD, 3, True), (SPREAD, 4, False), ([], 9, True), ([], 10, False)]
)
def test_pods_are_spread_as_they_say(spread: list[Any], pods: int, room: bool) -> None:
    """One machine has room for a pod, the other for eight: spread evenly, three at most find room."""
    small, large = gpu_node("small", 1), gpu_node("large", 8)
    asked = pod(limits={"nvidia.com/gpu": "1"}, topologySpreadConstraints=spread)
    assert bool(fit_of(asked, [small, large], pods=pods).missing) is not room


def test_no_nodes_at_all() -> None:
    assert fit_of(pod(), []).missing == "the cluster has no nodes"
