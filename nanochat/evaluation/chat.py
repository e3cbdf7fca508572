"""The chat tasks: multiple choice by the letters' logits, all others by what the model answers; and ChatCORE.

    chat = Chat(model, tokenizer, settings, world=world)
    result = chat.measure(find("gsm8k")(folder, "test"), 100)
    chatcore({"gsm8k": result, ...})

Problems are divided among the ranks and the counts added up. Answers come from one engine with many rows at a
time. A question that is longer than the context loses its beginning, and is counted.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch

from nanochat.evaluation.core import by_length
from nanochat.evaluation.figure import Figure, centered, mean, proportion
from nanochat.evaluation.sandbox import Sandbox
from nanochat.inference import Completion, Engine, Sampling
from nanochat.model.transformer import Transformer
from nanochat.runtime.distributed import World
from nanochat.spec.stages import CHATCORE
from nanochat.tokenizer import Tokenizer
from nanochat.tokenizer.chat import render_prompt
from tasks import Example, Message, Program, Task

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


@dataclass(frozen=True, slots=True)
class TaskResult:
    """One task's figures."""

    accuracy: Figure
    centered: Figure
    baseline: float
    cut: int  # questions that were longer than the context
    lenient: Figure | None = None  # by the task's more forgiving verdict, where it has one


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

    def measure(self, task: Task, rows: int, *, tick: Tick = no_tick) -> TaskResult:
        """The proportion of the task's first `rows` problems that the model gets right."""
        mine = range(self._world.rank, rows, self._world.size)
        examples = [task[i] for i in mine]
        lenient: list[bool | None] = []
        if task.kind == "choice":
            prompts, cut = self._prompts(examples, room=self._model.config.sequence_length)
            letters = self._letters(examples, prompts, tick)
            right = sum(bool(task.grade(*pair)) for pair in zip(examples, letters, strict=True))
        else:
            prompts, cut = self._prompts(examples, room=self._room())
            answers = self._answers(prompts, indices=mine, tick=tick)
            said = [(example, answer.text) for example, answer in zip(examples, answers, strict=True)]
            grades = [task.grade(*pair) for pair in said]
            verdicts = self._passed([*grades, *(task.lenient(*pair) for pair in said)])
            right, lenient = sum(map(bool, verdicts[: len(said)])), verdicts[len(said) :]
        forgiven, forgivable = sum(map(bool, lenient)), sum(verdict is not None for verdict in lenient)
        right, count, cuts, forgiven, forgivable = self._world.sum(right, len(examples), cut, forgiven, forgivable)
        accuracy = proportion(right, count)
        also = proportion(forgiven, count) if forgivable else None
        return TaskResult(accuracy, centered(accuracy, task.baseline), task.baseline, int(cuts), also)

    def ask(self, messages: Sequence[Message]) -> Completion:
        """The answer to one conversation."""
        prompt = render_prompt(self._tokenizer, messages)
        return self._answers([prompt[-self._room() :]], indices=range(1), tick=no_tick)[0]

    def _room(self) -> int:
        """The longest question: with the longest answer, or, where not both fit, with half of the context."""
        return self._engine.length - min(self._settings.max_new_tokens, self._engine.length // 2)

    def _answers(self, prompts: Sequence[Sequence[int]], *, indices: Sequence[int], tick: Tick) -> list[Completion]:
        """Completions in order; a problem's index gives its seed, whichever rank answers it."""
        settings, engine = self._settings, self._engine
        requests = [
            engine.submit(
                prompt,
                Sampling(
                    max_tokens=settings.max_new_tokens,
                    temperature=settings.temperature,
                    top_k=settings.top_k,
                    seed=settings.seed * 1_000_003 + index,
                ),
            )
            for prompt, index in zip(prompts, indices, strict=True)
        ]
        while engine.running or engine.waiting:
            events = engine.step()
            tick(sum(event.finish_reason is not None for event in events))
        return [request.completion for request in requests]

    def _prompts(self, examples: Sequence[Example], *, room: int) -> tuple[list[list[int]], int]:
        """The questions as ids, and how many had to be cut to `room` tokens."""
        prompts = [render_prompt(self._tokenizer, example.prompt) for example in examples]
        return [prompt[-room:] for prompt in prompts], sum(len(prompt) > room for prompt in prompts)

    @torch.inference_mode()
    def _letters(self, examples: Sequence[Example], prompts: Sequence[Sequence[int]], tick: Tick) -> list[str]:
        """The likeliest of each question's letters as the answer's first token."""
        model, answers = self._model, [""] * len(examples)
        most = self._settings.batch_size * model.config.sequence_length
        for batch in by_length([len(prompt) for prompt in prompts], most=most):
            width = max(len(prompts[i]) for i in batch)
            inputs = torch.zeros(len(batch), width, dtype=torch.int64)
            for row, i in enumerate(batch):
                inputs[row, : len(prompts[i])] = torch.tensor(prompts[i])
            last = torch.tensor([len(prompts[i]) - 1 for i in batch], device=model.device)
            hidden = model.hidden(inputs.to(model.device))  # (B, T, D)
            logits = model.logits(hidden[torch.arange(len(batch), device=model.device), last])  # (B, V)
            for row, i in enumerate(batch):
                letters = examples[i].letters
                ids = [self._tokenizer.encode(letter)[0] for letter in letters]  # a single byte is a token
                answers[i] = letters[int(logits[row, ids].argmax())]
            tick(len(batch))
        return answers

    def _passed(self, grades: Sequence[bool | Program | None]) -> list[bool | None]:
        """The grades, with programs run in the sandbox (equal ones once): on this rank's part of the machine."""
        programs = list(dict.fromkeys(grade for grade in grades if isinstance(grade, Program)))
        ran = Sandbox().run_all(programs, share=self._world.size)
        passed = {program: verdict.passed for program, verdict in zip(programs, ran, strict=True)}
        return [passed[grade] if isinstance(grade, Program) else grade for grade in grades]


def chatcore(results: Mapping[str, TaskResult]) -> Figure:
    """ChatCORE: the mean over its six tasks of how far the model is above guessing."""
    return mean([results[name].centered for name in CHATCORE])
