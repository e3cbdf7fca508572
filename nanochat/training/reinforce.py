"""REINFORCE with the group's mean as baseline: several samples of each prompt, each rewarded, compared with each other.

    objective = Reinforce(prompts, engine=engine, world=world, settings=RolloutSettings(...), stop=stop)
    objective.local_batch(step)       # samples, rewards, advantages, micro-batches

The advantage of a sample is its reward less the mean reward of its prompt's samples; its tokens are trained with the
loss  sum of advantage * -log p(token) / number of sampled tokens,  both over the whole step and all ranks (token level,
as in DAPO, arXiv 2503.14476). Policy and sampler are the same weights, so there is no ratio to clip. What the model
sampled is trained, with the token that ends its turn; what the tool answered is not.

A sample depends on (seed, step, prompt, sample) and the weights alone: a resumed step draws the same again.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch

from nanochat.inference import Completion, Engine, Sampling
from nanochat.model.loss import IGNORED
from nanochat.runtime.distributed import World
from nanochat.training.objective import LocalBatch, MicroBatch


@dataclass(frozen=True, slots=True)
class Prompt:
    """A question as ids, and the reward of an answer's text."""

    ids: tuple[int, ...]
    reward: Callable[[str], float]


@dataclass(frozen=True, slots=True, kw_only=True)
class RolloutSettings:
    """How samples are drawn and trained on."""

    prompts_per_step: int
    samples: int  # of each prompt
    max_tokens: int
    temperature: float
    top_k: int | None
    seed: int
    device_rows: int  # most rows of one forward pass


class Reinforce:
    """The objective of rl."""

    counts = ("prompts", "samples", "reward", "groups_without_advantage", "sampled_tokens", "unfinished")
    learns_from: ClassVar[str] = "a prompt whose samples had different rewards"
    is_likelihood: ClassVar[bool] = False
    reads_ahead: ClassVar[bool] = False

    def __init__(
        self,
        prompts: Sequence[Prompt],
        *,
        engine: Engine,
        world: World,
        settings: RolloutSettings,
        stop: Callable[[], bool],
        alive: Callable[[], None],
        renew: Callable[[], None],
    ) -> None:
        """`stop` and `alive` are called while sampling: a stop ends it early, `alive` is the sign of life. `renew` is
        called before: the weights have changed since, and the engine's model may be a copy."""
        self.prompts = prompts
        self.engine = engine
        self.world = world
        self.settings = settings
        self.stop = stop
        self.alive = alive
        self.renew = renew

    def local_batch(self, step: int) -> LocalBatch:
        """This rank's samples of the step. Samples, not prompts, are dealt out, so that no rank goes without."""
        settings = self.settings
        numbers = self.numbers(step)
        rows = range(len(numbers) * settings.samples)[self.world.part(len(numbers) * settings.samples)]
        drawn = [(numbers[row // settings.samples], row % settings.samples) for row in rows]
        prompts = [self.prompts[number] for number, _ in drawn]
        completions = self.sample(prompts, [f"{step}/{number}/{sample}" for number, sample in drawn], stop=self.stop)
        rewards = np.zeros(len(numbers) * settings.samples)
        for row, prompt, completion in zip(rows, prompts, completions, strict=True):
            rewards[row] = prompt.reward(completion.text)
        rewards = np.array(self.world.sum(*rewards)).reshape(len(numbers), settings.samples)
        advantages = group_advantages(rewards)

        sequences = [
            (prompt.ids, completion, float(advantages.flat[row]))
            for row, prompt, completion in zip(rows, prompts, completions, strict=True)
        ]
        sampled = sum(sum(completion.mask) for completion in completions)
        unfinished = sum(completion.finish_reason != "stop" for completion in completions)
        flat = int((advantages == 0).all(axis=1).sum())
        whole = (len(numbers), rewards.size, float(rewards.sum()), flat) if self.world.first else (0, 0, 0.0, 0)
        return LocalBatch(
            batches=micro_batches(sequences, rows=settings.device_rows),
            weight=float(sampled) if flat < len(numbers) else 0.0,
            tokens=sum(len(ids) + len(completion.ids) for ids, completion, _ in sequences),
            counts=(*whole, sampled, unfinished),
        )

    def metrics(self, counts: Mapping[str, float]) -> dict[str, float]:
        """Means of one step."""
        return {
            "train/reward": counts["reward"] / counts["samples"],
            "train/groups_without_advantage": counts["groups_without_advantage"] / counts["prompts"],
            "train/sample_length": counts["sampled_tokens"] / counts["samples"],
            "train/unfinished": counts["unfinished"] / counts["samples"],
        }

    def text(self, step: int, local_batch: Callable[[int], LocalBatch] | None = None) -> MicroBatch | None:
        """This rank's part of the step's prompts: a model that rl ruins no longer predicts them; None where there are
        fewer prompts than ranks."""
        numbers = self.numbers(step)
        mine = numbers[self.world.part(len(numbers))]
        return prompt_batch([self.prompts[number].ids for number in mine]) if mine else None

    def figure(self, loss: float | None, counts: Mapping[str, float]) -> float:
        """The mean reward."""
        return counts["reward"] / counts["samples"]

    def numbers(self, step: int) -> list[int]:
        """The prompts of a step: an endless sequence of epochs, each in an order of its own."""
        count, found = self.settings.prompts_per_step, []
        for position in range(step * count, (step + 1) * count):
            epoch, index = divmod(position, len(self.prompts))
            order = np.random.default_rng([self.settings.seed, epoch]).permutation(len(self.prompts))
            found.append(int(order[index]))
        return found

    def sample(
        self, prompts: Sequence[Prompt], names: Sequence[str], *, stop: Callable[[], bool] = lambda: False
    ) -> list[Completion]:
        """A completion of each prompt, seeded by its name; all are cut short where `stop` says so in between."""
        settings = self.settings
        self.renew()
        self.engine.forget()
        requests = [
            self.engine.submit(
                prompt.ids,
                Sampling(
                    max_tokens=settings.max_tokens,
                    temperature=settings.temperature,
                    top_k=settings.top_k,
                    seed=seed_of(f"{settings.seed}/{name}"),
                ),
            )
            for prompt, name in zip(prompts, names, strict=True)
        ]
        while self.engine.running or self.engine.waiting:
            if stop():
                for request in requests:
                    self.engine.cancel(request)
            self.engine.step()
            self.alive()
        return [request.completion for request in requests]


def group_advantages(rewards: np.ndarray) -> np.ndarray:
    """Rewards (P, S) less their group's mean; exactly 0 in a group of equal rewards, whatever the mean rounds to."""
    advantages = rewards - rewards.mean(axis=1, keepdims=True)
    advantages[(rewards == rewards[:, :1]).all(axis=1)] = 0.0
    return advantages


def micro_batches(sequences: Sequence[tuple[Sequence[int], Completion, float]], *, rows: int) -> tuple[MicroBatch, ...]:
    """(prompt, completion, advantage) as batches; what has no advantage has no gradient and is left out."""
    kept = sorted(
        ((prompt, completion, advantage) for prompt, completion, advantage in sequences if advantage),
        key=lambda item: len(item[0]) + len(item[1].ids),  # rows of like lengths together waste little
    )
    return tuple(micro_batch(kept[start : start + rows]) for start in range(0, len(kept), rows))


def micro_batch(sequences: Sequence[tuple[Sequence[int], Completion, float]]) -> MicroBatch:
    """Rows as wide as the longest of them."""
    width = max(len(prompt) + len(completion.ids) for prompt, completion, _ in sequences) - 1
    inputs = torch.zeros(len(sequences), width, dtype=torch.int64)
    targets = torch.full_like(inputs, IGNORED)
    factors = torch.zeros(len(sequences), width)
    for row, (prompt, completion, advantage) in enumerate(sequences):
        ids = torch.tensor([*prompt, *completion.ids])
        inputs[row, : len(ids) - 1] = ids[:-1]
        sampled = torch.tensor(completion.mask, dtype=torch.bool)
        answer = slice(len(prompt) - 1, len(ids) - 1)  # the places whose targets are the completion's tokens
        targets[row, answer] = torch.where(sampled, ids[len(prompt) :], IGNORED)
        factors[row, answer] = advantage
    return MicroBatch(inputs, targets, factors)


def prompt_batch(prompts: Sequence[Sequence[int]]) -> MicroBatch:
    """Prompts as text to predict, all of it."""
    width = max(map(len, prompts)) - 1
    inputs = torch.zeros(len(prompts), width, dtype=torch.int64)
    targets = torch.full_like(inputs, IGNORED)
    for row, ids in enumerate(prompts):
        inputs[row, : len(ids) - 1] = torch.tensor(ids[:-1])
        targets[row, : len(ids) - 1] = torch.tensor(ids[1:])
    return MicroBatch(inputs, targets)


def seed_of(text: str) -> int:
    """63 bits of a text."""
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big") >> 1
