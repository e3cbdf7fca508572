"""A tiny model, data that is a function of the step, and a loop over them."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import torch

from nanochat.model.sizes import ModelConfig
from nanochat.model.transformer import Transformer
from nanochat.optim import OptimSettings, build_optimizer
from nanochat.runtime.device import Device
from nanochat.runtime.distributed import World
from nanochat.spec.errors import Stopped
from nanochat.storage.checkpoints import Checkpoints
from nanochat.storage.opening import open_store
from nanochat.storage.store import Profile, Store
from nanochat.tracking.journal import Journal, JournalReader
from nanochat.tracking.progress import Progress
from nanochat.training.checkpoint import Checkpointer
from nanochat.training.forward import Forward
from nanochat.training.guards import SpikeGuard
from nanochat.training.objective import IGNORED, Objective, Supervised
from nanochat.training.plan import Measurement, Rates, TrainerPlan
from nanochat.training.state import TrainerState
from nanochat.training.trainer import Trainer
from tests.model import recipe_models

CONFIG = ModelConfig(depth=2, width=32, heads=2, kv_heads=2, sequence_length=16, vocab_size=64)
MODERN = replace(CONFIG, **recipe_models.MODERN)
CPU = Device(torch.device("cpu"), torch.float32)


@dataclass
class FakeLoader:
    """Counting sequences; `masked` steps have no supervised token, every other token is supervised elsewhere."""

    rows: int = 6
    masked: frozenset[int] = frozenset()
    asked: list[int] = field(default_factory=list)

    def batch(self, step: int, rows: slice | None = None) -> tuple[np.ndarray, np.ndarray]:
        self.asked.append(step)
        inputs, targets = self.made(step)
        part = rows or slice(None)
        return inputs[part].copy(), targets[part]

    def step_of(self, ids: torch.Tensor) -> int:
        """The step that these rows are of."""
        found = [step for step in set(self.asked) if has_rows(self.made(step)[0], ids.numpy())]
        assert len(found) == 1
        return found[0]

    def made(self, step: int) -> tuple[np.ndarray, np.ndarray]:
        random = np.random.default_rng(step)
        first, stride = random.integers(0, 64, (self.rows, 1)), random.integers(1, 4, (self.rows, 1))
        tokens = (first + stride * np.arange(17)) % 64
        targets = tokens[:, 1:].copy()
        targets[random.random(targets.shape) < 0.3] = IGNORED
        if step in self.masked:
            targets[:] = IGNORED
        return tokens[:, :-1], targets


def has_rows(inputs: np.ndarray, rows: np.ndarray) -> bool:
    return any(np.array_equal(inputs[i : i + len(rows)], rows) for i in range(len(inputs)))


@dataclass
class Rig:
    """Everything that a launch is made of; several launches share a folder."""

    folder: Path
    device: Device = CPU
    world: World = field(default_factory=World)
    loader: FakeLoader = field(default_factory=FakeLoader)
    steps: int = 12
    device_rows: int = 4
    checkpoint_steps: int | None = None
    skip_steps: int = 5
    guard: SpikeGuard = field(default_factory=SpikeGuard)
    stop_at: int | None = None  # stops before this step, however often it is asked
    stop: Callable[[int], bool] | None = None  # the same, asked with the steps made
    measurements: tuple[Measurement, ...] = ()
    launch: str = "first"
    profile: Profile | None = None  # of the store, instead of the folder
    clip: float | None = 1.0
    rate: float | None = None  # every learning rate
    model: Transformer = field(default_factory=lambda: Transformer(CONFIG))
    start: Callable[[Transformer], None] = lambda model: model.init_weights(3)
    objective: Callable[[Rig], Objective] = lambda rig: Supervised(rig.loader, rig.world, rig.device_rows)
    forward: Callable[..., torch.Tensor] | None = None  # given the rig, instead of the model's

    @property
    def rates(self) -> OptimSettings:
        if self.rate is None:
            return OptimSettings()
        return OptimSettings(embedding_lr=self.rate, unembedding_lr=self.rate, matrix_lr=self.rate)

    @property
    def store(self) -> Store:
        return open_store(self.profile or Profile(str(self.folder)))

    def loop(self) -> Trainer:
        self.journal = Journal(self.store, "run", stage="base", launch=self.launch, enabled=self.world.first)
        self.progress = Progress(self.store, "run/progress", stage="base", launch=self.launch, enabled=self.world.first)
        optimizer = build_optimizer(self.model, self.rates, world=self.world)
        self.plain = Forward(self.model, compiled=False, optimizer=optimizer)
        trainer = Trainer(
            TrainerPlan(
                steps=self.steps,
                schedule=lambda step: Rates(1.0 - 0.5 * step / self.steps, 0.85 + 0.01 * min(step, 10)),
                clip=self.clip,
                checkpoint_steps=self.checkpoint_steps,
                skip_steps=self.skip_steps,
                measurements=self.measurements,
            ),
            world=self.world,
            device=self.device,
            model=self.model,
            forward=self.plain if self.forward is None else self._forward,  # type: ignore[arg-type]
            optimizer=optimizer,
            objective=self.objective(self),
            initialise=lambda: self.start(self.model),
            checkpointer=Checkpointer(
                Checkpoints(self.store, "base", "key", self.folder / "cache"),
                self.launch,
                self.world,
                keep=2,
                journal=self.journal,
                progress=self.progress,
            ),
            guard=self.guard,
            journal=self.journal,
            progress=self.progress,
            stop=lambda: self._stop(trainer.made),
        )
        return trainer

    def _stop(self, step: int) -> bool:
        return self.stop(step) if self.stop else self.stop_at is not None and step >= self.stop_at

    def _forward(self, *args: torch.Tensor, **options: str) -> torch.Tensor:
        assert self.forward is not None
        return self.forward(self, *args, **options)

    def run(self) -> TrainerState:
        self.trainer = self.loop()
        try:
            return self.trainer.run()
        finally:
            self.journal.close()
            self.progress.close()

    def run_until_stopped(self) -> None:
        try:
            self.run()
        except Stopped:
            return
        raise AssertionError("it was not stopped")

    @property
    def weights(self) -> Mapping[str, torch.Tensor]:
        return {name: value.clone() for name, value in self.model.state_dict().items()}


def same(left: Mapping[str, torch.Tensor], right: Mapping[str, torch.Tensor]) -> bool:
    """Bit for bit."""
    return left.keys() == right.keys() and all(torch.equal(left[name], right[name]) for name in left)


def close(left: float | None, right: float | None, tolerance: float = 1e-5) -> bool:
    return left is not None and right is not None and math.isclose(left, right, rel_tol=tolerance)


def losses(folder: Path) -> list[float]:
    return [point.value for point in JournalReader(Rig(folder).store, "run").history("base").metrics["train/loss"]]
