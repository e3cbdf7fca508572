"""CORE: the mean over 22 tasks of how far a base model is above guessing (DCLM, arXiv 2406.11794).

    result = measure_core(model, tokenizer, load_tasks(folder), batch_size=32, world=world)
    result.core.value, result.tasks["piqa"].accuracy.value

Right is, with choices, the least mean loss over what is scored; without, a greedy choice equal to every token of it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from nanochat.evaluation.core_tasks import CoreTask, Example
from nanochat.evaluation.figure import Figure, centered, mean, proportion
from nanochat.evaluation.items import Item
from nanochat.evaluation.scoring import score
from nanochat.model.transformer import Transformer
from nanochat.runtime.distributed import World
from nanochat.tokenizer import Tokenizer

PREFIX = "core/"  # of a task's name among all items: chat tasks may have the same label
CHUNK = 64  # examples that are rendered and sorted by length together, and between two signs of life


@dataclass(frozen=True, slots=True)
class TaskResult:
    """One task's figures."""

    accuracy: Figure
    centered: Figure
    shots: int
    baseline: float

    @classmethod
    def of(cls, task: CoreTask, right: float, count: float) -> TaskResult:
        """Figures of `right` items of `count`."""
        accuracy = proportion(right, count)
        return cls(accuracy, centered(accuracy, task.baseline), task.shots, task.baseline)


@dataclass(frozen=True, slots=True)
class CoreResult:
    """CORE and what it is the mean of."""

    core: Figure
    tasks: Mapping[str, TaskResult]

    @classmethod
    def of(cls, tasks: Mapping[str, TaskResult]) -> CoreResult:
        """CORE of all its tasks."""
        return cls(mean([result.centered for result in tasks.values()]), tasks)


def measure_core(
    model: Transformer,
    tokenizer: Tokenizer,
    tasks: Sequence[CoreTask],
    *,
    batch_size: int,
    world: World,
    most: int | None = None,
    tick: Callable[[str, int], None] = lambda label, done: None,
    keep: Callable[[list[Item]], None] = lambda items: None,
) -> CoreResult:
    """CORE over `most` examples of each task (by default all), divided among the ranks.

    `tick` is called with a task's label and this rank's examples since the last call, `keep` with this rank's items of
    each task.
    """
    results: dict[str, TaskResult] = {}
    for task in tasks:
        examples = dict(enumerate(task.examples(most)))
        mine = dict(list(examples.items())[world.rank :: world.size])
        items: list[Item] = []
        for chunk in judge(model, tokenizer, task, mine, batch_size=batch_size):
            items += chunk
            tick(task.label, len(chunk))
        keep(items)
        right = sum(item.right for item in items)
        results[task.label] = TaskResult.of(task, *world.sum(right, len(mine)))
    return CoreResult.of(results)


def judge(
    model: Transformer, tokenizer: Tokenizer, task: CoreTask, examples: Mapping[int, Example], *, batch_size: int
) -> Iterator[list[Item]]:
    """Judge examples, by their places in the task -> their items, a few dozen at a time."""
    places = list(examples)
    for start in range(0, len(places), CHUNK):
        chunk = places[start : start + CHUNK]
        prompts = [task.prompt(examples[place]) for place in chunk]
        scores = score(model, [task.sequences(tokenizer, prompt) for prompt in prompts], batch_size=batch_size)
        items = []
        for place, prompt, found in zip(chunk, prompts, scores, strict=True):
            if prompt.choices:
                best = min(range(len(found)), key=lambda i: found[i].loss)
                answer, right = prompt.choices[best], best == examples[place].item["gold"]
            else:
                answer, right = tokenizer.decode(found[0].likeliest), found[0].exact
            items.append(
                Item.of(
                    PREFIX + task.label,
                    place,
                    prompt=prompt.text,
                    question=prompt,
                    choices=prompt.choices,
                    scores=[-each.loss for each in found],
                    expected=prompt.expected,
                    answers=[answer],
                    verdicts=[right],
                    baseline=task.baseline,
                )
            )
        yield items
