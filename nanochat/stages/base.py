"""base: pretraining on text, measured in bits per byte on the source's validation shard."""

from __future__ import annotations

import logging
from collections.abc import Sequence

from nanochat.data.bestfit import BestFitLoader
from nanochat.data.loader import Shard, TextLoader
from nanochat.data.tokenfile import TokenFile
from nanochat.evaluation.bpb import bits_per_byte, text_batches
from nanochat.evaluation.core import measure_core
from nanochat.evaluation.core_tasks import load_tasks
from nanochat.inference import Engine, Sampling
from nanochat.model.scaling import Scaling
from nanochat.model.transformer import Transformer
from nanochat.optim.schedule import decay_scale, lr_scale, muon_momentum
from nanochat.pipeline.resolve import scaling, shard_name
from nanochat.spec.training import BaseStage
from nanochat.stages.context import StageContext
from nanochat.stages.session import TrainingSession, open_session
from nanochat.tokenizer import Tokenizer
from nanochat.training.objective import Supervised
from nanochat.training.plan import Measurement, Rates

log = logging.getLogger(__name__)

SAMPLE_PROMPTS = (
    "The capital of France is",
    "The chemical symbol of gold is",
    "If yesterday was Friday, then tomorrow will be",
    "The opposite of hot is",
    "The planets of the solar system are:",
    "My favorite color is",
    "If 5*x + 3 = 13, then x is",
)
SAMPLE_TOKENS = 16
LOADERS = {"stream": TextLoader, "best-fit": BestFitLoader}


def run(context: StageContext) -> None:
    """Train from fresh weights to the horizon that the planner computed."""
    settings: BaseStage = context.settings
    horizon, length = context.horizon, context.horizon.model.sequence_length
    rules = scaling(context.spec)
    with open_session(context) as session:
        loader = LOADERS[settings.packing](
            [shard(context, index) for index in horizon.shards],
            rows=rules.batch_tokens // length,
            length=length,
            seed=context.spec.seed,
        )
        measured = (lambda step: core(session, settings)) if context.has("eval-bundle/core") else None
        state = session.train(
            Supervised(loader, session.world, settings.device_batch_size),
            steps=horizon.steps,
            schedule=lambda step: rates(settings, rules, step, horizon.steps),
            step_tokens=rules.batch_tokens,
            measurements=(
                Measurement(
                    settings.eval_every, lambda step: validation(session, settings), doing="measuring bits per byte"
                ),
                Measurement(settings.sample_every, lambda step: samples(session, settings, step), doing="sampling"),
                *(
                    [Measurement(settings.core_every, measured, after_last=False, doing="measuring CORE")]
                    if measured
                    else []
                ),
            ),
        )
        loader.close()
        session.commit(state, {"epochs": state.data_step(state.step) * loader.rows * length / loader.total})


def rates(settings: BaseStage, rules: Scaling, step: int, steps: int) -> Rates:
    """Up, constant, linearly down; Muon's momentum rises at the beginning, its decay falls to nothing."""
    scale = lr_scale(
        step,
        steps=steps,
        warmup_ratio=settings.warmup_ratio,
        warmdown_ratio=settings.warmdown_ratio,
        final_fraction=settings.final_lr_fraction,
    )
    momentum = muon_momentum(step, ramp=settings.momentum_warmup_steps)
    return Rates(rules.rates * scale, momentum, rules.decay * decay_scale(step, steps=steps))


def shard(context: StageContext, index: int) -> Shard[TokenFile]:
    """A token file, fetched when it is needed; once read, the cache may drop it."""
    ref = f"text-tokens/{shard_name(index)}"
    return Shard(
        tokens=context.manifest(ref).metadata["tokens"],
        open=lambda: TokenFile(context.fetch(ref)),
        release=lambda: context.release(ref),
    )


def validation(session: TrainingSession, settings: BaseStage) -> dict[str, float]:
    """Bits per byte of the beginning of the validation shard, always the same."""
    ref = f"text-tokens/{shard_name(session.context.horizon.validation_shard)}"
    figure = bits_per_byte(
        session.model,
        text_batches(
            TokenFile(session.context.fetch(ref)),
            length=session.model.config.sequence_length,
            tokens=settings.eval_tokens,
            batch_size=settings.device_batch_size,
            world=session.world,
        ),
        byte_lengths=session.tokenizer.byte_lengths(),
        world=session.world,
        tick=session.alive,
    )
    return {"val/bpb": figure.value}


def core(session: TrainingSession, settings: BaseStage) -> dict[str, float]:
    """CORE on the first examples of each of its tasks, always the same."""
    tasks = load_tasks(session.context.fetch("eval-bundle/core"))
    places = {task.label: place for place, task in enumerate(tasks, 1)}
    found = measure_core(
        session.model,
        session.tokenizer,
        tasks,
        batch_size=settings.device_batch_size,
        world=session.world,
        most=settings.core_max_per_task,
        tick=lambda label, done: session.alive(f"measuring CORE, task {places[label]} of {len(tasks)}"),
    )
    return {"val/core": found.core.value}


def prompts_of(settings: BaseStage) -> tuple[str, ...]:
    """The beginnings that a base model's samples continue."""
    return settings.sample_prompts or SAMPLE_PROMPTS


def continued(model: Transformer, tokenizer: Tokenizer, texts: Sequence[str], tokens: int) -> list[str]:
    """The model's continuations of a few beginnings, always by the likeliest token.

    Of a beginning that is longer than the context its last tokens are continued.
    """
    prompts = [[tokenizer.bos, *tokenizer.encode(text)][-model.config.sequence_length :] for text in texts]
    length = min(model.longest, max(map(len, prompts)) + tokens)
    engine = Engine(model, tokenizer, slots=len(prompts), length=length)
    completions = engine.generate(prompts, Sampling(max_tokens=tokens))
    return [tokenizer.decode(completion.ids) for completion in completions]


def samples(session: TrainingSession, settings: BaseStage, step: int) -> dict[str, float]:
    """Log the model's continuations of a few beginnings; rank 0's work."""
    if not session.world.first:
        return {}
    texts = prompts_of(settings)
    for text, said in zip(texts, continued(session.model, session.tokenizer, texts, SAMPLE_TOKENS), strict=True):
        sample = text + said
        log.info("step %s: %s", f"{step:,}", sample.replace("\n", "\\n"))  # one sample, one line
        session.context.journal.event("sample", step=step, message=sample)
    return {}
