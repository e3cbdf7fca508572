"""eval-<stage>: measures the model of a training stage and commits results.json.

Beside it lies items.jsonl: each item with its question, the model's scores or answers, and the verdict.
Base models: bits per byte on training and validation text, CORE, and what they make of a few beginnings. Chat models:
the chat tasks, ChatCORE, and answers to the pipeline's sample questions. What cannot be run is listed with its reason.
"""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import tasks
from nanochat.data.tokenfile import TokenFile
from nanochat.evaluation.bpb import bits_per_byte, text_batches
from nanochat.evaluation.chat import Chat, ChatSettings, Problems, TaskResult, chatcore
from nanochat.evaluation.core import CoreResult, measure_core
from nanochat.evaluation.core_tasks import load_tasks
from nanochat.evaluation.figure import Figure
from nanochat.evaluation.items import ITEMS, Item, ItemWriter
from nanochat.evaluation.sandbox import Sandbox
from nanochat.inference import Completion
from nanochat.model.export import load_model
from nanochat.model.speed import speed_up
from nanochat.model.transformer import Transformer
from nanochat.pipeline.resolve import shard_name
from nanochat.pipeline.task_selection import find_task, pass_metric, unmeasured
from nanochat.runtime.device import Device, choose_device
from nanochat.runtime.distributed import World, join
from nanochat.spec.errors import Stopped, UserError
from nanochat.spec.stages import CHATCORE, BaseEvaluation, ChatEvaluation
from nanochat.stages.base import continued, prompts_of
from nanochat.stages.context import StageContext
from nanochat.tokenizer import Tokenizer
from nanochat.training.attention import choose_attention

log = logging.getLogger(__name__)


@dataclass(slots=True)
class Results:
    """The content of results.json."""

    metrics: dict[str, Figure] = field(default_factory=dict)
    tasks: dict[str, dict[str, Any]] = field(default_factory=dict)
    not_run: dict[str, str] = field(default_factory=dict)
    samples: list[dict[str, Any]] = field(default_factory=list)

    def add_core(self, found: CoreResult) -> None:
        """CORE and its tasks."""
        self.metrics["core"] = found.core
        for name, task in found.tasks.items():
            self.tasks[name] = _figures(task.accuracy, task.centered, task.baseline) | {"shots": task.shots}

    def add_chat(self, measured: Mapping[str, TaskResult]) -> None:
        """Chat tasks, and ChatCORE where these are all of its six."""
        for name, result in measured.items():
            self.metrics[name] = result.accuracy
            if result.lenient is not None:
                self.metrics[f"{name}-lenient"] = result.lenient
            self.metrics |= {pass_metric(name, k): figure for k, figure in result.passes.items()}
            self.tasks[name] = _figures(result.accuracy, result.centered, result.baseline) | {"cut": result.cut}
        if missing := [name for name in CHATCORE if name not in measured]:
            self.not_run["chatcore"] = f"it is the mean over six tasks, and lacks {', '.join(missing)}"
        else:
            self.metrics["chatcore"] = chatcore(measured)

    def lines(self) -> list[str]:
        """For people: a line for each figure, and for what was not run."""
        measured = [
            f"{name}: {figure.value:.4f} +- {figure.stderr:.4f} (n {figure.n:,})"
            for name, figure in self.metrics.items()
        ]
        return measured + [f"{name}: not run, {reason}" for name, reason in self.not_run.items()]

    def to_dict(self) -> dict[str, Any]:
        return {
            "metrics": {name: figure.to_dict() for name, figure in self.metrics.items()},
            "tasks": self.tasks,
            "notRun": self.not_run,
            "samples": self.samples,
        }


@dataclass(frozen=True, slots=True)
class Subject:
    """The model that is measured, on one rank."""

    context: StageContext
    world: World
    model: Transformer
    tokenizer: Tokenizer
    step: int
    written: ItemWriter

    def keep(self, items: Sequence[Item]) -> None:
        """Write the items of a task, of all ranks."""
        gathered = [
            Item.model_validate(item) for part in self.world.gather([item.to_dict() for item in items]) for item in part
        ]
        if self.world.first:
            self.written.add(sorted(gathered, key=lambda item: item.index))

    def counter(self, phase: str, total: int) -> Callable[[int], None]:
        """Reports this rank's progress through `total` things; stops where the stage was asked to."""
        done = 0
        self.context.progress.update(phase=phase, step=0, total=total)

        def tick(more: int) -> None:
            nonlocal done
            done += more
            if self.context.stop:
                raise Stopped(f"stopped in {phase}: an evaluation begins again from its start")
            self.context.progress.update(step=done)

        return tick

    def local_count(self, count: int) -> int:
        """How many of `count` things this rank does."""
        return len(range(self.world.rank, count, self.world.size))


def run(context: StageContext) -> None:
    """Measure, then commit the results (rank 0)."""
    (output,) = context.outputs
    device = choose_device(context.settings.precision)
    work = Path(context.plan.work)
    with join(device.device, work) as world:
        folder = context.fetch(f"model/{output.name}")
        model, extra = load_measured(folder, device)
        items = work / f"rank{world.rank}-{ITEMS}"
        items.unlink(missing_ok=True)
        results = Results()
        with ItemWriter(items) as written:
            subject = Subject(context, world, model, Tokenizer.load(folder), int(extra.get("step", 0)), written)
            if output.name == "base":
                evaluate_base(subject, context.settings, results)
            else:
                evaluate_chat(subject, context.settings, results)
        if not world.first:
            return
        context.journal.metrics(subject.step, {name: figure.value for name, figure in results.metrics.items()})
        with context.writer(output) as writer:
            (writer.folder / "results.json").write_text(json.dumps(results.to_dict(), indent=2) + "\n")
            shutil.move(items, writer.folder / ITEMS)
            values = {name: figure.value for name, figure in results.metrics.items()}
            manifest = context.commit(writer, output, {"metrics": values, "step": subject.step})
        print(*results.lines(), sep="\n")
        print(f"{context.stage}: the results are in {context.artifacts.uri(manifest)}", flush=True)


def load_measured(folder: Path, device: Device) -> tuple[Transformer, dict[str, Any]]:
    """A model that is only read from now on, as fast as the device allows, and what was saved beside it."""
    model, extra = load_model(folder, device=device.device, compute_dtype=device.compute_dtype)
    model.cast_weights()
    speed_up(model)
    if model.device.type == "cpu":
        choose_attention(device, model.config).use_in(model)
    return model, extra


# ----------------------------------------------------------------------------------------------------------------
# base models


def evaluate_base(subject: Subject, settings: BaseEvaluation, results: Results) -> None:
    """Bits per byte, CORE and samples."""
    context, horizon = subject.context, subject.context.horizon
    for name, shard in (("train_bpb", horizon.shards[0]), ("val_bpb", horizon.validation_shard)):
        results.metrics[name] = _bits_per_byte(subject, settings, name, shard)
    if context.has("eval-bundle/core"):
        _core(subject, settings, results)
    results.not_run |= unmeasured(context.spec, "base")
    if subject.world.first and settings.sample_tokens:
        results.samples += _continuations(subject, settings.sample_tokens)


def _bits_per_byte(subject: Subject, settings: BaseEvaluation, name: str, shard: int) -> Figure:
    file = TokenFile(subject.context.fetch(f"text-tokens/{shard_name(shard)}"))
    length = subject.model.config.sequence_length
    tokens = min(settings.bits_per_byte_tokens, len(file) - 1)
    if tokens < length:
        raise UserError(
            f"{name} cannot be measured on {tokens} tokens of {shard_name(shard)}, for one row has {length}: give more "
            "text (sources.text), raise stages.evalBase.bitsPerByteTokens, or lower model.sequenceLength"
        )
    batches = list(
        text_batches(
            file,
            length=length,
            tokens=tokens,
            batch_size=settings.device_batch_size,
            world=subject.world,
        )
    )
    tick = subject.counter(name, len(batches))
    return bits_per_byte(
        subject.model, batches, byte_lengths=subject.tokenizer.byte_lengths(), world=subject.world, tick=lambda: tick(1)
    )


def _core(subject: Subject, settings: BaseEvaluation, results: Results) -> None:
    declared = load_tasks(subject.context.fetch("eval-bundle/core"))
    total = sum(subject.local_count(task.size(settings.core_max_per_task)) for task in declared)
    tick = subject.counter("core", total)
    found = measure_core(
        subject.model,
        subject.tokenizer,
        declared,
        batch_size=settings.device_batch_size,
        world=subject.world,
        most=settings.core_max_per_task,
        tick=lambda _, done: tick(done),
        keep=subject.keep,
    )
    results.add_core(found)


def _continuations(subject: Subject, tokens: int) -> list[dict[str, str]]:
    """The model's continuations of the beginnings that its base stage has."""
    texts = prompts_of(subject.context.spec.stages.base)
    found = continued(subject.model, subject.tokenizer, texts, tokens)
    return [{"prompt": text, "completion": said} for text, said in zip(texts, found, strict=True)]


# ----------------------------------------------------------------------------------------------------------------
# chat models


def evaluate_chat(subject: Subject, settings: ChatEvaluation, results: Results) -> None:
    """The chat tasks, ChatCORE and samples."""
    chat_settings = ChatSettings.of(settings, seed=subject.context.spec.seed)
    chat = Chat(subject.model, subject.tokenizer, chat_settings, world=subject.world)
    results.not_run |= unmeasured(subject.context.spec, subject.context.stage.removeprefix("eval-"))
    work = _chat_work(subject, settings, results)
    items: dict[str, list[Item]] = {each.task.name: [] for each in work}
    for some in chat.examine(work, tick=subject.counter("chat tasks", sum(len(each.examples) for each in work))):
        for item in some:
            items[item.task].append(item)
    measured: dict[str, TaskResult] = {}
    for each in work:
        name = each.task.name
        subject.keep(items[name])
        measured[name] = TaskResult.of(each.task, items[name], world=subject.world, pass_at=settings.pass_at)
    results.add_chat(measured)
    if subject.world.first:
        results.samples += [
            {"prompt": prompt, "completion": content(chat.ask([{"role": "user", "content": prompt}]))}
            for prompt in settings.sample_prompts
        ]


def _chat_work(subject: Subject, settings: ChatEvaluation, results: Results) -> list[Problems]:
    """This rank's problems of the tasks that can be measured; those that cannot are listed in the results."""
    work: dict[str, Problems] = {}
    for selection in settings.tasks:
        name = selection.task
        with task_errors(name):
            if name in results.not_run:
                continue
            if reason := no_sandbox(subject, name):
                results.not_run[name] = reason
                continue
            task = open_task(subject.context, name)
            rows = min(n for n in (len(task), selection.rows, settings.max_per_task) if n is not None)
            if not rows:
                raise UserError(f"task {name} has no row in its split 'test', so nothing can be measured")
            work[name] = Problems.of(task, range(subject.world.rank, rows, subject.world.size))
    return list(work.values())


def open_task(context: StageContext, name: str) -> tasks.Task:
    """The test split of a task, over its data among the inputs; generated tasks have none."""
    cls = find_task(name)
    names = [file.local for file in cls.files["test"]] if cls.files else []
    folder = context.fetch(f"task-data/{name}", names) if names else Path()
    return cls(folder, "test", seed=context.spec.seed)


def no_sandbox(subject: Subject, name: str) -> str | None:
    """Why a task whose answers are programs cannot be run here; the same on all ranks."""
    if find_task(name).kind != "program":
        return None
    return subject.world.broadcast(Sandbox().unavailable() if subject.world.first else None)


@contextmanager
def task_errors(name: str) -> Iterator[None]:
    """Damaged task data is the user's to mend, with the task's name."""
    try:
        yield
    except tasks.DataError as error:
        raise UserError(f"the data of task {name} cannot be used: {error}") from None


def content(completion: Completion) -> str | list[dict[str, str]]:
    """An answer in the shape of a message's content: text, or its parts where the tool was used."""
    if all(part.kind == "text" for part in completion.parts):
        return completion.text
    return [{"type": part.kind, "text": part.text} for part in completion.parts]


def _figures(accuracy: Figure, centered: Figure, baseline: float) -> dict[str, Any]:
    return {
        "accuracy": accuracy.value,
        "stderr": accuracy.stderr,
        "n": accuracy.n,
        "centered": centered.value,
        "baseline": baseline,
    }
