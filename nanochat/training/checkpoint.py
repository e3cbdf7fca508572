"""Checkpoints: model, optimizer, random state and loop state, as safetensors and JSON, for any number of processes.

    checkpointer = Checkpointer(context.checkpoints(), launch=launch, world=world, keep=2)
    checkpointer.save(1200, model=model, optimizer=optimizer, loop={...})
    loop = checkpointer.restore(model=model, optimizer=optimizer)     # None where there is no checkpoint

Rank 0 writes; it also chooses the checkpoint that all ranks restore, so that no two go on from different steps.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from nanochat.model.transformer import Transformer
from nanochat.optim import ShardedOptimizer
from nanochat.runtime.distributed import World
from nanochat.spec.errors import StorageError
from nanochat.storage import Checkpoints
from nanochat.storage.failures import Damaged, translate_errors

MODEL = "model.safetensors"
OPTIMIZER = "optimizer.safetensors"
RANDOM = "random.safetensors"
LOOP = "loop.json"
CHOICES = 3  # of a checkpoint, before ranks that lack it are taken for ranks with another store


@dataclass(frozen=True, slots=True)
class Checkpointer:
    """Saves and restores what training is made of; collective, like all that it calls."""

    checkpoints: Checkpoints
    launch: str
    world: World
    keep: int = 2

    def save(self, step: int, *, model: Transformer, optimizer: ShardedOptimizer, loop: Mapping[str, Any]) -> None:
        """Save the state after `step` steps, then remove all but the newest `keep` checkpoints."""
        moments = optimizer.state_dict()  # whole on rank 0, gathered from all
        if not self.world.first:
            return
        folder = self.checkpoints.folder(step, self.launch)
        try:
            with translate_errors(doing="writing", where=str(folder)):
                save_file({key: value.contiguous() for key, value in model.state_dict().items()}, folder / MODEL)
                save_file(moments, folder / OPTIMIZER)
                save_file(random_state(model.device), folder / RANDOM)
                (folder / LOOP).write_text(json.dumps(loop))
            self.checkpoints.save(step, self.launch, folder, {"step": step})
        except BaseException:
            self.checkpoints.abandon(step, self.launch, folder)
            raise
        self.checkpoints.prune(self.keep)

    @property
    def warnings(self) -> Sequence[str]:
        """Which checkpoints were found damaged and passed over."""
        return tuple(self.checkpoints.warnings)

    def restore(self, *, model: Transformer, optimizer: ShardedOptimizer) -> dict[str, Any] | None:
        """Load the newest good checkpoint and return its loop state; None where there is none."""
        folder = self._fetch_newest()
        if folder is None:
            return None
        model.load_state_dict(load_file(folder / MODEL))
        optimizer.load_state_dict(load_file(folder / OPTIMIZER))
        set_random_state(load_file(folder / RANDOM), model.device)
        return json.loads((folder / LOOP).read_text())

    def discard(self, *, after: int) -> None:
        """Remove what was saved after step `after`: the line that training has left."""
        if self.world.first:
            self.checkpoints.discard(after=after)

    def _fetch_newest(self) -> Path | None:
        """The files of the checkpoint that rank 0 chooses, on every rank; None where there is none.

        A launch that should have ended, on a node that was cut off, may save and remove beside this one: then another
        checkpoint is the newest at the next look, or the chosen one is gone before all ranks have it.
        """
        tries = 0
        while True:
            newest = self.checkpoints.newest() if self.world.first else None
            name = self.world.broadcast(None if newest is None else Path(newest.path).name)
            if name is None:
                return None
            folder = self._fetch(name)
            (lacking,) = self.world.sum(float(folder is None))
            if not lacking:
                return folder
            tries += 1
            if tries == CHOICES:
                raise StorageError(
                    f"{lacking:.0f} of {self.world.size} ranks do not see the checkpoint {name} that rank 0 sees; "
                    "all nodes must use one store."
                )

    def _fetch(self, name: str) -> Path | None:
        try:
            found = self.checkpoints.find(name)
            return None if found is None else self.checkpoints.fetch(found)
        except (Damaged, FileNotFoundError):
            return None


def random_state(device: torch.device) -> dict[str, Tensor]:
    """The random generators' state, as bytes."""
    state = {"cpu": torch.get_rng_state()}
    if device.type == "cuda":
        state["cuda"] = torch.cuda.get_rng_state(device)
    return state


def set_random_state(state: Mapping[str, Tensor], device: torch.device) -> None:
    """The reverse; a state saved on another kind of device is left out."""
    torch.set_rng_state(state["cpu"])
    if device.type == "cuda" and "cuda" in state:
        torch.cuda.set_rng_state(state["cuda"], device)
