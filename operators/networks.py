"""How the nodes of one attempt talk, as named presets: environment, devices and rights of the pods.

preset = PRESETS["rdma"]
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Network:
    """A preset's additions to a pod."""

    environment: Mapping[str, str] = field(default_factory=dict)
    devices: Mapping[str, str] = field(default_factory=dict)  # extended resources, where the pod names none of a kind
    host: bool = False  # the node's own network and IPC_LOCK: needs a namespace that enforces `privileged`


PRESETS: Mapping[str, Network] = {
    # Sockets alone: any cluster.
    "tcp": Network(environment={"NCCL_IB_DISABLE": "1", "NCCL_SOCKET_IFNAME": "eth0", "GLOO_SOCKET_IFNAME": "eth0"}),
    # InfiniBand or RoCE through a shared device plugin; the rendezvous stays on the pod's own interface.
    "rdma": Network(
        environment={"NCCL_IB_DISABLE": "0", "NCCL_SOCKET_IFNAME": "eth0", "GLOO_SOCKET_IFNAME": "eth0"},
        devices={"rdma/hca": "1"},
    ),
    # InfiniBand or RoCE of the node, where no device plugin is installed.
    "rdma-host": Network(environment={"NCCL_IB_DISABLE": "0"}, host=True),
    # AWS Elastic Fabric Adapter with the aws-ofi-nccl plugin in the image.
    "efa": Network(
        environment={"FI_PROVIDER": "efa", "FI_EFA_USE_DEVICE_RDMA": "1", "NCCL_SOCKET_IFNAME": "eth0"},
        devices={"vpc.amazonaws.com/efa": "1"},
    ),
}
