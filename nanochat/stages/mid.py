"""mid: conversations packed into one stream, every token trained; teaches the chat format, tools and identity."""

from __future__ import annotations

from nanochat.data.mixture import PackedLoader
from nanochat.evaluation.bpb import bits_per_byte
from nanochat.optim.schedule import lr_scale, muon_momentum
from nanochat.spec.training import MidStage
from nanochat.stages.context import StageContext
from nanochat.stages.session import TrainingSession, open_session
from nanochat.training.objective import Supervised
from nanochat.training.plan import Measurement, Rates
from nanochat.training.validation import packed_batches


def run(context: StageContext) -> None:
    """Train for one epoch of the mixture, unless `steps` says otherwise."""
    settings: MidStage = context.settings
    with open_session(context) as session:
        length = session.model.config.sequence_length
        loader = PackedLoader(
            session.mixture(settings.mixture), rows=settings.total_batch_tokens // length, length=length
        )
        steps = settings.steps or loader.steps_per_epoch
        state = session.train(
            Supervised(loader, session.world, settings.device_batch_size),
            steps=steps,
            schedule=lambda step: rates(settings, step, steps),
            step_tokens=settings.total_batch_tokens,
            measurements=(
                Measurement(
                    settings.eval_every, lambda step: validation(session, settings), doing="measuring bits per byte"
                ),
            ),
        )
        session.commit(
            state,
            {
                "conversations": len(loader.mixture),
                "epochs": state.data_step(state.step) * loader.rows * length / loader.total,
            },
            learned=loader.mixture,
        )


def rates(settings: MidStage, step: int, steps: int) -> Rates:
    """Constant, then linearly down; Muon's momentum rises at the beginning."""
    scale = lr_scale(
        step,
        steps=steps,
        warmup_ratio=0.0,
        warmdown_ratio=settings.warmdown_ratio,
        final_fraction=settings.final_lr_fraction,
    )
    return Rates(settings.init_lr_fraction * scale, muon_momentum(step, ramp=settings.momentum_warmup_steps))


def validation(session: TrainingSession, settings: MidStage) -> dict[str, float]:
    """Bits per byte of the beginning of the validation mixture, always the same."""
    figure = bits_per_byte(
        session.model,
        packed_batches(
            session.mixture(settings.validation),
            tokens=settings.eval_tokens,
            length=session.model.config.sequence_length,
            world=session.world,
            device_rows=settings.device_batch_size,
        ),
        byte_lengths=session.tokenizer.byte_lengths(),
        world=session.world,
        tick=session.alive,
    )
    return {"val/bpb": figure.value}
