"""Training steps of base, sft and rl through the stage's own session, on synthetic tokens, for `nanochat bench train`.

The data loaders, objectives, optimizer, clipping, journal and progress are those of the stage. Tokens follow Zipf's
law, so that there is something to learn; rl's samples are given instead of drawn.
"""

from __future__ import annotations

import math
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from nanochat.bench.pacing import Paced
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
from nanochat.runtime.distributed import ALONE
from nanochat.spec.pipeline import PipelineSpec
from nanochat.stages.context import StageContext
from nanochat.stages.session import TrainingSession
from nanochat.tokenizer import Tokenizer
from nanochat.training.guards import SpikeGuard
from nanochat.training.objective import LocalBatch, Objective, Supervised
from nanochat.training.reinforce import micro_batches
from nanochat.training.trainer import Measurement, Rates

ENDLESS = 1_000_000  # steps: training ends when nothing more is asked for
SPECIAL = {"bos": 0, "user_end": 1, "assistant_end": 2}
STEPS_OF_TEXT = 8  # the text repeats after so many steps


def run(task: Mapping[str, Any], paced: Paced) -> None:
    """Train, `task["steps"]` steps at a time."""
    paced.stamp("imports")
    spec = PipelineSpec.model_validate(task["spec"])
    with tempfile.TemporaryDirectory() as folder:
        context = make_context(spec, task["stage"], Path(folder), {"root": f"{folder}/store"})
        context.store.check()
        paced.stamp("store")
        session = open_session(context)
        paced.stamp("build model")
        opened = OBJECTIVES[task["stage"]](session, Path(folder))
        paced.skip()  # the files were made here, and are there in a stage
        objective = opened()
        step_tokens = objective.local_batch(0).tokens
        paced.stamp("data")
        every, config = task["steps"], session.model.config

        def between(step: int) -> dict[str, float]:
            paced.boundary(work(config, [objective.local_batch(made) for made in range(step - every, step)]))
            return {}

        session.train(
            objective,
            steps=ENDLESS,
            schedule=lambda step: Rates(1.0),
            step_tokens=step_tokens,
            fixed_shapes=task["stage"] == "base",
            measurements=(Measurement(every, between),),
            guard=SpikeGuard(margin=math.inf) if task["stage"] == "rl" else None,
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


def open_session(context: StageContext) -> TrainingSession:
    """A session with a fresh model, in one process."""
    device = choose_device(context.settings.precision)
    with torch.device(device.device):
        model = Transformer(model_config(context.spec))
    model.compute_dtype = device.compute_dtype
    return TrainingSession(
        context=context,
        settings=context.settings,
        world=ALONE,
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


@dataclass(frozen=True, slots=True)
class GivenSamples:
    """rl without its sampling: prompts, samples of many lengths, and advantages, drawn from the step's number."""

    session: TrainingSession
    counts: tuple[str, ...] = ()

    def metrics(self, counts: Mapping[str, float]) -> dict[str, float]:
        """Nothing is counted."""
        return {}

    def local_batch(self, step: int) -> LocalBatch:
        """A step's samples, in micro-batches."""
        config, settings = self.session.model.config, self.session.settings
        count = settings.prompts_per_step * settings.samples_per_prompt  # type: ignore[attr-defined]
        longest = min(settings.max_new_tokens, config.sequence_length // 2)  # type: ignore[attr-defined]
        prompt = zipf(config.sequence_length // 4, config.vocab_size, step, first=len(SPECIAL)).tolist()
        drawn = []
        for index, length in enumerate(lengths(count, longest)):
            ids = zipf(length, config.vocab_size, step * count + index, first=len(SPECIAL)).tolist()
            drawn.append((prompt, Completion(ids, [1] * length, "", (), "stop", None), 1.0 if index % 2 else -1.0))
        sampled = sum(len(completion.ids) for _, completion, _ in drawn)
        return LocalBatch(
            batches=micro_batches(drawn, rows=settings.device_batch_size),
            weight=float(sampled),
            tokens=sampled + count * len(prompt),
        )


OBJECTIVES: Mapping[str, Callable[[TrainingSession, Path], Callable[[], Objective]]] = {
    "base": text,
    "sft": conversations,
    "rl": lambda session, folder: lambda: GivenSamples(session),
}
