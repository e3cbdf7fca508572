"""A step's costs by kind, from PyTorch's profiler: matrix products, attention, and what else it was."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import ExitStack
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

# Parts of the names of operators and kernels; the first kind that fits counts.
KINDS = (
    ("attention", ("attention", "flash", "fmha", "sdpa")),
    (
        "matrix products",
        ("mm", "linear", "matmul", "gemm", "nvjet", "cutlass", "xmma", "sm90", "cublas", "mkldnn", "onednn"),
    ),
    ("compiled kernels", ("triton", "compiled", "cpp_fused", "inductor")),
    ("embedding", ("embedding", "index")),
    ("copies and casts", ("copy", "memcpy", "memset", "_to", "cat", "contiguous", "fill", "zero")),
    ("softmax and loss", ("softmax", "nll", "cross_entropy", "tanh", "exp", "logsumexp")),
    ("norms", ("norm",)),
)
SHOWN = 100  # characters of an operator's name


def profiled() -> tuple[ExitStack, Callable[[], list[dict[str, Any]]]]:
    """A profiler that runs until the stack is closed, and what then gives the costs."""
    stack = ExitStack()
    activities = [ProfilerActivity.CPU] + [ProfilerActivity.CUDA] * torch.cuda.is_available()
    found = stack.enter_context(profile(activities=activities, acc_events=True))

    def costs() -> list[dict[str, Any]]:
        events = found.key_averages()
        if torch.cuda.is_available():
            kernels = (event for event in events if str(event.device_type) == "DeviceType.CUDA")
            return by_kind((event.key, event.self_device_time_total * 1e-6) for event in kernels)
        return by_kind((event.key, event.self_cpu_time_total * 1e-6) for event in events)

    return stack, costs


def by_kind(items: Iterable[tuple[str, float]]) -> list[dict[str, Any]]:
    """Operators with their seconds -> kinds with their seconds, share and largest operator, the largest first."""
    kinds: dict[str, dict[str, float]] = {}
    for name, seconds in items:
        kinds.setdefault(kind_of(name), {})[name[:SHOWN]] = seconds
    total = sum(sum(operators.values()) for operators in kinds.values()) or 1.0
    found = [
        {
            "kind": kind,
            "seconds": sum(operators.values()),
            "share": sum(operators.values()) / total,
            "largest": max(operators, key=operators.__getitem__),
        }
        for kind, operators in kinds.items()
    ]
    return sorted(found, key=lambda cost: -cost["seconds"])


def kind_of(name: str) -> str:
    """The kind of cost that an operator's name tells."""
    low = name.lower()
    return next((kind for kind, parts in KINDS if any(part in low for part in parts)), "other")
