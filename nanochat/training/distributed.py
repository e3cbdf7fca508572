"""The processes that train together: who this one is, and the few small things that they have to agree on.

Ranks come from torchrun's variables (RANK, WORLD_SIZE, LOCAL_RANK, MASTER_ADDR, MASTER_PORT). One process alone
makes no process group at all, and every method here is then the identity:

    with join(torch.device("cpu")) as world:
        total, = world.sum(weight)

Numbers and JSON travel over gloo, even between GPUs: agreeing never waits for a kernel. Tensors on a GPU (the
optimizer's gradients) travel over NCCL in the same group.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist

# A peer may be busy for long with an upload or a sample; a node that is gone is found by the planner's heartbeat.
COLLECTIVE_TIMEOUT = timedelta(minutes=30)


@dataclass(frozen=True, slots=True)
class World:
    """This process among its peers; `group` is None where there are none."""

    rank: int = 0
    size: int = 1
    local_rank: int = 0
    group: dist.ProcessGroup | None = None

    @property
    def first(self) -> bool:
        """Whether this is rank 0, the one that writes."""
        return self.rank == 0

    def sum(self, *values: float) -> list[float]:
        """Each value summed over all ranks, in double precision; all ranks get the same bits."""
        if self.group is None:
            return [float(value) for value in values]
        numbers = torch.tensor(values, dtype=torch.float64)
        dist.all_reduce(numbers, group=self.group)
        return numbers.tolist()

    def broadcast(self, value: Any) -> Any:
        """Rank 0's JSON value, on every rank."""
        if self.group is None:
            return value
        text = json.dumps(value).encode() if self.first else b""
        length = torch.tensor([len(text)])
        dist.broadcast(length, src=0, group=self.group)
        content = torch.empty(int(length), dtype=torch.uint8)
        if self.first:
            content.copy_(torch.frombuffer(bytearray(text), dtype=torch.uint8))
        dist.broadcast(content, src=0, group=self.group)
        return json.loads(content.numpy().tobytes())

    def part(self, count: int) -> slice:
        """This rank's part of `count` things: contiguous, all used, sizes at most one apart."""
        return slice(count * self.rank // self.size, count * (self.rank + 1) // self.size)


@contextmanager
def join(device: torch.device) -> Iterator[World]:
    """Join the process group that torchrun's variables describe, and leave it at the end."""
    size = int(os.environ.get("WORLD_SIZE", "1"))
    if size == 1:
        yield World()
        return
    backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
    dist.init_process_group(backend, timeout=COLLECTIVE_TIMEOUT)
    yield World(
        rank=dist.get_rank(),
        size=size,
        local_rank=int(os.environ.get("LOCAL_RANK", "0")),
        group=dist.group.WORLD,
    )
    # Not after an error: peers may still wait in a collective, and leaving would then wait for them.
    dist.destroy_process_group()
