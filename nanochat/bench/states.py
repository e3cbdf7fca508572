"""Saving the state of training while training goes on, for `nanochat bench checkpoint`: the stages' own checkpoints.

A round is a save under a training loop. The loop waits for the copy; what its steps take longer until the checkpoint is
stored, by the clock, is what the save costs it besides.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

from safetensors.torch import save_file
from torch import Tensor

from nanochat.bench.pacing import Paced, synchronize
from nanochat.bench.shapes import Shape
from nanochat.bench.steps import OBJECTIVES, make_context, open_session
from nanochat.optim import OptimSettings, ShardedOptimizer, build_optimizer
from nanochat.stages.session import TrainingSession
from nanochat.storage.checkpoints import ROOT, Checkpoints
from nanochat.training.checkpoint import Checkpointer
from nanochat.training.forward import Forward
from nanochat.training.host_copy import HostCopy
from nanochat.training.objective import micro_loss

USUAL = 5  # steps before each save, whose median is what a step takes
LAUNCH = "01"


def run(task: Mapping[str, Any], paced: Paced) -> None:
    """Save, round after round; what was stored is removed at the end."""
    paced.stamp("imports")
    spec = Shape.from_dict(task["shape"]).read()
    with TemporaryDirectory(dir=task["folder"]) as folder:
        context = make_context(spec, "base", Path(folder), task["profile"], run=f"bench-{uuid.uuid4().hex}")
        session = open_session(context)
        optimizer = build_optimizer(session.model, OptimSettings(), world=session.world)
        session.initialise()
        step = training(session, optimizer, Path(folder))
        checkpoints = Checkpoints(context.store, "base", f"bench-{uuid.uuid4().hex}", Path(folder) / "cache")
        options = {"journal": context.journal, "progress": context.progress}
        paced.stamp("build model")
        try:
            with Checkpointer(checkpoints, LAUNCH, session.world, 1, **options) as checkpointer:
                step()  # the optimizer's state is made by its first step
                number = 0
                while True:
                    number += 2
                    found = parts(checkpoints, number, session, optimizer, Path(folder))
                    found |= under_training(step, checkpointer, number + 1, session, optimizer)
                    paced.boundary(lambda found=found: found)
        finally:
            context.close()
            for path in (f"{ROOT}/base/{checkpoints.key}", context.plan.run):
                context.store.delete(path)


def training(session: TrainingSession, optimizer: ShardedOptimizer, folder: Path) -> Callable[[], None]:
    """A step of base, always with the same batch."""
    batch = OBJECTIVES["base"](session, folder)().local_batch(0)
    forward = Forward(session.model, compiled=False)

    def step() -> None:
        for part in batch.batches:
            (micro_loss(forward, part.to(session.device.device)) / batch.weight).backward()
        optimizer.step(1.0, 0.95, 1.0)
        optimizer.zero_grad()
        synchronize()

    return step


def parts(
    checkpoints: Checkpoints, number: int, session: TrainingSession, optimizer: ShardedOptimizer, folder: Path
) -> dict[str, float]:
    """Seconds of each part of a save, one after the other and with nothing beside: copy, file, store."""
    state: dict[str, Tensor] = {**session.model.state_dict(), **optimizer.own_state()}
    copy = HostCopy()
    copy.take({"state": state})  # makes the buffers
    began = time.monotonic()
    copied = copy.take({"state": state})
    copy.wait()
    taken = time.monotonic()
    place = checkpoints.folder(number, LAUNCH)
    save_file(dict(copied["state"]), place / "state.safetensors")
    written = time.monotonic()
    checkpoints.store_files(number, LAUNCH, place, ("state.safetensors",))
    stored = time.monotonic()
    checkpoints.abandon(number, LAUNCH, place)
    size = sum(tensor.numel() * tensor.element_size() for tensor in state.values())
    return {
        "copy_seconds": taken - began,
        "write_seconds": written - taken,
        "store_seconds": stored - written,
        "bytes": float(size),
    }


def under_training(
    step: Callable[[], None],
    checkpointer: Checkpointer,
    number: int,
    session: TrainingSession,
    optimizer: ShardedOptimizer,
) -> dict[str, float]:
    """The cost of a save to the loop: for how long it waits, and how much longer its steps take until all is stored."""
    usual = median(timed(step) for _ in range(USUAL))
    began = time.monotonic()
    checkpointer.save(number, model=session.model, optimizer=optimizer, loop={})
    waited = time.monotonic() - began
    steps = 0
    with ThreadPoolExecutor(1) as pool:
        stored = pool.submit(checkpointer.wait)
        while not stored.done():
            step()
            steps += 1
        stored.result()
    whole = time.monotonic() - began
    return {
        "wait_seconds": waited,
        "save_seconds": whole,
        "extra_seconds": whole - steps * usual,
        "step_seconds": usual,
    }


def timed(call: Callable[[], None]) -> float:
    """Seconds of a call."""
    began = time.monotonic()
    call()
    return time.monotonic() - began
