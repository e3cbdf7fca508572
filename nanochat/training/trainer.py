"""The one training loop: base, mid, sft and rl differ in their objective, their schedule and their measurements.

    trainer = Trainer(plan, world=world, device=device, model=model, optimizer=optimizer, objective=objective, ...)
    state = trainer.run()   # Stopped, Diverged, or the state after the last step

Every step: get this rank's part of the global batch, agree with all ranks on its weight and on whether to save or
to stop, run the micro-batches, update. A stop lets the step that has not begun go: what is saved is the state
before it. A step without supervised tokens changes no weight.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, fields
from typing import Any

import torch

from nanochat.model.loss import IGNORED
from nanochat.model.transformer import Transformer
from nanochat.optim import ShardedOptimizer
from nanochat.runtime.device import Device, deterministic
from nanochat.runtime.distributed import World
from nanochat.spec.errors import Diverged, Stopped
from nanochat.tracking.journal import Journal
from nanochat.tracking.progress import Progress
from nanochat.training.checkpoint import Checkpointer
from nanochat.training.forward import Forward
from nanochat.training.guards import SpikeGuard
from nanochat.training.objective import LocalBatch, MicroBatch, Objective, micro_loss

log = logging.getLogger(__name__)

JUDGED_TOKENS = 1024  # of each rank, by which weights are judged before they are kept
SMOOTHING = 0.9  # of the loss that people read


@dataclass(frozen=True, slots=True)
class Rates:
    """The schedule's values for one step."""

    lr_scale: float  # what every group's learning rate is multiplied by
    momentum: float = 0.95  # Muon's
    decay_scale: float = 1.0  # what the matrices' decay is multiplied by


@dataclass(frozen=True, slots=True)
class Measurement:
    """Something to measure every few steps, and after the last. All ranks call it and get the same values."""

    every: int  # steps; 0 is never
    call: Callable[[int], Mapping[str, float]]

    def due(self, step: int, last: int) -> bool:
        """Whether it is due after `step` steps of `last`."""
        return self.every > 0 and (step % self.every == 0 or step == last)


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainerPlan:
    """The training that a stage asks for."""

    steps: int
    schedule: Callable[[int], Rates]  # of the step that is about to be made, from 0
    clip: float | None = None  # largest global gradient norm
    flops_per_token: float = 0.0
    checkpoint_steps: int | None = None
    checkpoint_seconds: float | None = None
    log_every: int = 1  # steps
    skip_steps: int = 50  # steps of data that are skipped when training diverges
    deterministic: bool = False  # on a GPU; a CPU always is
    measurements: tuple[Measurement, ...] = ()


@dataclass(slots=True)
class TrainerState:
    """Where training stands; all of it is in a checkpoint."""

    step: int = 0  # steps made
    skipped: list[tuple[int, int]] = field(default_factory=list)  # data steps that were left out: from, to (not incl.)
    empty: int = 0  # steps without supervised tokens
    tokens: int = 0  # that went through the model
    weight: float = 0.0  # of which were trained on
    seconds: float = 0.0  # of training, without the warm-up of each launch, measurements and checkpoints
    loss: float | None = None  # the last step's
    smooth_loss: float | None = None
    counts: dict[str, float] = field(default_factory=dict)  # what the objective counted
    metrics: dict[str, float] = field(default_factory=dict)  # the newest measurements

    def data_step(self, step: int) -> int:
        """The data of a step: the step's number, moved on by the ranges that were skipped before it."""
        for first, end in sorted(self.skipped):
            if step >= first:
                step += end - first
        return step

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> TrainerState:
        """From a checkpoint's JSON."""
        state = cls(**{item.name: values[item.name] for item in fields(cls)})
        state.skipped = [(first, end) for first, end in state.skipped]
        return state


class Trainer:
    """Trains `model` until the plan's last step, from the newest checkpoint on."""

    def __init__(
        self,
        plan: TrainerPlan,
        *,
        world: World,
        device: Device,
        model: Transformer,
        forward: Forward,
        optimizer: ShardedOptimizer,
        objective: Objective,
        initialise: Callable[[], None],
        checkpointer: Checkpointer,
        guard: SpikeGuard,
        journal: Journal,
        progress: Progress,
        stop: Callable[[], bool],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`initialise` sets the weights that training starts from."""
        self.plan = plan
        self.world = world
        self.device = device
        self.model = model
        self.forward = forward
        self.optimizer = optimizer
        self.objective = objective
        self.initialise = initialise
        self.checkpointer = checkpointer
        self.guard = guard
        self.journal = journal
        self.progress = progress
        self.stop = stop
        self.clock = clock
        self.state = TrainerState()
        self._saved_step = 0  # the newest checkpoint's
        self._saved_at = clock()
        self._warm = False  # whether this launch has made a step: the first one compiles
        self._window = [0, 0.0]  # tokens and seconds since the last log line

    def run(self) -> TrainerState:
        """Train to the end; raises Stopped after a stop and Diverged where skipping data did not help."""
        with self.checkpointer:
            self._restore()
            while True:
                try:
                    while self.state.step < self.plan.steps:
                        self._advance()
                    self._finish()
                    return self.state
                except Diverged as error:
                    self._recover(error)

    def _advance(self) -> None:
        """One step, or a stop before it."""
        state = self.state
        began = self.clock()
        if not self.objective.is_likelihood:
            self.optimizer.wait()  # its samples are drawn with the weights
        local = self.objective.local_batch(state.data_step(state.step))
        weight, tokens, counts = self._agree(local)
        self.model.train()
        loss, norm = self._update(local, weight) if weight else (None, None)
        self._account(loss, weight=weight, tokens=tokens, counts=counts, seconds=self.clock() - began)
        if state.step % self.plan.log_every == 0 or state.step == self.plan.steps:
            self._log(norm, counts)
        self._measure()

    def _agree(self, local: LocalBatch) -> tuple[float, int, dict[str, float]]:
        """The step's weight, tokens and counts over all ranks; saves and stops where that is what all ranks do now."""
        self.checkpointer.check()
        names = self.objective.counts
        stop, save, weight, tokens, *counts = self.world.sum(
            float(self.stop()), float(self._save_due()), local.weight, local.tokens, *local.counts
        )
        if stop or save:
            self.optimizer.wait()
            self._save(local, due=not stop)
        if stop:
            self.checkpointer.wait()
            raise Stopped(f"Stopped after step {self.state.step:,} of {self.plan.steps:,}; run it again to go on.")
        return weight, int(tokens), dict(zip(names, counts, strict=False))

    def _update(self, local: LocalBatch, weight: float) -> tuple[float, float]:
        """Gradients of the global batch's mean loss, and one step of the optimizer -> loss, gradient norm."""
        state = self.state
        device = self.device.device
        total = torch.zeros((), device=device)
        with deterministic(device, wanted=self.plan.deterministic):
            for number, batch in enumerate(local.batches, 1):
                loss = micro_loss(self.forward, batch.to(device))
                if number == len(local.batches):
                    self.optimizer.reduce_in_backward()
                (loss / weight).backward()
                total += loss.detach()
            self.optimizer.start_reduce()
        (summed,) = self.world.sum(float(total))
        mean = summed / weight
        self.guard.check(state.step + 1, mean if self.objective.is_likelihood else self._judge())
        rates = self.plan.schedule(state.step)
        norm = float(self.optimizer.step(rates.lr_scale, rates.momentum, self.plan.clip, rates.decay_scale))
        self.optimizer.zero_grad()
        self.guard.check_norm(state.step + 1, norm)
        return mean, norm

    def _account(
        self, loss: float | None, *, weight: float, tokens: int, counts: Mapping[str, float], seconds: float
    ) -> None:
        state = self.state
        state.step += 1
        state.tokens += tokens
        state.weight += weight
        for name, value in counts.items():
            state.counts[name] = state.counts.get(name, 0.0) + value
        if loss is None:
            state.empty += 1
        else:
            state.loss = loss
            smooth = loss if state.smooth_loss is None else state.smooth_loss
            state.smooth_loss = SMOOTHING * smooth + (1 - SMOOTHING) * loss
        if self._warm:
            state.seconds += seconds
            self._window[0] += tokens
            self._window[1] += seconds
        self._warm = True
        figure = self.objective.figure(loss, counts)
        if figure is not None:
            self.guard.trend.add(figure)

    def _log(self, norm: float | None, counts: Mapping[str, float]) -> None:
        """Metrics and progress of the step just made."""
        state, (tokens, seconds) = self.state, self._window
        values = {"train/lr_scale": self.plan.schedule(state.step - 1).lr_scale}
        if norm is not None and state.loss is not None:
            values |= {"train/loss": state.loss, "train/grad_norm": norm}
        rates: dict[str, float] = {}
        if seconds > 0:
            rates["tokens/s"] = values["train/tokens_per_second"] = tokens / seconds
            if self.device.peak:
                flops = self.plan.flops_per_token * tokens / seconds
                rates["MFU"] = values["train/mfu"] = flops / (self.device.peak * self.world.size)
        values |= self.objective.metrics(counts)
        self._window = [0, 0.0]
        self.journal.metrics(state.step, values)
        losses = {} if state.smooth_loss is None else {"loss": state.smooth_loss}
        self.progress.update(
            phase="training", step=state.step, total=self.plan.steps, rates=rates or None, losses=losses
        )

    def _measure(self) -> None:
        """Whatever is due after this step; the training's random state is left as it was."""
        step = self.state.step
        due = [item for item in self.plan.measurements if item.due(step, self.plan.steps)]
        if not due:
            return
        self.optimizer.wait()
        self.model.eval()
        with kept_random_state(self.device.device):
            for item in due:
                values = dict(item.call(step))
                self.state.metrics |= values
                if values:
                    self.journal.metrics(step, values)

    def _judge(self, local: LocalBatch | None = None) -> float:
        """The mean loss of a few rows of the next step under the present weights, over all ranks; -inf without any."""
        self.optimizer.wait()
        batch = self.objective.text(self.state.data_step(self.state.step), local)
        total, weight = 0.0, 0
        if batch is not None:
            rows = max(1, JUDGED_TOKENS // max(1, batch.inputs.size(1)))
            few = MicroBatch(batch.inputs[:rows], batch.targets[:rows]).to(self.device.device)
            with torch.no_grad():
                total = float(self.model(few.inputs, few.targets, reduction="sum"))
            weight = int((few.targets != IGNORED).sum())
        summed, counted = self.world.sum(total, weight)
        return summed / counted if counted else -math.inf

    def _finish(self) -> None:
        """Look at what training came to: raises Diverged where that is worse than guessing."""
        remark = self.guard.finish(self._judge())
        if self.state.empty == self.state.step:
            remark = f"It has learned nothing: none of its steps had {self.objective.learns_from}."
        if remark:
            log.warning(remark)
            self.journal.event("remark", step=self.state.step, message=remark)
            self.progress.warn(remark)

    def _save_due(self) -> bool:
        """Whether rank 0 wants a checkpoint before the next step."""
        done = self.state.step - self._saved_step
        if not self.world.first or not done:
            return False
        every, seconds = self.plan.checkpoint_steps, self.plan.checkpoint_seconds
        return bool(every and self.state.step % every == 0) or bool(
            seconds and self.clock() - self._saved_at >= seconds
        )

    def _save(self, local: LocalBatch | None = None, *, due: bool) -> None:
        """Begin to save a checkpoint, unless the newest is as new, the loss is suspect or the weights were ruined."""
        if self.state.step == self._saved_step or self.guard.suspect or not self.guard.is_sound(self._judge(local)):
            return
        loop = asdict(self.state) | {"guard": self.guard.state()}
        self.checkpointer.save(self.state.step, model=self.model, optimizer=self.optimizer, loop=loop, due=due)
        self._saved_step, self._saved_at = self.state.step, self.clock()

    def _restore(self) -> None:
        """Go to the newest checkpoint, or to the start."""
        self.optimizer.wait()
        self.optimizer.zero_grad()
        loop = self.checkpointer.restore(model=self.model, optimizer=self.optimizer)
        for sentence in self.checkpointer.warnings:
            self.progress.warn(sentence)
        if loop is None:
            self.initialise()
            self.optimizer.reset()
            self.state = TrainerState()
            self.guard.restore({})
        else:
            self.guard.restore(loop["guard"])
            self.state = TrainerState.from_dict(loop)
            log.info("resumed after step %s of %s", f"{self.state.step:,}", f"{self.plan.steps:,}")
        self._saved_step, self._saved_at = self.state.step, self.clock()

    def _recover(self, error: Diverged) -> None:
        """Go back to the newest checkpoint and leave out the data that training diverged on; once."""
        failed = self.state
        if failed.skipped:
            raise Diverged(
                f"{error.message} It did so before, and leaving out data did not help: lower the stage's learning "
                "rates (matrixLr, embeddingLr, unembeddingLr) or gradClip."
            ) from error
        end = failed.data_step(failed.step) + 1
        first_bad = end - max(1, self.guard.suspect)
        self._restore()
        self.checkpointer.discard(after=self.state.step)  # what could not be read is no place to go on from later
        begin = max(self.state.data_step(self.state.step), min(first_bad, end - self.plan.skip_steps))
        self.state.skipped.append((begin, end))
        message = (
            f"{error.message} Went back to step {self.state.step:,}; the data of steps {begin:,} to {end - 1:,} "
            "is left out."
        )
        log.warning(message)
        self.journal.event("divergence", step=failed.step + 1, message=message, skipped=[begin, end])


@contextmanager
def kept_random_state(device: torch.device) -> Iterator[None]:
    """Whatever draws random numbers inside leaves the state outside as it was."""
    cuda = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices=cuda):
        yield
