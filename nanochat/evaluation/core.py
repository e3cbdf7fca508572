"""CORE: the mean over 22 tasks of how far a base model is above guessing (DCLM, arXiv 2406.11794).

    result = measure_core(model, tokenizer, load_tasks(folder), batch_size=32, world=world)
    result.core.value, result.tasks["piqa"].accuracy.value

Right is, with choices, the least mean loss over what is scored; without, a greedy choice equal to every token of it.
A sequence longer than the model's context loses its beginning. Sequences of like length share a batch, and logits
are computed only where they are scored.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from nanochat.evaluation.core_tasks import CoreTask, Example, Span
from nanochat.evaluation.figure import Figure, centered, mean, proportion
from nanochat.model.transformer import Transformer
from nanochat.runtime.distributed import World
from nanochat.tokenizer import Tokenizer

CHUNK = 64  # examples that are rendered and sorted by length together, and between two signs of life
SCORED = 1024  # positions whose logits are held at once


@dataclass(frozen=True, slots=True)
class TaskResult:
    """One task's figures."""

    accuracy: Figure
    centered: Figure
    shots: int
    baseline: float


@dataclass(frozen=True, slots=True)
class CoreResult:
    """CORE and what it is the mean of."""

    core: Figure
    tasks: Mapping[str, TaskResult]


@dataclass(frozen=True, slots=True)
class Score:
    """How a model takes the scored tokens of one sequence."""

    loss: float  # mean nats
    exact: bool  # whether each is the likeliest


def measure_core(
    model: Transformer,
    tokenizer: Tokenizer,
    tasks: Sequence[CoreTask],
    *,
    batch_size: int,
    world: World,
    most: int | None = None,
    tick: Callable[[str, int], None] = lambda label, done: None,
) -> CoreResult:
    """CORE over `most` examples of each task (by default all), divided among the ranks.

    `tick` is called with a task's label and this rank's examples since the last call.
    """
    results: dict[str, TaskResult] = {}
    for task in tasks:
        mine = task.examples(most)[world.rank :: world.size]
        right = 0
        for start in range(0, len(mine), CHUNK):
            chunk = mine[start : start + CHUNK]
            right += sum(judge(model, tokenizer, task, chunk, batch_size=batch_size))
            tick(task.label, len(chunk))
        accuracy = proportion(*world.sum(right, len(mine)))
        results[task.label] = TaskResult(accuracy, centered(accuracy, task.baseline), task.shots, task.baseline)
    return CoreResult(mean([result.centered for result in results.values()]), results)


def judge(
    model: Transformer, tokenizer: Tokenizer, task: CoreTask, examples: Sequence[Example], *, batch_size: int
) -> list[bool]:
    """Whether the model is right, for each example."""
    options = [task.sequences(tokenizer, example) for example in examples]
    scores = iter(score(model, [span for spans in options for span in spans], batch_size=batch_size))
    verdicts = []
    for example, spans in zip(examples, options, strict=True):
        found = [next(scores) for _ in spans]
        if task.kind == "language_modeling":
            verdicts.append(found[0].exact)
        else:
            best = min(range(len(found)), key=lambda i: found[i].loss)
            verdicts.append(best == example.item["gold"])
    return verdicts


@torch.inference_mode()
def score(model: Transformer, spans: Sequence[Span], *, batch_size: int) -> list[Score]:
    """Scores in the order of the spans. `batch_size` is the number of rows at the model's full context."""
    length = model.config.sequence_length
    cut = [cut_left(span, length) for span in spans]
    scores: dict[int, Score] = {}
    for batch in by_length([len(span.ids) - 1 for span in cut], most=batch_size * length):
        scores.update(zip(batch, _score_batch(model, [cut[i] for i in batch]), strict=True))
    return [scores[i] for i in range(len(spans))]


def cut_left(span: Span, length: int) -> Span:
    """The last `length` + 1 tokens, which `length` inputs predict; the first of them is never scored."""
    dropped = max(0, len(span.ids) - (length + 1))
    return Span(span.ids[dropped:], max(1, span.start - dropped))


def by_length(lengths: Sequence[int], *, most: int) -> Iterator[list[int]]:
    """Indices in batches of like lengths, longest first, of at most `most` tokens with padding."""
    order = sorted(range(len(lengths)), key=lambda i: -lengths[i])
    while order:
        rows = max(1, most // max(1, lengths[order[0]]))
        yield order[:rows]
        order = order[rows:]


def _score_batch(model: Transformer, spans: Sequence[Span]) -> list[Score]:
    """One forward pass; attention is causal, so what pads a row's end changes nothing before it."""
    device, width = model.device, max(len(span.ids) for span in spans) - 1
    inputs = torch.zeros(len(spans), width, dtype=torch.int64)
    rows, columns, targets = [], [], []
    for row, span in enumerate(spans):
        inputs[row, : len(span.ids) - 1] = torch.tensor(span.ids[:-1])
        rows += [row] * (len(span.ids) - span.start)
        columns += range(span.start - 1, len(span.ids) - 1)  # the position before predicts
        targets += span.ids[span.start :]
    hidden = model.hidden(inputs.to(device))  # (B, T, D)
    scored = hidden[torch.tensor(rows, device=device), torch.tensor(columns, device=device)]  # (N, D)
    losses, exact = _losses(model, scored, torch.tensor(targets, device=device))  # (N,) each
    sizes = [len(span.ids) - span.start for span in spans]
    return [
        Score(float(loss.double().mean()), bool(right.all()))
        for loss, right in zip(losses.split(sizes), exact.split(sizes), strict=True)
    ]


def _losses(model: Transformer, hidden: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """hidden (N, D), targets (N,) -> nats (N,) and whether the target is the likeliest (N,)."""
    losses, exact = [], []
    for states, wanted in zip(hidden.split(SCORED), targets.split(SCORED), strict=True):
        logits = model.logits(states)  # (n, V)
        losses.append(F.cross_entropy(logits, wanted, reduction="none").cpu())
        exact.append((logits.argmax(dim=-1) == wanted).cpu())
    return torch.cat(losses), torch.cat(exact)
