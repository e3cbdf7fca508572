"""The processes that train together: who this one is, and the few small things that they have to agree on.

Ranks come from torchrun's variables (RANK, WORLD_SIZE, LOCAL_RANK, MASTER_ADDR, MASTER_PORT). One process alone
makes no process group at all; sums and what is broadcast are then its own:

    with join(torch.device("cpu")) as world:
        total, = world.sum(weight)

Numbers and JSON travel over gloo, even between GPUs: agreeing never waits for a kernel. Tensors on a GPU (the
optimizer's gradients) travel over NCCL in the same group, those on a CPU in a group of their own, so that no number
queues behind them. Every collective operation is called here, and one that fails raises PeerLost.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from nanochat.runtime.memory import is_out_of_memory
from nanochat.runtime.waits import Waits
from nanochat.spec.environment import integer
from nanochat.spec.errors import PeerLost

# A peer may be busy for long with an upload or a sample; a node that is gone is found by the planner's heartbeat.
COLLECTIVE_TIMEOUT = timedelta(minutes=30)


@contextmanager
def collective(waits: Waits) -> Iterator[None]:
    """Errors of a collective operation inside become PeerLost: gloo has none but RuntimeError."""
    try:
        with waits:
            yield
    except RuntimeError as error:
        if is_out_of_memory(error):
            raise
        raise PeerLost(f"communication with the other processes failed: {error}") from error


@dataclass(frozen=True, slots=True)
class Transfer:
    """A collective operation under way, in parts, and the work that ends it; without parts it is done."""

    parts: Sequence[dist.Work | None] = ()
    waits: Waits = field(default_factory=Waits, compare=False)
    finish: Callable[[], object] = lambda: None

    def wait(self) -> None:
        """Return when what was sent may be changed and what is received may be read."""
        for part in self.parts:
            if part is not None:
                with collective(self.waits):
                    part.wait()
        self.finish()


@dataclass(frozen=True, slots=True)
class World:
    """This process among its peers; `group` is None where there are none."""

    rank: int = 0
    size: int = 1
    local_rank: int = 0
    group: dist.ProcessGroup | None = None
    waits: Waits = field(default_factory=Waits, compare=False)

    @property
    def first(self) -> bool:
        """Whether this is rank 0, the one that writes."""
        return self.rank == 0

    def sum(self, *values: float) -> list[float]:
        """Each value summed over all ranks, in double precision; all ranks get the same bits."""
        if self.group is None:
            return [float(value) for value in values]
        return self.all_reduce(torch.tensor(values, dtype=torch.float64)).tolist()

    def all_reduce(self, value: Tensor) -> Tensor:
        """A tensor summed over all ranks, in place."""
        if self.group is not None:
            with collective(self.waits):
                dist.all_reduce(value, group=self.group)
        return value

    def reduce_scatter(self, own: Tensor, whole: Tensor) -> Transfer:
        """Begin to sum each of `whole`'s even parts over all ranks, part r into rank r's `own`.

        gloo's operation of that name sums all parts everywhere, and copies them while it is called: there each rank is
        sent its part of all, and adds them up in order of rank.
        """
        with collective(self.waits):
            if own.is_cuda:
                parts = list(whole.view(self.size, *own.shape))
                return Transfer((dist.reduce_scatter(own, parts, group=self.group, async_op=True),), self.waits)
            parts = torch.empty_like(whole)
            work = dist.all_to_all_single(parts, whole, group=self.group, async_op=True)
        return Transfer((work,), self.waits, lambda: torch.sum(parts.view(self.size, *own.shape), dim=0, out=own))

    def all_gather(self, whole: Tensor, own: Tensor) -> Transfer:
        """Begin to put each rank's `own` into part r of `whole`, on all ranks; over gloo each sends its own to all."""
        with collective(self.waits):
            parts = list(whole.view(self.size, *own.shape))
            if own.is_cuda:
                return Transfer((dist.all_gather(parts, own, group=self.group, async_op=True),), self.waits)
            parts[self.rank].copy_(own)
            sent = [dist.broadcast(part, rank, group=self.group, async_op=True) for rank, part in enumerate(parts)]
        return Transfer(sent, self.waits)

    def broadcast(self, value: Any) -> Any:
        """Rank 0's JSON value, on every rank."""
        if self.group is None:
            return value
        text = json.dumps(value).encode() if self.first else b""
        length = torch.tensor([len(text)])
        with collective(self.waits):
            dist.broadcast(length, src=0, group=self.group)
        content = torch.empty(int(length), dtype=torch.uint8)
        if self.first:
            content.copy_(torch.frombuffer(bytearray(text), dtype=torch.uint8))
        with collective(self.waits):
            dist.broadcast(content, src=0, group=self.group)
        return json.loads(content.numpy().tobytes())

    def gather(self, value: Any) -> list[Any]:
        """Each rank's JSON value, in order of rank, on every rank."""
        if self.group is None:
            return [value]
        text = torch.frombuffer(bytearray(json.dumps(value).encode()), dtype=torch.uint8)
        sizes = torch.empty(self.size, dtype=torch.int64)
        self.all_gather(sizes, torch.tensor([len(text)])).wait()
        longest = int(sizes.max())
        texts = torch.empty(self.size, longest, dtype=torch.uint8)
        self.all_gather(texts, torch.nn.functional.pad(text, (0, longest - len(text)))).wait()
        return [json.loads(each[:size].numpy().tobytes()) for each, size in zip(texts, sizes.tolist(), strict=True)]

    def apart(self) -> World:
        """The same processes in a group of its own: what another thread sends there meets nothing of this thread's."""
        if self.group is None:
            return self
        with collective(self.waits):
            group = dist.new_group(backend="gloo", timeout=COLLECTIVE_TIMEOUT)
        return replace(self, group=group, waits=Waits())

    def for_tensors(self, device: torch.device) -> World:
        """The same processes for tensors of this device, behind which no number queues."""
        return self if device.type == "cuda" else replace(self.apart(), waits=self.waits)

    def part(self, count: int) -> slice:
        """This rank's part of `count` things: contiguous, all used, sizes at most one apart."""
        return slice(count * self.rank // self.size, count * (self.rank + 1) // self.size)


ALONE = World()


@contextmanager
def join(device: torch.device, work: Path | None = None) -> Iterator[World]:
    """Join the process group that torchrun's variables describe, and leave it at the end.

    Whether this rank waits for the others can be read in the folder `work`: `nanochat.runtime.waits`.
    """
    size = integer("WORLD_SIZE", 1, low=1)
    if size == 1:
        yield ALONE
        return
    waits = Waits.in_file(work / f"rank{integer('RANK', 0)}.waits") if work is not None else Waits()
    backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
    with collective(waits):
        dist.init_process_group(backend, timeout=COLLECTIVE_TIMEOUT)
    yield World(
        rank=dist.get_rank(),
        size=size,
        local_rank=integer("LOCAL_RANK", 0),
        group=dist.group.WORLD,
        waits=waits,
    )
    # Not after an error: peers may still wait in a collective, and leaving would then wait for them.
    with collective(waits):
        dist.destroy_process_group()
