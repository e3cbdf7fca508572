"""Checkpoints: model, optimizer, random state and loop state, as safetensors and JSON, for any number of processes.

    with Checkpointer(context.checkpoints(), launch, world, keep=2, journal=journal, progress=progress) as checkpointer:
        loop = checkpointer.restore(model=model, optimizer=optimizer)     # None where there is no checkpoint
        checkpointer.save(1200, model=model, optimizer=optimizer, loop={...})

To save is to copy the state to host memory; a thread does the rest while training goes on, and one save is under way
at a time. Each process stores its own part of the optimizer, rank 0 all else. Rank 0 also chooses the checkpoint that
all ranks restore, so that no two go on from different steps.
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Collection, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Self

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from nanochat.model.transformer import Transformer
from nanochat.optim import ShardedOptimizer, StateFiles
from nanochat.runtime.distributed import World
from nanochat.spec.errors import NanochatError, PeerLost, StorageError
from nanochat.storage import Checkpoints
from nanochat.storage.failures import Damaged, translate_errors
from nanochat.storage.store import FileRecord
from nanochat.tracking.journal import Journal
from nanochat.tracking.progress import Progress
from nanochat.training.host_copy import Files, HostCopy
from nanochat.training.saving import Save

log = logging.getLogger(__name__)

MODEL = "model.safetensors"
OPTIMIZERS = "optimizer*.safetensors"  # one a process, in order of rank; optimizer.safetensors is from a version before
RANDOM = "random.safetensors"
LOOP = "loop.json"
CHOICES = 3  # of a checkpoint, before ranks that lack it are taken for ranks with another store
SLOW = (
    "training waits for its checkpoints: saving one takes longer than the time to the next; raise "
    "checkpointEverySeconds and checkpointEvery, or use a faster store"
)

CROWDED = "former checkpoints could not be removed and take up room, the log says why; the next save tries again"


class Checkpointer:
    """Saves and restores what training is made of; `save` and `restore` are collective, like all that they call."""

    def __init__(
        self,
        checkpoints: Checkpoints,
        launch: str,
        world: World,
        keep: int = 2,
        *,
        journal: Journal,
        progress: Progress,
    ) -> None:
        """Checkpoints are those of rank 0's `launch`, of which the newest `keep` stay."""
        self.checkpoints, self.launch, self.world, self.keep = checkpoints, launch, world, keep
        self.journal, self.progress = journal, progress
        self._copy = HostCopy()
        self._peers: World | None = None  # for the thread that saves
        self._save: Save | None = None  # under way, or ended without anybody having looked

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        """Let the save under way end; its own failure does not hide what ends training."""
        if kind is None:
            self.wait()
        elif not issubclass(kind, PeerLost):  # without its peers it has no end
            with suppress(NanochatError):
                self.wait()

    def save(
        self,
        step: int,
        *,
        model: Transformer,
        optimizer: ShardedOptimizer,
        loop: Mapping[str, Any],
        due: bool = True,
    ) -> None:
        """Copy the state after `step` steps, and begin to save it, once the former save has ended: it raises that one's
        failure. That a save which is `due` has to wait is told to people."""
        began = time.monotonic()
        if due and self.saving:
            self.progress.warn(SLOW)
        self.wait()
        if self._peers is None:
            self._peers, self.launch = self.world.apart(), self.world.broadcast(self.launch)
        own = {f"optimizer-{self.world.rank + 1:05d}-of-{self.world.size:05d}.safetensors": optimizer.own_state()}
        if self.world.first:
            own |= {MODEL: model.state_dict(), RANDOM: random_state(model.device)}
        copied, text = self._copy.take(own), json.dumps(loop)
        self._save = Save(
            self.checkpoints,
            step,
            self.launch,
            self._peers,
            write=lambda folder: self._write(folder, copied, text),
            commit=lambda records: self._commit(step, records),
            tell=self.progress.warn,
        )
        log.info("saving the state of step %s; training waited %.2f s for that", f"{step:,}", time.monotonic() - began)

    @property
    def saving(self) -> bool:
        """Whether a save is under way."""
        return self._save is not None and not self._save.done

    def check(self) -> None:
        """Raise the failure of a save that has ended since."""
        if self._save is not None and self._save.done:
            self.wait()

    def wait(self) -> None:
        """Wait for the save under way, if there is one, and raise its failure."""
        save, self._save = self._save, None
        if save is not None:
            save.result(alive=self.progress.update, waits=self.world.waits)

    def _write(self, folder: Path, copied: Files, loop: str) -> Collection[str]:
        """Put this rank's files into a folder."""
        self._copy.wait()
        with translate_errors(doing="writing", where=str(folder)):
            for name, tensors in copied.items():
                save_file(dict(tensors), folder / name)
            if not self.world.first:
                return tuple(copied)
            (folder / LOOP).write_text(loop)
            return (*copied, LOOP)

    def _commit(self, step: int, records: Sequence[FileRecord]) -> None:
        """Rank 0's last part: from here on there is a checkpoint, and all but the newest `keep` go."""
        self.journal.flush()  # no metric of a step that is not run again is ever lost
        self.checkpoints.commit(step, self.launch, records, {"step": step})
        log.info("the checkpoint of step %s is stored", f"{step:,}")
        try:
            self.checkpoints.prune(self.keep)
        except (NanochatError, FileNotFoundError) as error:
            log.warning("%s: %s", CROWDED, error)
            self.progress.warn(CROWDED)

    @property
    def warnings(self) -> Sequence[str]:
        """Which checkpoints were found damaged and passed over."""
        return tuple(self.checkpoints.warnings)

    def restore(self, *, model: Transformer, optimizer: ShardedOptimizer) -> dict[str, Any] | None:
        """Load the newest good checkpoint, after the save under way -> its loop state, or None where there is none."""
        self.wait()
        folder = self._fetch_newest()
        if folder is None:
            return None
        with translate_errors(doing="reading", where=str(folder)):
            model.load_state_dict(load_file(folder / MODEL))
            optimizer.load_state_dict(StateFiles(sorted(folder.glob(OPTIMIZERS))))
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
