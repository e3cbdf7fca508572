"""Training steps of base, sft and rl through the stage's own session, on synthetic tokens, for `nanochat bench train`.

The data loaders, objectives, optimizer, clipping, journal and progress are those of the stage. Tokens follow Zipf's
law, so that there is something to learn; rl's samples are given instead of drawn. Of several processes that train
together the first answers, and tells the others when to go on.
"""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from nanochat.bench.pacing import Paced
from nanochat.bench.ranks import boundary, join_timed, waiting
from nanochat.bench.shapes import Shape
from nanochat.bench.synthetic import SEED, lengths, zipf
from nanochat.data.loader import Shard, TextLoader
from nanochat.data.mixture import Mixture, Part, RowLoader
from nanochat.data.tokenfile import ConversationFile, TokenFile, write_conversations, write_text
from nanochat.inference import Completion
from nanochat.model.sizes import ModelConfig, flops_per_token
from nanochat.model.transformer import Transformer
from nanochat.pipeline.graph import Output
from nanochat.pipeline.plan import StagePlan
from nanochat.pipeline.resolve import model_config
from nanochat.runtime.device import choose_device
from nanochat.runtime.distributed import ALONE, World
from nanochat.spec.errors import UserError
from nanochat.spec.pipeline import PipelineSpec
from nanochat.stages.context import StageContext
from nanochat.stages.session import TrainingSession
from nanochat.tokenizer import Tokenizer
from nanochat.training.objective import LocalBatch, Objective, Supervised
from nanochat.training.plan import Measurement, Rates
from nanochat.training.reinforce import Prompt, Reinforce, RolloutSettings, seed_of

ENDLESS = 1_000_000  # steps: training ends when nothing more is asked for
SMALL = 1e-3  # scale of learning rates: made-up tokens must not diverge, however many steps are timed
SPECIAL = {"bos": 0, "user_end": 1, "assistant_end": 2}
STEPS_OF_TEXT = 8  # the text repeats after so many steps


class Remarks(logging.Handler):
    """Warnings of the model's forward pass, such as that it is not compiled after all."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.sentences: list[str] = []
        logging.getLogger("nanochat.training.forward").addHandler(self)

    def emit(self, record: logging.LogRecord) -> None:
        self.sentences.append(record.getMessage())


def run(task: Mapping[str, Any], paced: Paced) -> None:
    """Train, `task["steps"]` steps at a time; UserError where that is not done as it was asked for."""
    paced.stamp("imports")
    spec = Shape.from_dict(task["shape"]).read()
    with ExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory())
        context = make_context(spec, task["stage"], Path(folder), {"root": f"{folder}/store"})
        context.store.check()
        paced.stamp("store")
        world, waits = stack.enter_context(join_timed(choose_device(context.settings.precision).device))
        session = open_session(context, world)
        paced.stamp("build model")
        opened = OBJECTIVES[task["stage"]](session, Path(folder))
        paced.skip()  # the files were made here, and are there in a stage
        objective = opened()
        step_tokens = objective.local_batch(0).tokens
        paced.stamp("data")
        every, config, remarks = task["steps"], session.model.config, Remarks()
        counted = opened()  # another one: training may read ahead in its own

        def between(step: int) -> dict[str, float]:
            if remarks.sentences:
                raise UserError(remarks.sentences[0])
            others = waiting(world, waits)

            def done() -> dict[str, float]:
                return work(config, [counted.local_batch(made) for made in range(step - every, step)])

            boundary(world, paced, lambda: others | done(), begun=step > every)
            waits.take()
            return {}

        session.train(
            objective,
            steps=ENDLESS,
            schedule=lambda step: Rates(SMALL),
            step_tokens=step_tokens,
            fixed_shapes=task["stage"] == "base",
            measurements=(Measurement(every, between),),
        )


def make_context(
    spec: PipelineSpec, stage: str, folder: Path, profile: Mapping[str, Any], *, run: str = "bench"
) -> StageContext:
    """The surroundings of a stage that has no inputs."""
    output = Output("model", stage, "bench", {}, {})
    plan = StagePlan(
        stage=stage, name="bench", namespace="default", run=run, attempt=1, launch="01",
        outputs=(output,), inputs={}, spec=spec.to_yaml_dict(), horizon={}, profile=profile,
        cache=str(folder / "cache"), work=str(folder),
    )  # fmt: skip
    return StageContext(plan)


def open_session(context: StageContext, world: World = ALONE) -> TrainingSession:
    """A session with a fresh model."""
    device = choose_device(context.settings.precision)
    with torch.device(device.device):
        model = Transformer(model_config(context.spec))
    model.compute_dtype = device.compute_dtype
    return TrainingSession(
        context=context,
        settings=context.settings,
        world=world,
        device=device,
        model=model,
        tokenizer=Tokenizer([bytes([value]) for value in range(256)]),
        tokenizer_folder=Path(context.plan.work),
        initialise=lambda: model.init_weights(SEED),
    )


def work(config: ModelConfig, steps: list[LocalBatch]) -> dict[str, float]:
    """Tokens that go through the model, padding too, and their FLOPs."""
    shapes = [batch.inputs.shape for step in steps for batch in step.batches]
    flops = sum(rows * width * flops_per_token(replace(config, sequence_length=width)) for rows, width in shapes)
    return {"tokens": float(sum(rows * width for rows, width in shapes)), "flops": float(flops), "steps": len(steps)}


def text(session: TrainingSession, folder: Path) -> Callable[[], Objective]:
    """base: rows of an endless text, in a file that is written now and opened by what is returned."""
    config, settings = session.model.config, session.settings
    rows = settings.total_batch_tokens // config.sequence_length  # type: ignore[attr-defined]
    ids = zipf(STEPS_OF_TEXT * rows * config.sequence_length, config.vocab_size, SEED, first=len(SPECIAL))
    place = folder / "text"
    place.mkdir()
    write_text(place, [ids.tolist()], bos=SPECIAL["bos"], vocab_size=config.vocab_size)

    def opened() -> Objective:
        shard = Shard(tokens=len(ids) + 1, open=lambda: TokenFile(place))
        loader = TextLoader([shard], rows=rows, length=config.sequence_length, seed=SEED)
        return Supervised(loader, session.world, settings.device_batch_size)

    return opened


def conversations(session: TrainingSession, folder: Path) -> Callable[[], Objective]:
    """sft, in the same way: a conversation a row, of many lengths; a half of each is trained."""
    config, settings = session.model.config, session.settings
    rows = settings.rows_per_step  # type: ignore[attr-defined]
    place = folder / "conversations"
    place.mkdir()

    def drawn() -> Iterator[tuple[np.ndarray, np.ndarray]]:
        for index, length in enumerate(lengths(STEPS_OF_TEXT * rows, config.sequence_length)):
            yield zipf(length, config.vocab_size, index, first=len(SPECIAL)), np.arange(length) >= length // 2

    write_conversations(place, drawn(), special=SPECIAL, vocab_size=config.vocab_size)

    def opened() -> Objective:
        mixture = Mixture([Part(ConversationFile(place))], seed=SEED)
        loader = RowLoader(mixture, rows=rows, length=config.sequence_length)
        return Supervised(loader, session.world, settings.device_batch_size)

    return opened


class GivenSamples(Reinforce):
    """rl without its sampling: samples of many lengths, of which every second is rewarded."""

    vocab_size: int

    def sample(
        self, prompts: Sequence[Prompt], names: Sequence[str], *, stop: Callable[[], bool] = lambda: False
    ) -> list[Completion]:
        """The same tokens for the same name."""
        drawn = zip(names, lengths(len(names), self.settings.max_tokens), strict=True)
        return [
            Completion(
                zipf(length, self.vocab_size, seed_of(name), first=len(SPECIAL)).tolist(),
                [1] * length, str(index % 2), (), "stop", None,
            )
            for index, (name, length) in enumerate(drawn)
        ]  # fmt: skip


def samples(session: TrainingSession, folder: Path) -> Callable[[], Objective]:
    """rl, in the same way: its prompts are a quarter of the context, its samples a half of it at most."""
    config, settings = session.model.config, session.settings
    prompts = [
        Prompt(tuple(zipf(config.sequence_length // 4, config.vocab_size, number, first=len(SPECIAL)).tolist()), float)
        for number in range(STEPS_OF_TEXT)
    ]
    rollouts = RolloutSettings(
        prompts_per_step=settings.prompts_per_step,  # type: ignore[attr-defined]
        samples=settings.samples_per_prompt,  # type: ignore[attr-defined]
        max_tokens=min(settings.max_new_tokens, config.sequence_length // 2),  # type: ignore[attr-defined]
        temperature=1.0,
        top_k=None,
        seed=SEED,
        device_rows=settings.device_batch_size,
    )

    def opened() -> Objective:
        objective = GivenSamples(
            prompts,
            engine=None,  # type: ignore[arg-type]  # nothing is sampled
            world=session.world,
            settings=rollouts,
            stop=lambda: False,
            alive=lambda: None,
            renew=lambda: None,
        )
        objective.vocab_size = config.vocab_size
        return objective

    return opened


OBJECTIVES: Mapping[str, Callable[[TrainingSession, Path], Callable[[], Objective]]] = {
    "base": text,
    "sft": conversations,
    "rl": samples,
}
