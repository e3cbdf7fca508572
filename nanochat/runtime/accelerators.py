"""Known accelerators: what they can do at most, and what training makes of it. Imports no torch.

found = find_accelerator("NVIDIA H100 80GB HBM3")
found.peak * found.use           # FLOPs a second that training is reckoned with until it was measured
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Accelerator:
    """One kind of device."""

    name: str  # part of the device's own
    peak: float  # dense bf16 FLOPs a second, from the maker's data sheet
    use: float = 0.4  # the part of it that a large model's training comes to
    hour: float | None = None  # USD, as the reference reckons


# The first whose name is part of a device's own counts. H100: 0.46 is what the reference's published run of depth 20
# came to (3.92e19 FLOPs in 3 hours on eight).
ACCELERATORS = (
    Accelerator("B200", 2250e12),
    Accelerator("GH200", 989e12, 0.46),
    Accelerator("H200", 989e12, 0.46),
    Accelerator("H100 PCIe", 756e12, 0.46),
    Accelerator("H100", 989e12, 0.46, 3.0),
    Accelerator("A100", 312e12, 0.4, 1.79),
    Accelerator("L40S", 362e12),
    Accelerator("L4", 121e12),
    Accelerator("RTX 4090", 165e12),
    Accelerator("RTX 3090", 71e12),
)


def short_name(name: str) -> str:
    """The name that a device is known by; its own where it is not known."""
    found = find_accelerator(name)
    return found.name if found else name


def find_accelerator(name: str) -> Accelerator | None:
    """The accelerator with this name, or whose name is part of a device's own."""
    return next((item for item in ACCELERATORS if item.name.lower() in name.lower()), None)
