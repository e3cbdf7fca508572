"""The chat tasks: multiple choice by the letters' logits, all others by what the model answers; and ChatCORE.

    chat = Chat(model, tokenizer, settings, world=world)
    work = [Problems.of(find("gsm8k")(folder, "test"), range(100)), ...]
    for items in chat.examine(work): ...
    TaskResult.of(task, items, world=world).accuracy

Problems are divided among the ranks. Answers to the problems of all tasks come from one engine and one queue, so that
its rows run out of work once. A question that is longer than the context loses its beginning, and is counted. With
several samples of each problem pass@k is the chance that one of k is right (Chen et al. 2021, arXiv 2107.03374).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch

from nanochat.evaluation.figure import Figure, centered, mean, proportion
from nanochat.evaluation.items import Item
from nanochat.evaluation.sandbox import Sandbox
from nanochat.evaluation.scoring import by_length, padded
from nanochat.inference import Completion, Engine, Request, Sampling
from nanochat.model.transformer import Transformer
from nanochat.runtime.distributed import World
from nanochat.spec.stages import CHATCORE, ChatEvaluation
from nanochat.tokenizer import Tokenizer
from nanochat.tokenizer.chat import render_prompt
from tasks import Example, Message, Program, Task

GRADED = 64  # answered problems that are graded together
Tick = Callable[[int], None]  # called with the number of problems done since the last call


def no_tick(done: int) -> None:
    """For those who do not watch."""


@dataclass(frozen=True, slots=True)
class ChatSettings:
    """How answers are made."""

    batch_size: int
    max_new_tokens: int
    temperature: float = 0.0
    top_k: int | None = None
    seed: int = 0
    samples: int = 1  # answers to each problem
    pass_at: tuple[int, ...] = ()  # each k up to `samples` that pass@k is told of

    @classmethod
    def of(cls, settings: ChatEvaluation, *, seed: int) -> ChatSettings:
        """As a pipeline declares them."""
        return cls(
            batch_size=settings.device_batch_size,
            max_new_tokens=settings.max_new_tokens,
            temperature=settings.temperature,
            top_k=settings.top_k,
            seed=seed,
            samples=settings.samples,
            pass_at=settings.pass_at,
        )


@dataclass(frozen=True, slots=True)
class Problems:
    """Some of a task's problems, by their places in it."""

    task: Task
    examples: Mapping[int, Example]

    @classmethod
    def of(cls, task: Task, places: Sequence[int]) -> Problems:
        """Read them; DataError where the task's file is damaged."""
        return cls(task, {place: task[place] for place in places})


@dataclass(frozen=True, slots=True)
class TaskResult:
    """One task's figures."""

    accuracy: Figure
    centered: Figure
    baseline: float
    cut: int  # questions that were longer than the context
    lenient: Figure | None = None  # by the task's more forgiving verdict, where it has one
    passes: Mapping[int, Figure] = field(default_factory=dict)  # pass@k by k

    @classmethod
    def of(cls, task: Task, items: Sequence[Item], *, world: World, pass_at: Sequence[int] = ()) -> TaskResult:
        """Figures of the items of all ranks, of which each has its own."""
        sampled = any(len(item.verdicts) > 1 for item in items)
        values = [
            [item.right for item in items],
            [sum(item.lenient) / len(item.lenient) for item in items if item.lenient],
            *([pass_at_k(item.verdicts, k) for item in items if len(item.verdicts) >= k] for k in pass_at),
        ]
        sums = [(sum(each), len(each), sum(value * value for value in each)) for each in values]
        cut, several, *flat = world.sum(sum(item.cut for item in items), sampled, *(x for each in sums for x in each))
        accuracy, lenient, *passes = (
            proportion(total, count, squares if several else None)
            for total, count, squares in zip(flat[::3], flat[1::3], flat[2::3], strict=True)
        )
        return cls(
            accuracy,
            centered(accuracy, task.baseline),
            task.baseline,
            int(cut),
            lenient if lenient.n else None,
            {k: figure for k, figure in zip(pass_at, passes, strict=True) if figure.n},
        )


def pass_at_k(verdicts: Sequence[bool], k: int) -> float:
    """Pass@k of one problem: the chance that one of k of its answers, drawn without replacement, is right."""
    wrong = verdicts.count(False)
    return 1 - math.comb(wrong, k) / math.comb(len(verdicts), k)


class Chat:
    """Measures one model, on one of the ranks."""

    def __init__(self, model: Transformer, tokenizer: Tokenizer, settings: ChatSettings, *, world: World) -> None:
        self._model = model
        self._tokenizer = tokenizer
        self._settings = settings
        self._world = world

    @cached_property
    def _engine(self) -> Engine:
        return Engine(self._model, self._tokenizer, slots=self._settings.batch_size)

    def examine(self, work: Sequence[Problems], *, tick: Tick = no_tick) -> Iterator[list[Item]]:
        """Ask all problems -> their items, some at a time: those of multiple choice first."""
        for problems in work:
            if problems.task.kind == "choice":
                yield from self._letters(problems, tick)
        yield from self._answers([problems for problems in work if problems.task.kind != "choice"], tick)

    def ask(self, messages: Sequence[Message]) -> Completion:
        """The answer to one conversation."""
        prompt = render_prompt(self._tokenizer, messages)
        return self._engine.generate([prompt[-self._room :]], self._sampling(0))[0]

    @property
    def _room(self) -> int:
        """The longest question: with the longest answer, or, where not both fit, with half of the context."""
        return self._engine.length - min(self._settings.max_new_tokens, self._engine.length // 2)

    def _sampling(self, place: int) -> Sampling:
        """A problem's place gives its seed, whichever rank answers it."""
        settings = self._settings
        return Sampling(
            max_tokens=settings.max_new_tokens,
            temperature=settings.temperature,
            top_k=settings.top_k,
            seed=settings.seed * 1_000_003 + place,
        )

    # ----------------------------------------------------------------------------------------------------
    # Multiple choice

    @torch.inference_mode()
    def _letters(self, problems: Problems, tick: Tick) -> Iterator[list[Item]]:
        """The likeliest of each question's letters as the answer's first token."""
        model, length = self._model, self._model.config.sequence_length
        asked = [
            Asked.of(self._tokenizer, problems.task, place, example, room=length)
            for place, example in problems.examples.items()
        ]
        for batch in by_length([len(each.ids) for each in asked], most=self._settings.batch_size * length):
            chosen = [asked[i] for i in batch]
            last = torch.tensor([len(each.ids) - 1 for each in chosen], device=model.device)
            hidden = model.hidden(padded([each.ids for each in chosen]).to(model.device))  # (B, T, D)
            logits = model.logits(hidden[torch.arange(len(batch), device=model.device), last])  # (B, V)
            items = []
            for each, scores in zip(chosen, logits.log_softmax(dim=-1), strict=True):
                letters = each.example.letters
                ids = [self._tokenizer.encode(letter)[0] for letter in letters]  # a single byte is a token
                answer = letters[int(scores[ids].argmax())]
                right = bool(each.task.grade(each.example, answer))
                items.append(each.item([answer], [right], choices=letters, scores=scores[ids].tolist()))
            tick(len(items))
            yield items

    # ----------------------------------------------------------------------------------------------------
    # Answers

    def _answers(self, work: Sequence[Problems], tick: Tick) -> Iterator[list[Item]]:
        """All problems' samples in one queue; those that are answered are graded a few dozen at a time."""
        if not any(problems.examples for problems in work):
            return
        engine, samples = self._engine, self._settings.samples
        running: dict[Request, Asked] = {}
        requests: dict[Asked, list[Request]] = {}
        for problems in work:
            for place, example in problems.examples.items():
                asked = Asked.of(self._tokenizer, problems.task, place, example, room=self._room)
                requests[asked] = [engine.submit(asked.ids, each) for each in self._sampling(place).split(samples)]
                running |= dict.fromkeys(requests[asked], asked)
        answered: list[tuple[Asked, list[str]]] = []
        while running:
            finished = [running.pop(event.request) for event in engine.step() if event.finish_reason is not None]
            done = [asked for asked in dict.fromkeys(finished) if not any(r in running for r in requests[asked])]
            answered += [(asked, [r.completion.text for r in requests.pop(asked)]) for asked in done]
            tick(len(done))
            if len(answered) >= GRADED or (answered and not running):
                yield self._graded(answered)
                answered = []

    def _graded(self, answered: Sequence[tuple[Asked, list[str]]]) -> list[Item]:
        said = [(asked.task, asked.example, text) for asked, texts in answered for text in texts]
        grades = [task.grade(example, text) for task, example, text in said]
        verdicts = self._passed([*grades, *(task.lenient(example, text) for task, example, text in said)])
        strict, lenient = iter(verdicts[: len(said)]), iter(verdicts[len(said) :])
        items = []
        for asked, texts in answered:
            forgiven = [bool(verdict) for verdict in (next(lenient) for _ in texts) if verdict is not None]
            items.append(asked.item(texts, [bool(next(strict)) for _ in texts], lenient=forgiven))
        return items

    def _passed(self, grades: Sequence[bool | Program | None]) -> list[bool | None]:
        """The grades, with programs run in the sandbox (equal ones once): on this rank's part of the machine."""
        programs = list(dict.fromkeys(grade for grade in grades if isinstance(grade, Program)))
        ran = Sandbox().run_all(programs, share=self._world.size)
        passed = {program: verdict.passed for program, verdict in zip(programs, ran, strict=True)}
        return [passed[grade] if isinstance(grade, Program) else grade for grade in grades]


@dataclass(frozen=True, slots=True, eq=False)
class Asked:
    """A problem as the model is asked it."""

    task: Task
    place: int
    example: Example
    ids: list[int]
    cut: bool  # whether it had to be cut to its room
    prompt: str

    @classmethod
    def of(cls, tokenizer: Tokenizer, task: Task, place: int, example: Example, *, room: int) -> Asked:
        """The question in its last `room` tokens."""
        ids = render_prompt(tokenizer, example.prompt)
        return cls(task, place, example, ids[-room:], len(ids) > room, tokenizer.decode(ids))

    def item(self, answers: Sequence[str], verdicts: list[bool], **figures: Any) -> Item:
        """The problem with what became of it."""
        example = self.example
        return Item.of(
            self.task.name,
            self.place,
            question=(example.messages, example.letters),
            prompt=self.prompt,
            expected=_text(example.messages[-1]["content"]),
            answers=answers,
            verdicts=verdicts,
            baseline=self.task.baseline,
            cut=self.cut,
            **figures,
        )


def _text(content: str | Sequence[Mapping[str, str]]) -> str:
    """A message's content as text, calls of the tool and its outputs included."""
    return content if isinstance(content, str) else "".join(part["text"] for part in content)


def chatcore(results: Mapping[str, TaskResult]) -> Figure:
    """ChatCORE: the mean over its six tasks of how far the model is above guessing."""
    return mean([results[name].centered for name in CHATCORE])
