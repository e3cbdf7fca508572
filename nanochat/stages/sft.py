"""sft: supervised fine-tuning, one conversation a row, only what the assistant says is trained."""

from __future__ import annotations

import logging
from dataclasses import replace

from nanochat.data.mixture import RowLoader
from nanochat.evaluation.chat import Chat, ChatSettings, Problems, TaskResult
from nanochat.pipeline.task_selection import choice_tasks
from nanochat.spec.training import SftStage
from nanochat.stages.context import StageContext
from nanochat.stages.evaluate import open_task, task_errors
from nanochat.stages.session import TrainingSession, falling, open_session, steps_for
from nanochat.tracking.journal import TASK
from nanochat.training.objective import Supervised
from nanochat.training.plan import Measurement
from nanochat.training.validation import mean_loss, row_batches

log = logging.getLogger(__name__)


def run(context: StageContext) -> None:
    """Train for `epochs` passes over the mixture, unless `steps` says otherwise."""
    settings: SftStage = context.settings
    with open_session(context) as session:
        length = session.model.config.sequence_length
        loader = RowLoader(session.mixture(settings.mixture), rows=settings.rows_per_step, length=length)
        rows = len(loader.mixture)
        cut = loader.cut()
        if cut.rows and session.world.first:
            log.info(
                "%s of %s conversations are longer than the context of %s tokens and are cut after an answer",
                f"{cut.rows:,}",
                f"{rows:,}",
                f"{length:,}",
            )
        steps = settings.steps or steps_for(rows, each=settings.rows_per_step, epochs=settings.epochs)
        state = session.train(
            Supervised(loader, session.world, settings.device_batch_size),
            steps=steps,
            schedule=falling(steps=steps, start=settings.init_lr_fraction, final=settings.final_lr_fraction),
            step_tokens=settings.rows_per_step * length,
            fixed_shapes=False,
            measurements=(
                Measurement(
                    settings.eval_every,
                    lambda step: validation(session, settings),
                    doing="measuring the validation loss",
                ),
                Measurement(
                    settings.tasks_every,
                    lambda step: choices(session, settings),
                    after_last=False,
                    doing="measuring tasks",
                ),
            ),
        )
        session.commit(
            state,
            {
                "conversations": rows,
                "epochs": state.data_step(state.step) * settings.rows_per_step / rows,
                "cutConversations": cut.rows,
                "cutMessages": cut.messages,
                "untrainedConversations": cut.untrained,
            },
            learned=loader.mixture,
        )


def choices(session: TrainingSession, settings: SftStage) -> dict[str, float]:
    """Right answers to the first problems of each task of multiple choice, as a proportion."""
    context, world = session.context, session.world
    how = ChatSettings.of(context.spec.stages.eval_chat, seed=context.spec.seed)
    chat = Chat(session.model, session.tokenizer, replace(how, batch_size=settings.device_batch_size), world=world)
    found = {}
    names = choice_tasks(context.spec)
    for place, name in enumerate(names, 1):
        session.alive(f"measuring {name}, task {place} of {len(names)}")
        with task_errors(name):
            task = open_task(context, name)
            work = Problems.of(task, range(world.rank, min(len(task), settings.tasks_rows), world.size))
        items = [item for some in chat.examine([work], tick=lambda done: session.alive()) for item in some]
        found[f"{TASK}{name}"] = TaskResult.of(task, items, world=world).accuracy.value
    return found


def validation(session: TrainingSession, settings: SftStage) -> dict[str, float]:
    """Mean over the assistant's tokens of the first conversations of the validation mixture, always the same."""
    loader = RowLoader(
        session.mixture(settings.validation),
        rows=settings.device_batch_size,
        length=session.model.config.sequence_length,
    )
    rows = min(settings.eval_rows, len(loader.mixture))
    value = mean_loss(
        session.model, row_batches(loader, rows=rows, world=session.world), world=session.world, alive=session.alive
    )
    return {"val/loss": value}
