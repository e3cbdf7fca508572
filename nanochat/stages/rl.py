"""rl: reinforcement learning on tasks that reward. REINFORCE with the mean of a prompt's samples as baseline: no
reference model, no ratio, no clipping, no division by the standard deviation (see nanochat/training/reinforce.py).
"""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from nanochat.evaluation.chat import pass_at_k
from nanochat.inference import Engine
from nanochat.model.snapshot import Snapshot
from nanochat.pipeline.task_selection import find_task
from nanochat.spec.errors import UserError
from nanochat.spec.stages import passes
from nanochat.spec.training import MixturePart, RlStage
from nanochat.stages.context import StageContext
from nanochat.stages.evaluate import task_errors
from nanochat.stages.session import TrainingSession, falling, open_session, steps_for
from nanochat.tokenizer.chat import render_prompt
from nanochat.training.guards import Trend
from nanochat.training.plan import Measurement
from nanochat.training.reinforce import Prompt, Reinforce, RolloutSettings

log = logging.getLogger(__name__)

EVALUATION_SPLIT = "test"


def run(context: StageContext) -> None:
    """Train for `epochs` passes over the prompts, unless `steps` says otherwise."""
    settings: RlStage = context.settings
    with open_session(context) as session:
        prompts, too_long = load_prompts(session, settings.tasks)
        if not prompts:
            raise UserError(
                "stages.rl.tasks gives no prompt that fits into the context: raise model.sequenceLength or choose "
                "another task"
            )
        if too_long and session.world.first:
            log.info("%s prompts are longer than the context and are left out", f"{too_long:,}")
        snapshot = Snapshot(session.model)
        objective = Reinforce(
            prompts,
            engine=Engine(snapshot.model, session.tokenizer, slots=settings.device_batch_size),
            world=session.world,
            settings=RolloutSettings(
                prompts_per_step=settings.prompts_per_step,
                samples=settings.samples_per_prompt,
                max_tokens=settings.max_new_tokens,
                temperature=settings.temperature,
                top_k=settings.top_k,
                seed=context.spec.seed,
                device_rows=settings.device_batch_size,
            ),
            stop=lambda: bool(context.stop),
            alive=session.alive,
            renew=snapshot.renew,
        )
        problems = load_prompts(session, settings.tasks, split=EVALUATION_SPLIT)[0] if settings.eval_every else []
        problems = problems[: settings.eval_rows]
        steps = settings.steps or steps_for(len(prompts), each=settings.prompts_per_step, epochs=settings.epochs)
        state = session.train(
            objective,
            steps=steps,
            schedule=falling(steps=steps, start=settings.init_lr_fraction, final=settings.final_lr_fraction),
            step_tokens=settings.prompts_per_step * settings.samples_per_prompt * settings.max_new_tokens,
            fixed_shapes=False,
            measurements=(
                Measurement(
                    settings.eval_every, lambda step: passed(session, objective, problems), doing="measuring pass@k"
                ),
            ),
            # What is minimised is no likelihood: the model is judged by its rewards, and by how it predicts its
            # prompts, which it may get a little worse at.
            margin=math.inf,
            trend=Trend("reward", rises=True, advice="easier prompts, more samplesPerPrompt or more steps may help"),
        )
        session.commit(
            state,
            {
                "prompts": len(prompts),
                "tooLongPrompts": too_long,
                "epochs": state.data_step(state.step) * settings.prompts_per_step / len(prompts),
            },
        )


def load_prompts(
    session: TrainingSession, parts: tuple[MixturePart, ...], *, split: str | None = None
) -> tuple[list[Prompt], int]:
    """The parts' prompts, each part's `epochs` times, and how many were left out as too long for any reply.

    With `split` it is read instead of the parts' own, where a task has it.
    """
    prompts: list[Prompt] = []
    too_long = 0
    for part in parts:
        kind = find_task(part.task)
        if not kind.rewards():
            raise UserError(f"stages.rl.tasks names '{part.task}', which has no reward: name one that grades answers")
        if split is not None and split not in kind.splits:
            continue
        ref = f"task-data/{part.task}"
        folder = session.context.fetch(ref) if session.context.has(ref) else Path()
        found: list[Prompt] = []
        with task_errors(part.task):
            task = kind(folder, split or part.split, seed=session.context.spec.seed)
            for index in range(min(part.rows or len(task), len(task))):
                example = task[index]
                ids = render_prompt(session.tokenizer, example.prompt, where=f"task {part.task}, row {index}")
                if len(ids) < session.model.config.sequence_length:
                    found.append(Prompt(tuple(ids), partial(task.reward, example)))
                else:
                    too_long += 1
        prompts += found * part.epochs
    return prompts, too_long


def passed(session: TrainingSession, objective: Reinforce, problems: Sequence[Prompt]) -> dict[str, float]:
    """Mean reward of the samples of each problem, which is pass@1, and pass@k of full rewards where there are several;
    drawn as in training and always with the same seeds."""
    if not problems:
        return {}
    settings: RlStage = session.context.settings
    samples, ks = settings.eval_samples, passes(settings.eval_samples)
    numbers = range(len(problems))[session.world.part(len(problems))]
    drawn = [(number, sample) for number in numbers for sample in range(samples)]
    names = [f"pass@1/{number}" + (f"/{sample}" if sample else "") for number, sample in drawn]
    completions = objective.sample([problems[number] for number, _ in drawn], names)
    rewards = [problems[number].reward(each.text) for (number, _), each in zip(drawn, completions, strict=True)]
    solved = [[reward >= 1 for reward in rewards[i : i + samples]] for i in range(0, len(rewards), samples)]
    several = (sum(pass_at_k(verdicts, k) for verdicts in solved) for k in ks)
    sums = session.world.sum(sum(rewards) / samples, *several)
    return {f"val/pass_at_{k}": total / len(problems) for k, total in zip((1, *ks), sums, strict=True)}
