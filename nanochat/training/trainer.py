"""The one training loop: base, mid, sft and rl differ in their objective, their schedule and their measurements.

    trainer = Trainer(plan, world=world, device=device, model=model, optimizer=optimizer, objective=objective, ...)
    state = trainer.run()   # Stopped, Diverged, or the state after the last step

Every step: get this rank's part of the global batch, agree with all ranks on its weight and on whether to save or
to stop, run the micro-batches, update. A stop lets the step that has not begun go: what is saved is the state
before it. A step without supervised tokens changes no weight.

The host waits for none of it. The next batch is made while this one trains, and a step's loss and norm are read once
the next step was begun: so `state` is that of the last step but one, and one step is under way. Before the state is
saved or measured, and at the end, that one's numbers are read too: no save is of a step that was not judged.
"""

from __future__ import annotations

import logging
import math
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass

import torch
from torch import Tensor

from nanochat.model.loss import IGNORED
from nanochat.model.transformer import Transformer
from nanochat.optim import ShardedOptimizer
from nanochat.runtime.device import Device, deterministic
from nanochat.runtime.distributed import World
from nanochat.runtime.garbage import Garbage
from nanochat.runtime.reading import Reading
from nanochat.spec.errors import Diverged, Stopped
from nanochat.tracking.journal import Journal
from nanochat.tracking.progress import Progress
from nanochat.training.batches import Batches
from nanochat.training.checkpoint import Checkpointer
from nanochat.training.forward import Forward
from nanochat.training.guards import SpikeGuard
from nanochat.training.objective import LocalBatch, MicroBatch, Objective, micro_loss
from nanochat.training.plan import TrainerPlan
from nanochat.training.state import TrainerState
from nanochat.training.step_log import StepLog

log = logging.getLogger(__name__)

JUDGED_TOKENS = 1024  # of each rank, by which weights are judged before they are kept
SMOOTHING = 0.9  # of the loss that people read
LOST = 30.0  # seconds of training that may be lost by a process that is killed while it measures


@dataclass(frozen=True, slots=True)
class Begun:
    """A step that the device was given and whose numbers were not read yet. Sums are over all ranks."""

    weight: float
    tokens: int
    counts: Mapping[str, float]
    reading: Reading | None  # see `Trainer._update`; None for a step without weight
    at: float  # when all of it was given


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
        self._batches = Batches(objective, device.device)
        self._garbage = Garbage()
        self._begun: deque[Begun] = deque()
        self._saved_step = 0  # the newest checkpoint's
        self._saved_at = self._since = clock()  # since when the next step's time counts
        self._warm = False  # whether this launch has made a step: the first one compiles
        self._window = [0, 0.0]  # tokens and seconds since metrics were written last
        self._lines = StepLog(plan, device, processes=world.size, clock=clock)

    @property
    def made(self) -> int:
        """Steps made, the one that is under way included."""
        return self.state.step + len(self._begun)

    def run(self) -> TrainerState:
        """Train to the end; raises Stopped after a stop and Diverged where skipping data did not help."""
        with self.checkpointer, self._batches, self._garbage:
            self._restore()
            while True:
                try:
                    if self.state.step > self.state.measured:
                        self._measure()  # the launch before was killed meanwhile
                    while self.made < self.plan.steps:
                        self._advance()
                    self._settle()
                    self._finish()
                    return self.state
                except Diverged as error:
                    self._recover(error)

    def _advance(self) -> None:
        """Begin one step and take in the one before it, or stop before it."""
        if not self.objective.reads_ahead:
            self._settle()  # what it draws comes of the weights, which have to be sound
        local = self._batches.get(self.state.data_step(self.made))
        weight, tokens, counts = self._agree(local)
        self._batches.prepare(self.state.data_step(self.made + 1))
        self.model.train()
        reading = self._update(local, weight) if weight else None
        self._begun.append(Begun(weight, tokens, counts, reading, self.clock()))
        warm = self._warm
        self._settle(leave=int(warm))  # a launch's first step takes long, and people wait for it
        if not warm:
            self._garbage.keep()
            self._since = self.clock()
        self._measure()
        self._garbage.collect_if_much()

    def _agree(self, local: LocalBatch) -> tuple[float, int, dict[str, float]]:
        """The step's weight, tokens and counts over all ranks; saves and stops where that is what all ranks do now."""
        self.checkpointer.check()
        names = self.objective.counts
        stop, save, weight, tokens, *counts = self.world.sum(
            float(self.stop()), float(self._save_due()), local.weight, local.tokens, *local.counts
        )
        if stop or save:
            self._save(due=not stop)
        if stop:
            self.checkpointer.wait()
            raise Stopped(
                f"Stopped after step {self.state.step:,} of {self.plan.steps:,}; run it again to go on{self._from()}."
            )
        return weight, int(tokens), dict(zip(names, counts, strict=False))

    def _update(self, local: LocalBatch, weight: float) -> Reading:
        """Gradients of the global batch's mean loss, and one step of the optimizer -> this rank's summed loss, the
        gradient norm and, where the loss is no likelihood, what `_judged` says of the weights before."""
        device = self.device.device
        total = torch.zeros((), device=device)
        with deterministic(device, wanted=self.plan.deterministic):
            for number, batch in enumerate(local.batches, 1):
                loss = micro_loss(self.forward, batch)
                if number == len(local.batches):
                    self.optimizer.reduce_in_backward()
                (loss / weight).backward()
                total += loss.detach()
            self.optimizer.start_reduce()
        judged = () if self.objective.is_likelihood else self._judged()
        rates = self.plan.schedule(self.made)
        norm = self.optimizer.step(rates.lr_scale, rates.momentum, self.plan.clip, rates.decay_scale)
        self.optimizer.zero_grad()
        return Reading(total, norm, *judged)

    def _settle(self, *, leave: int = 0) -> None:
        """Take in the steps that were begun, all but the newest so many, or all and their weights; raises Diverged."""
        if not leave:
            self.optimizer.wait()
        while len(self._begun) > leave:
            step, state = self._begun.popleft(), self.state
            loss, norm = self._read(step) if step.reading else (None, None)
            ended = step.at if step.reading is None or step.reading.is_whole else self.clock()
            self._account(step, loss, seconds=max(0.0, ended - self._since))
            self._since = ended
            if state.step % self.plan.log_every == 0 or state.step == self.plan.steps:
                self._log(norm, step.counts)
            if self.world.first:
                self._lines.step(state, self.objective.metrics(step.counts), self.progress.state.eta)

    def _read(self, step: Begun) -> tuple[float, float]:
        """The loss and the gradient norm of a step, over all ranks, once they are there and the guard has seen them."""
        assert step.reading is not None
        total, norm, *judged = step.reading.values()
        total, *judged = self.world.sum(total, *judged)
        loss, number = total / step.weight, self.state.step + 1
        self.guard.check(number, loss if self.objective.is_likelihood else mean(*judged))
        self.guard.check_norm(number, norm)
        return loss, norm

    def _account(self, step: Begun, loss: float | None, *, seconds: float) -> None:
        state = self.state
        state.step += 1
        state.tokens += step.tokens
        state.weight += step.weight
        for name, value in step.counts.items():
            state.counts[name] = state.counts.get(name, 0.0) + value
        if loss is None:
            state.empty += 1
        else:
            state.loss = loss
            smooth = loss if state.smooth_loss is None else state.smooth_loss
            state.smooth_loss = SMOOTHING * smooth + (1 - SMOOTHING) * loss
        if self._warm:
            state.seconds += seconds
            self._window[0] += step.tokens
            self._window[1] += seconds
            self._lines.add(step.tokens, seconds)
        self._warm = True
        figure = self.objective.figure(loss, step.counts)
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
        step = self.made
        due = [item for item in self.plan.measurements if item.due(step, self.plan.steps)]
        if not due:
            return
        self._settle()
        # A measurement takes minutes, in which no stop is heard.
        if self.world.sum(float(self._save_helps()))[0]:
            self._save(due=False)
        self.model.eval()
        with kept_random_state(self.device.device):
            for item in due:
                self.progress.update(pause=item.doing)
                values = dict(item.call(step))
                self.state.metrics |= values
                if values:
                    self.journal.metrics(step, values)
                    if self.world.first:
                        self._lines.measured(step, values)
        self.state.measured = step
        self.progress.update(pause="")
        self._garbage.collect()
        self._since = self.clock()

    def _judged(self) -> tuple[Tensor, Tensor]:
        """This rank's summed loss of a few rows of the next step under the present weights, and their targets: ()."""
        self.optimizer.wait()
        batch = self.objective.text(self.state.data_step(self.made), self._batches.get)
        if batch is None:
            return torch.zeros(()), torch.zeros(())
        rows = max(1, JUDGED_TOKENS // max(1, batch.inputs.size(1)))
        few = MicroBatch(batch.inputs[:rows], batch.targets[:rows]).to(self.device.device)
        with torch.no_grad():
            return self.model(few.inputs, few.targets, reduction="sum"), (few.targets != IGNORED).sum()

    def _judge(self) -> float:
        """The mean loss of these rows over all ranks; -inf without any."""
        return mean(*self.world.sum(*(float(each) for each in self._judged())))

    def _finish(self) -> None:
        """Look at what training came to: raises Diverged where that is worse than guessing."""
        remark = self.guard.finish(self._judge())
        if self.state.empty == self.state.step:
            remark = f"It has learned nothing: none of its steps had {self.objective.learns_from}."
        if remark:
            log.warning(remark)
            self.journal.event("remark", step=self.state.step, message=remark)
            self.progress.warn(remark)

    def _from(self) -> str:
        """Where the next launch goes on, if that is not here."""
        if self._saved_step == self.state.step:
            return ""
        where = f"after step {self._saved_step:,}" if self._saved_step else "from the beginning"
        return f" {where}, for the loss is too high to be saved: see whether it falls again"

    def _save_due(self) -> bool:
        """Whether rank 0 wants a checkpoint before the next step."""
        if not self.world.first or self.made == self._saved_step:
            return False
        every, seconds = self.plan.checkpoint_steps, self.plan.checkpoint_seconds
        return bool(every and self.made % every == 0) or bool(seconds and self.clock() - self._saved_at >= seconds)

    def _save_helps(self) -> bool:
        """Whether rank 0 wants a checkpoint before what may take long; not where the former save is still under way."""
        old = self.world.first and self.clock() - self._saved_at >= LOST
        return old and not self.checkpointer.saving

    def _save(self, *, due: bool) -> None:
        """Begin to save a checkpoint, unless the newest is as new, the loss is suspect or the weights were ruined.

        Raises Diverged where the step under way has diverged, and after the last step where training has."""
        self._settle()
        if self.state.step == self._saved_step or self.guard.suspect:
            return
        loss = self._judge()
        if not self.guard.is_sound(loss):
            return
        if self.state.step == self.plan.steps:
            self.guard.finish(loss)  # from which nothing is left to train that could mend it
        loop = asdict(self.state) | {"guard": self.guard.state()}
        self.checkpointer.save(self.state.step, model=self.model, optimizer=self.optimizer, loop=loop, due=due)
        self._garbage.collect()
        self._saved_step, self._saved_at = self.state.step, self.clock()
        self._since = self._saved_at

    def _restore(self) -> None:
        """Go to the newest checkpoint, or to the start."""
        self.optimizer.wait()
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
        self._begun.clear()
        self._saved_step, self._saved_at = self.state.step, self.clock()
        self._since = self._saved_at

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
        self.optimizer.zero_grad()
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


def mean(total: float, count: float) -> float:
    """-inf of nothing."""
    return total / count if count else -math.inf


@contextmanager
def kept_random_state(device: torch.device) -> Iterator[None]:
    """Whatever draws random numbers inside leaves the state outside as it was."""
    cuda = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices=cuda):
        yield
