"""The session of a stage that trains: join the processes, build model and optimizer, train, commit the model.

with open_session(context) as session:
    state = session.train(objective, steps=400, schedule=schedule, step_tokens=65_536)
    session.commit(state, {"cut": 3})
"""

from __future__ import annotations

import logging
import math
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from nanochat.data.mixture import Mixture, Part
from nanochat.data.questions import FIELD as QUESTIONS
from nanochat.data.questions import example_questions, read_questions
from nanochat.data.tokenfile import ConversationFile
from nanochat.model.artifact import TOKENIZER, WEIGHTS, read_config, read_values
from nanochat.model.export import save_model
from nanochat.model.sizes import flops_per_token, parameters
from nanochat.model.transformer import Transformer
from nanochat.optim import OptimSettings, build_optimizer
from nanochat.optim.schedule import lr_scale
from nanochat.runtime.device import Device, choose_device, has_fp8
from nanochat.runtime.distributed import World, join
from nanochat.spec.errors import UserError
from nanochat.spec.training import BaseStage, MixturePart, PackedStage, TrainingStage
from nanochat.stages.context import StageContext
from nanochat.storage.failures import translate_errors
from nanochat.tokenizer import Tokenizer
from nanochat.training.attention import choose_attention
from nanochat.training.checkpoint import Checkpointer
from nanochat.training.compiled_code import CompiledCode, program
from nanochat.training.compiling import decide
from nanochat.training.forward import Forward
from nanochat.training.guards import MARGIN, SpikeGuard, Trend
from nanochat.training.objective import Objective
from nanochat.training.plan import Measurement, Rates, TrainerPlan
from nanochat.training.state import TrainerState
from nanochat.training.trainer import Trainer

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class TrainingSession:
    """One rank of a stage that trains."""

    context: StageContext
    settings: TrainingStage
    world: World
    device: Device
    model: Transformer
    tokenizer: Tokenizer
    tokenizer_folder: Path
    initialise: Callable[[], None]  # sets the weights that training starts from
    questions: tuple[str, ...] = ()  # of the model that training starts from

    def train(
        self,
        objective: Objective,
        *,
        steps: int,
        schedule: Callable[[int], Rates],
        step_tokens: int,
        fixed_shapes: bool = True,
        measurements: Sequence[Measurement] = (),
        margin: float = MARGIN,
        trend: Trend | None = None,
    ) -> TrainerState:
        """Run the loop to its end, from the newest checkpoint on. `step_tokens` is about what a step computes; `margin`
        and `trend` are the guard's."""
        context, settings = self.context, self.settings
        flops = flops_per_token(self.model.config)
        attention = choose_attention(
            self.device,
            self.model.config,
            deterministic=settings.deterministic,
            world=self.world,
            cache=context.artifacts.cache,
        )
        decision = decide(
            settings.compile,
            self.device.device,
            self.model.config,
            tokens=step_tokens * steps / self.world.size,
            fixed_shapes=fixed_shapes,
            fused=attention.fused,
            deterministic=settings.deterministic,
        )
        attention.use_in(self.model)
        product = "FP8" if self.use_fp8() else self.precision
        code = self._compiled_code(product, attention.reason, decision.tuned) if decision.compiled else None
        if code is not None:
            code.prepare()
        if self.world.first:
            log.info(
                "%s: %s parameters, %s steps, on %s x %s in %s; %s; %s",
                context.stage,
                f"{parameters(self.model.config):,}",
                f"{steps:,}",
                self.world.size,
                self.device.device.type,
                product,
                attention.reason,
                decision.reason,
            )
        optimizer = build_optimizer(self.model, optim_settings(settings), world=self.world)
        trainer = Trainer(
            TrainerPlan(
                steps=steps,
                schedule=schedule,
                learning_rate=settings.matrix_lr,
                clip=settings.grad_clip,
                flops_per_token=flops,
                checkpoint_steps=settings.checkpoint_every,
                checkpoint_seconds=settings.checkpoint_every_seconds,
                log_every=settings.log_every,
                skip_steps=settings.skip_on_divergence,
                deterministic=settings.deterministic,
                measurements=tuple(measurements),
            ),
            world=self.world,
            device=self.device,
            model=self.model,
            forward=Forward(
                self.model,
                compiled=decision.compiled,
                tuned=decision.tuned,
                optimizer=optimizer,
                done=code.share if code and self.world.first else None,
            ),
            optimizer=optimizer,
            objective=objective,
            initialise=self.initialise,
            checkpointer=Checkpointer(
                context.checkpoints(),
                context.launch,
                self.world,
                settings.keep_checkpoints,
                journal=context.journal,
                progress=context.progress,
            ),
            guard=SpikeGuard(margin=margin, guessing=math.log(self.model.config.vocab_size), trend=trend),
            journal=context.journal,
            progress=context.progress,
            stop=lambda: bool(context.stop),
        )
        return trainer.run()

    def _compiled_code(self, product: str, attention: str, tuned: bool) -> CompiledCode:
        """The code of this session's model, for batches of its settings."""
        settings, context = self.settings, self.context
        compiled = program(
            self.model.config,
            self.device.device,
            rows=settings.device_batch_size,
            processes=self.world.size,
            product=product,
            attention=attention,
            tuned=tuned,
            deterministic=settings.deterministic,
        )
        return CompiledCode(context.artifacts, context.launch, compiled)

    @property
    def precision(self) -> str:
        """The number format of the computation by its name in PyTorch."""
        return str(self.device.compute_dtype).removeprefix("torch.")

    def use_fp8(self) -> bool:
        """Train matrices in FP8 where the stage asks for it; UserError where that cannot be."""
        if not (isinstance(self.settings, PackedStage) and self.settings.fp8):
            return False
        name, device = f"stages.{self.context.stage}.fp8", self.device
        if not has_fp8(device.device) or device.compute_dtype != torch.bfloat16:
            raise UserError(
                f"{name} is set, and a {device.device.type} device such as this one does not multiply in FP8 beside "
                f"{self.precision}: use a GPU of compute capability 8.9 or newer (L4, H100, B200), or take {name} out."
            )
        if not self.model.use_fp8():
            raise UserError(f"{name} is set, and no matrix of the blocks is large enough to gain by it: take it out.")
        return True

    def commit(self, state: TrainerState, extra: Mapping[str, Any], *, learned: Mixture | None = None) -> None:
        """Commit model, configuration and tokenizer as the stage's output; rank 0's work.

        The model's example questions are those of the conversations that it `learned` here, or else its parent's.
        """
        if not self.world.first:
            return
        context, (output,) = self.context, self.context.outputs
        asked = example_questions(learned, self.tokenizer.decode) if learned else list(self.questions)
        questions = {QUESTIONS: asked} if asked else {}
        with context.writer(output) as writer:
            save_model(writer.folder, self.model, {"stage": context.stage, "step": state.step, **questions})
            for file in self.tokenizer_folder.iterdir():
                if file.name in TOKENIZER_FILES:
                    shutil.copyfile(file, writer.folder / file.name)
            manifest = context.commit(writer, output, self.metadata(state) | dict(extra) | questions)
        print(f"{context.stage}: the model is in {context.artifacts.uri(manifest)}", flush=True)

    def metadata(self, state: TrainerState) -> dict[str, Any]:
        """The training's part of the manifest."""
        return {
            "steps": state.step,
            "loss": state.smooth_loss,
            "tokens": state.tokens,
            "trainedTokens": state.weight,
            "seconds": state.seconds,
            "emptySteps": state.empty,
            "skippedData": state.skipped,
            "counts": state.counts,
            "metrics": state.metrics,
            "parameters": parameters(self.model.config),
            "flops": flops_per_token(self.model.config) * state.tokens,
            "device": self.device.device.type,
            "precision": self.precision,
            "processes": self.world.size,
        }

    def mixture(self, parts: Sequence[MixturePart]) -> Mixture:
        """A mixture of the conversations among the inputs."""
        files = [
            Part(
                ConversationFile(self.context.fetch(f"chat-tokens/{part.task}-{part.split}")),
                rows=part.rows,
                epochs=part.epochs,
            )
            for part in parts
        ]
        return Mixture(files, seed=self.context.spec.seed)

    def alive(self, doing: str | None = None) -> None:
        """A sign of life in the midst of something long, and what is being done where that changes."""
        self.context.progress.update(pause=doing)


TOKENIZER_FILES = (TOKENIZER, "byte_lengths.bin")


@contextmanager
def open_session(context: StageContext) -> Iterator[TrainingSession]:
    """Join the other ranks; the model is that of the stage before, or a fresh one where there is none."""
    settings: TrainingStage = context.settings
    device = choose_device(settings.precision)
    with join(device.device, Path(context.plan.work)) as world:
        folder = _parent(context)
        config = context.horizon.model if folder is None else read_config(folder)
        with torch.device(device.device):
            model = Transformer(config)
        model.compute_dtype = device.compute_dtype

        def initialise() -> None:
            if folder is None:
                model.init_weights(context.spec.seed)
            else:
                with translate_errors(doing="reading", where=str(folder)):
                    model.load_state_dict(load_file(folder / WEIGHTS))

        tokenizer_folder = context.fetch("tokenizer/bpe")
        yield TrainingSession(
            context=context,
            settings=settings,
            world=world,
            device=device,
            model=model,
            tokenizer=Tokenizer.load(tokenizer_folder),
            tokenizer_folder=tokenizer_folder,
            initialise=initialise,
            questions=() if folder is None else read_questions(read_values(folder)),
        )


def _parent(context: StageContext) -> Path | None:
    """The folder of the model that the stage starts from; None where it is a fresh one."""
    if parents := context.refs("model"):
        return context.fetch(parents[0])
    return context.artifacts.fetch(context.initial_model) if context.initial_model else None


def optim_settings(settings: TrainingStage) -> OptimSettings:
    """The optimizer's settings; those that only base has are classic in the others."""
    common = OptimSettings(
        embedding_lr=settings.embedding_lr,
        unembedding_lr=settings.unembedding_lr,
        matrix_lr=settings.matrix_lr,
        weight_decay=settings.weight_decay,
    )
    if not isinstance(settings, BaseStage):
        return common
    return replace(common, orthogonalisation=settings.orthogonalisation, matrix_decay=settings.matrix_decay)


def falling(*, steps: int, start: float, final: float) -> Callable[[int], Rates]:
    """The schedule of sft and rl: from `start` linearly down to `start * final`; Muon's momentum is constant."""
    return lambda step: Rates(
        start * lr_scale(step, steps=steps, warmup_ratio=0.0, warmdown_ratio=1.0, final_fraction=final)
    )


def steps_for(rows: int, *, each: int, epochs: int = 1) -> int:
    """Steps after which `rows` things were seen `epochs` times, `each` a step; nothing is left over."""
    return math.ceil(rows * epochs / each)
