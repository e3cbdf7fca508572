"""Kubernetes' quantities, such as 500m and 16Gi: what they mean, and what no container can have.

amount("500m")                       # 0.5
Resources(requests={"memory": "8Gi"}, limits={"memory": "4Gi"})      # refused by `faults`
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Annotated

from pydantic import Field, StringConstraints

from nanochat.spec.comments import Form
from nanochat.spec.fields import LabelKey, nearest

PATTERN = r"^[0-9]+(\.[0-9]+)?(m|k|Ki|M|Mi|G|Gi|T|Ti|P|Pi)?$"
Quantity = (
    Annotated[int, Field(ge=0, le=10**18)]
    | Annotated[str, StringConstraints(max_length=32, pattern=PATTERN), Form("be a number or a quantity such as 16Gi")]
)
Amounts = Annotated[dict[LabelKey, Quantity], Field(max_length=32)]

NATIVE = ("cpu", "memory", "ephemeral-storage")
BYTES = ("memory", "ephemeral-storage")
LEAST = "16Mi"  # bytes below which a number of them is a unit that was forgotten
MOST_CORES = 4096  # of a pod, above which a number of them is a unit too many
GPU = "nvidia.com/gpu"
_UNITS = {
    "m": 1e-3, "": 1.0, "k": 1e3, "M": 1e6, "G": 1e9, "T": 1e12, "P": 1e15,
    "Ki": 2.0**10, "Mi": 2.0**20, "Gi": 2.0**30, "Ti": 2.0**40, "Pi": 2.0**50,
}  # fmt: skip


def amount(quantity: Quantity) -> float:
    """The number that a quantity means: '500m' is 0.5, '2Gi' is 2147483648."""
    number = str(quantity).rstrip("mkMGTPi")
    return float(number) * _UNITS[str(quantity)[len(number) :]]


def is_extended(name: str) -> bool:
    """Whether a resource is counted in whole devices, of which the request is the limit."""
    return "/" in name or name.startswith("hugepages-")


def faults(requests: Mapping[str, Quantity], limits: Mapping[str, Quantity]) -> Iterator[str]:
    """Sentences about amounts with which an API server would refuse every pod, or no pod could run."""
    for name, quantity in (*requests.items(), *limits.items()):
        if name == GPU:
            yield f"GPUs are asked for by gpusPerNode, not by {GPU}"
        elif name not in NATIVE and not is_extended(name):
            yield f"there is no resource '{name}'.{nearest(name, [*NATIVE])}"
        elif name == "cpu" and amount(quantity) > MOST_CORES:
            yield f"cpu {quantity} is {amount(quantity):g} cores, and {MOST_CORES} are the most: correct its unit"
        elif name in BYTES and amount(quantity) < amount(LEAST):
            yield f"{name} {quantity} is {amount(quantity):g} bytes, and {LEAST} are the least: write its unit"
        elif "/" in name and not amount(quantity).is_integer():
            yield f"{name} {quantity} is not a whole number of devices"
    for name in sorted(requests.keys() & limits.keys()):
        request, limit = amount(requests[name]), amount(limits[name])
        if request > limit:
            yield (
                f"the request of {name} ({requests[name]}) is above its limit ({limits[name]}): lower the one, "
                "or raise the other"
            )
        elif is_extended(name) and request != limit:
            yield f"the request of {name} ({requests[name]}) must be its limit ({limits[name]})"
