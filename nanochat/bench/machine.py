"""The machine's own speed: matrix products at a model's shapes, memory, disk and store. The bound of all else.

The best of five counts, for what disturbs only ever slows. A product is measured as a step makes it: forward, for the
gradient of its input and for that of its weight.
"""

from __future__ import annotations

import os
import platform
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from nanochat.bench.pacing import Paced, synchronize
from nanochat.model.sizes import MLP_RATIO, ModelConfig
from nanochat.runtime.device import choose_device
from nanochat.storage.opening import open_store
from nanochat.storage.store import Profile

BEST_OF = 5
LARGEST_OUTPUT = 1 << 26  # items of a product: the loss goes by chunks, too
COPIED, WRITTEN = 256 << 20, 64 << 20  # bytes


@dataclass(frozen=True, slots=True)
class Product:
    """Matrix products of one shape, and how many a token passes through."""

    name: str
    inputs: int
    outputs: int
    count: int


def products(config: ModelConfig) -> Iterator[Product]:
    """The matrices of a model by shape."""
    d, d_kv, depth = config.width, config.kv_width, config.depth
    yield Product("query and output", d, d, 2 * depth)
    yield Product("key and value", d, d_kv, 2 * depth)
    yield Product("into the MLP", d, MLP_RATIO * d, depth)
    yield Product("out of the MLP", MLP_RATIO * d, d, depth)
    yield Product("head", d, config.vocab_size, 1)


def run(task: Mapping[str, Any], paced: Paced) -> None:
    """Answer with all figures of the machine, once."""
    config = ModelConfig.from_dict(task["model"])
    chosen = choose_device(task["precision"])
    cuda = chosen.device.type == "cuda"
    rates = {item.name: rate(item, task["rows"], chosen.device, chosen.compute_dtype) for item in products(config)}
    flops = {item.name: item.inputs * item.outputs * item.count for item in products(config)}
    paced.answer(
        {
            "device": torch.cuda.get_device_name()
            if cuda
            else f"{platform.machine()}, {torch.get_num_threads()} threads",
            "torch": torch.__version__,
            "precision": str(chosen.compute_dtype).removeprefix("torch."),
            "threads": torch.get_num_threads(),
            "products": rates,  # FLOPs a second
            # The rate of a step that does nothing but its products, each as fast as it can be.
            "bound": sum(flops.values()) / sum(flops[name] / rates[name] for name in rates),
            "memory": 2 * COPIED / copying(chosen.device),
            "disk": WRITTEN / writing(Path(task["folder"])),
            "store": WRITTEN / storing(Profile(**task["profile"])),
        }
    )


def best(call: Callable[[], object]) -> float:
    """Seconds of the fastest of five calls, after one that is not counted."""
    found = []
    for _ in range(BEST_OF + 1):
        synchronize()
        began = time.monotonic()
        call()
        synchronize()
        found.append(time.monotonic() - began)
    return min(found[1:])


def rate(item: Product, rows: int, device: torch.device, dtype: torch.dtype) -> float:
    """FLOPs a second of a product, forward and both ways back."""
    rows = max(1, min(rows, LARGEST_OUTPUT // item.outputs))
    x, weight, gradient = (
        torch.randn(shape, device=device, dtype=dtype)
        for shape in ((rows, item.inputs), (item.outputs, item.inputs), (rows, item.outputs))
    )
    calls = (lambda: x @ weight.t(), lambda: gradient @ weight, lambda: gradient.t() @ x)
    return 3 * 2 * rows * item.inputs * item.outputs / sum(best(call) for call in calls)


def copying(device: torch.device) -> float:
    """Seconds to read and write so many bytes of memory."""
    source = torch.empty(COPIED, dtype=torch.uint8, device=device).fill_(1)
    target = torch.empty_like(source)
    return best(lambda: target.copy_(source))


def writing(folder: Path) -> float:
    """Seconds to bring a file onto the disk."""
    content, path = os.urandom(WRITTEN), folder / f"bench-{uuid.uuid4().hex}"

    def write() -> None:
        with path.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())

    folder.mkdir(parents=True, exist_ok=True)
    try:
        return best(write)
    finally:
        path.unlink(missing_ok=True)


def storing(profile: Profile) -> float:
    """Seconds to put a file into the store."""
    store, content, path = open_store(profile), os.urandom(WRITTEN), f"bench-{uuid.uuid4().hex}"
    try:
        return best(lambda: store.write(path, content))
    finally:
        store.delete(path)
