"""Training the small problem in one or several processes: python optim_worker.py <rank> '[{"world": 2, ...}, ...]'."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from optim_problem import ROWS, Tables, batch
from safetensors.torch import load_file, save_file

from nanochat.optim import OptimSettings, StateFiles, build_optimizer, sharded
from nanochat.runtime.distributed import World


def train(
    rank: int,
    *,
    world: int,
    save: str,
    steps: int,
    first: int = 0,
    load: str | None = None,
    clip: float | None = None,
    idle: int | None = None,
) -> dict[str, float]:
    """Steps first .. first + steps - 1 on this rank's rows, two at a time; rank `idle` has none, and no gradients.

    Every rank saves its state, and rank 0 the weights; from these another run goes on.
    """
    peers = World()
    if world > 1:
        dist.init_process_group("gloo", init_method=f"file://{save}.store", rank=rank, world_size=world)
        peers = World(rank=rank, size=world, group=dist.group.WORLD)
    model = Tables()
    optimizer = build_optimizer(model, OptimSettings(weight_decay=0.1, matrix_decay=0.1), world=peers)
    if load is not None:
        model.load_state_dict(load_file(load))
        optimizer.load_state_dict(saved_state(load))
    workers = [r for r in range(world) if r != idle]
    norm = 0.0
    for step in range(first, first + steps):
        optimizer.zero_grad()
        parts = batch(step)[workers.index(rank) :: len(workers)].split(2) if rank in workers else ()
        for number, part in enumerate(parts, 1):
            optimizer.wait()
            loss = model.loss(part) / ROWS
            if number == len(parts):
                optimizer.reduce_in_backward()
            loss.backward()
        optimizer.start_reduce()
        norm = float(optimizer.step(0.9, 0.9, clip))
    optimizer.wait()
    state = optimizer.own_state()
    save_file(state, f"{save}.state-{rank}")
    if rank == 0:
        save_file({name: weight.detach() for name, weight in model.named_parameters()}, save)
    if world > 1:
        dist.destroy_process_group()
    digest = sum(weight.detach().double().sum().item() for weight in model.parameters())
    return {"norm": norm, "digest": digest, "state": sum(tensor.numel() for tensor in state.values())}


def saved_state(save: str) -> StateFiles:
    """The optimizer's state that a job has saved, by however many ranks."""
    path = Path(save)
    return StateFiles(sorted(path.parent.glob(f"{path.name}.state-*")))


def main(rank: int, jobs: list[dict[str, Any]]) -> None:
    torch.set_num_threads(1)
    sharded.BUCKET = 1  # byte: as many buckets as there can be
    print(json.dumps([train(rank, **job) for job in jobs if rank < job["world"]]))


if __name__ == "__main__":
    main(int(sys.argv[1]), json.loads(sys.argv[2]))
