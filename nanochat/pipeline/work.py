"""The work of each stage in figures: steps, tokens, FLOPs, bytes. Exact where the declaration, or what is in the store,
decides them; else by the sizes that the public data sets have. Imports no torch.

    work = work_of(spec, graph, "mid", Known(artifacts))
    work.steps, work.tokens, work.flops
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from nanochat.data.hub_access import HubAccess
from nanochat.model.sizes import flops_per_token, parameters
from nanochat.parse.address import local_path
from nanochat.pipeline.graph import Graph, Output
from nanochat.pipeline.resolve import CHARACTERS_PER_TOKEN, scaling
from nanochat.pipeline.task_selection import choice_tasks, find_task
from nanochat.spec.fields import MOST
from nanochat.spec.pipeline import TRAINING, PipelineSpec
from nanochat.spec.sources import PUBLIC_HUB, Sources
from nanochat.spec.training import MixturePart, RlStage, SftStage
from nanochat.storage import Artifacts, Manifest

# Rows and megabytes of the public data sets' splits, and tokens of a row with the speedrun's vocabulary.
ROWS = {
    "smoltalk": {"train": 460_341, "test": 24_229}, "mmlu": {"auxiliary-train": 99_842, "test": 14_042},
    "gsm8k": {"train": 7_473, "test": 1_319}, "arc-easy": {"train": 2_251, "test": 2_376},
    "arc-challenge": {"train": 1_119, "test": 1_172}, "humaneval": {"test": 164}, "identity": {"train": 1_000},
}  # fmt: skip
ROW_TOKENS = {
    "smoltalk": 730, "mmlu": 330, "gsm8k": 210, "arc-easy": 90, "arc-challenge": 100, "humaneval": 250,
    "identity": 220, "simple-spelling": 50, "spelling-bee": 240,
}  # fmt: skip
MEGABYTES = {"smoltalk": 1000, "mmlu": 52, "gsm8k": 3, "humaneval": 1, "identity": 3}
UNKNOWN_ROWS, UNKNOWN_TOKENS, UNKNOWN_MEGABYTES = 1000, 200, 5
BYTES_A_CHARACTER = 0.38  # of text in a compressed shard
BUNDLE_BYTES, RANKS_BYTES = 162_000_000, 1_500_000
CORE_ITEMS, CORE_TASKS = 88_000, 22  # of the evaluation bundle
CORE_CHARACTERS, CORE_ROOM = 2300, 0.75  # of an item: what its choices share, and they; of the context at most
CHARACTERS_A_CORE = 500_000_000  # of text that one core tokenizes in a few minutes
PADDED = 2.0  # rows of many lengths, beside their mean
STATE_BYTES = 16  # a parameter's weights and optimizer in a checkpoint
PATIENCE = 3.0  # seconds that a mirror is waited for
SAMPLED_ROWS = 32  # of a generated task, by which the length of its rows is guessed


@dataclass(frozen=True, slots=True)
class Work:
    """Amounts of one stage. Tokens are rounded where they are guessed."""

    steps: int = 0  # of the optimizer
    tokens: int = 0  # trained on, evaluated, or made
    flops: float = 0.0
    trained: float = 0.0  # tokens that go forward and backward
    read: float = 0.0  # tokens that only go forward
    drawn: float = 0.0  # tokens that are sampled,
    calls: float = 0.0  # in so many passes one after the other
    characters: float = 0.0  # of text that is made, learned or encoded
    shards: int = 0  # outputs that are missing of a stage that makes many
    download: int = 0  # bytes
    stored: int = 0  # bytes, without checkpoints


@dataclass(slots=True)
class Known:
    """Sizes of data, as far as the store has seen them."""

    artifacts: Artifacts | None = None
    asks: bool = False  # whether mirrors may be asked for sizes
    _manifests: dict[str, dict[str, Manifest]] = field(default_factory=dict)
    _sizes: dict[str, int | None] = field(default_factory=dict)  # by address

    def mirrored(self, url: str) -> int | None:
        """Bytes of a file in a mirror, a folder of this machine or a server that is not the public hub; None where that
        is not known."""
        if url not in self._sizes:
            path = local_path(url)
            if path is not None:
                self._sizes[url] = path.stat().st_size if path.is_file() else None
            else:
                self._sizes[url] = asked_size(url) if self.asks and not url.startswith(PUBLIC_HUB) else None
        return self._sizes[url]

    def newest(self, kind: str) -> dict[str, Manifest]:
        """The newest manifests of a kind, by the artifact's name."""
        if kind not in self._manifests:
            found = self.artifacts.recent(kind) if self.artifacts else ()
            self._manifests[kind] = {str(m.recipe.get("name")): m for m in reversed(found)}
        return self._manifests[kind]

    def rows(self, task: str, split: str) -> int:
        """Rows of a task's split."""
        found = self.newest("task-data").get(task)
        counted = (found.metadata.get("rows") or {}).get(split) if found else None
        if isinstance(counted, int):
            return counted
        kind = find_task(task)
        if kind.files and task not in ("simple-spelling", "spelling-bee"):
            return ROWS.get(task, {}).get(split, UNKNOWN_ROWS)
        try:
            return len(kind(Path(), split))
        except (OSError, ValueError, LookupError):
            return UNKNOWN_ROWS

    def row_tokens(self, task: str, split: str, vocabulary: int) -> float:
        """Tokens of a conversation."""
        found = self.newest("chat-tokens").get(f"{task}-{split}")
        if found and found.metadata.get("rows"):
            return float(found.metadata["tokens"]) / float(found.metadata["rows"])
        scale = characters_a_token(65_536) / characters_a_token(vocabulary)
        kind = find_task(task)
        if kind.files or task in ROW_TOKENS:
            return ROW_TOKENS.get(task, UNKNOWN_TOKENS) * scale
        rows = kind(Path(), split)
        messages = [rows[i].messages for i in range(min(SAMPLED_ROWS, len(rows)))]
        count = sum(len(_text(m["content"])) / characters_a_token(vocabulary) + 2 for row in messages for m in row)
        return 1 + count / max(1, len(messages))


def asked_size(url: str) -> int | None:
    """Bytes of a file on a server by its own word; None where it does not say."""
    import httpx

    if not url.startswith(("http://", "https://")):
        return None
    try:
        answer = httpx.head(url, follow_redirects=True, timeout=PATIENCE)
        size = int(answer.headers.get("Content-Length", "0")) if answer.is_success else 0
    except (httpx.HTTPError, ValueError):
        return None
    return size if 0 < size < MOST else None


def _text(content: object) -> str:
    parts = content if isinstance(content, list) else [{"text": content}]
    return "".join(str(part["text"]) for part in parts)


def characters_a_token(vocabulary: int) -> float:
    """Characters that a token of a vocabulary of this size stands for, of English text."""
    return max(1.5, CHARACTERS_PER_TOKEN - 0.29 * math.log2(65_536 / vocabulary))


@dataclass(frozen=True)
class Sizing:
    """The work of the stages of one pipeline."""

    spec: PipelineSpec
    graph: Graph
    known: Known

    @cached_property
    def _sources(self) -> Sources:
        return HubAccess.of().located(self.spec.sources)

    @cached_property
    def _shard_characters(self) -> float:
        """Characters of a shard of text: by the size of a mirror's file, where there is one."""
        text = self._sources.text
        found = None
        if text.kind == "hub" and self.graph.horizon.shards:
            base = (text.base or self._sources.hub).rstrip("/")
            index = self.graph.horizon.shards[0]
            found = self.known.mirrored(f"{base}/{text.path.format(revision=text.revision, index=index)}")
        return found / BYTES_A_CHARACTER if found else float(text.characters_per_shard)

    @property
    def _shard_tokens(self) -> float:
        """Tokens of a shard of text."""
        return self._shard_characters / characters_a_token(self.spec.stages.tokenizer.vocab_size)

    def _task_bytes(self, task: str) -> float:
        """Bytes of a task's files."""
        files = {file for split in find_task(task).files.values() for file in split}
        hub = [file for file in files if file.source == "hub"]
        base = self._sources.hub.rstrip("/")
        sizes = [self.known.mirrored(f"{base}/{file.at(self._sources.hub_revision)}") for file in hub]
        if hub and all(sizes):
            return float(sum(filter(None, sizes)))
        return 1e6 * MEGABYTES.get(task, UNKNOWN_MEGABYTES)

    def work(self, stage: str, missing: Sequence[Output]) -> Work:
        """The work of a stage that has to make these outputs."""
        make = {
            "dataset": self._dataset, "tokenizer": self._tokenizer, "tokens": self._tokens,
            "eval-base": self._eval_base,
            "report": _small, "release": _small,
        }.get(stage)  # fmt: skip
        if make is not None:
            return make(missing)
        return self._training(stage) if stage in TRAINING else self._eval_chat(stage)

    # ---- data -------------------------------------------------------------------------------------------------------

    def _dataset(self, missing: Sequence[Output]) -> Work:
        download, characters = 0.0, 0.0
        for out in missing:
            if out.kind == "text":
                characters += self._shard_characters
                generated = self.spec.sources.text.kind != "hub"
                download += 0 if generated else self._shard_characters * BYTES_A_CHARACTER
            elif out.kind == "eval-bundle":
                download += BUNDLE_BYTES
            elif out.kind == "encodings":
                download += RANKS_BYTES
            else:
                download += self._task_bytes(out.name)
        generated = self.spec.sources.text.kind != "hub"
        stored = download + (characters * BYTES_A_CHARACTER if generated else 0)
        return Work(
            characters=characters if generated else 0.0, download=round(download), stored=round(stored),
            shards=len(missing),
        )  # fmt: skip

    def _tokenizer(self, missing: Sequence[Output]) -> Work:
        if self.spec.stages.initial_model:
            return Work()
        there = self._shard_characters * len(self.graph.horizon.shards)
        return Work(characters=min(there, self.spec.stages.tokenizer.max_chars), stored=100_000)

    def _tokens(self, missing: Sequence[Output]) -> Work:
        vocabulary = self.spec.stages.tokenizer.vocab_size
        text = sum(out.kind == "text-tokens" for out in missing)
        tokens = text * self._shard_tokens
        characters, stored = text * self._shard_characters, 2 * tokens
        for out in missing:
            if out.kind == "chat-tokens":
                task, split = str(out.recipe["task"]), str(out.recipe["split"])
                there, wanted = self.known.rows(task, split), out.recipe["rows"]
                rows = there if wanted is None else min(int(str(wanted)), there)
                count = rows * self.known.row_tokens(task, split, vocabulary)
                tokens, stored = tokens + count, stored + 3 * count
                characters += count * characters_a_token(vocabulary)
        return Work(tokens=round(tokens), characters=characters, stored=round(stored), shards=len(missing))

    def _mixture(self, parts: Iterable[MixturePart]) -> tuple[int, float]:
        """Conversations and tokens of one epoch."""
        rows, tokens = 0, 0.0
        for part in parts:
            there = self.known.rows(part.task, part.split)
            count = (there if part.rows is None else min(part.rows, there)) * part.epochs
            rows += count
            tokens += count * self.known.row_tokens(part.task, part.split, self.graph.horizon.model.vocab_size)
        return rows, tokens

    # ---- training ---------------------------------------------------------------------------------------------------

    def _training(self, stage: str) -> Work:
        settings, horizon = getattr(self.spec.stages, stage), self.graph.horizon
        length, calls, drawn, read = horizon.model.sequence_length, 0.0, 0.0, 0.0
        if isinstance(settings, RlStage):
            rows, mixed = self._mixture(settings.tasks)
            steps = settings.steps or math.ceil(rows * settings.epochs / settings.prompts_per_step)
            samples = settings.prompts_per_step * settings.samples_per_prompt
            problems = min(settings.eval_rows, sum(self.known.rows(part.task, "test") for part in settings.tasks))
            asked = problems * settings.eval_samples * _times(settings.eval_every, steps)
            row = mixed / max(1, rows)
            drawn = (samples * steps + asked) * min(settings.max_new_tokens, row / 2)
            calls = drawn / min(samples, settings.device_batch_size * settings.nodes * settings.processes)
            tokens, read = samples * steps * min(length, row), (samples * steps + asked) * row / 2
        elif isinstance(settings, SftStage):
            rows, mixed = self._mixture(settings.mixture)
            steps = settings.steps or math.ceil(rows * settings.epochs / settings.rows_per_step)
            each = min(float(length), PADDED * mixed / max(1, rows))
            tokens = steps * settings.rows_per_step * each
            read = settings.eval_rows * each * _times(settings.eval_every, steps)
            read += self._choices(settings.tasks_rows) * _between(settings.tasks_every, steps)
        elif stage == "mid":
            batch = settings.total_batch_tokens
            steps = settings.steps or max(1, math.ceil(self._mixture(settings.mixture)[1] / batch))
            tokens = float(steps * batch)
            read = settings.eval_tokens * _times(settings.eval_every, steps)
        else:
            steps, tokens = horizon.steps, float(horizon.steps * scaling(self.spec).batch_tokens)
            read = min(settings.eval_tokens, self._shard_tokens) * _times(settings.eval_every, steps)
            if self.spec.stages.eval_base.enabled and self.spec.stages.eval_base.core:
                read += self._core(settings.core_max_per_task) * _between(settings.core_every, steps)
        flops = flops_per_token(horizon.model)
        return Work(
            steps=steps,
            tokens=round(tokens),
            flops=flops * tokens,
            trained=tokens,
            read=read,
            drawn=drawn,
            calls=calls,
            stored=4 * parameters(horizon.model),
        )

    @property
    def checkpoint_bytes(self) -> int:
        """Of one checkpoint of a stage that trains."""
        return STATE_BYTES * parameters(self.graph.horizon.model)

    # ---- evaluation -------------------------------------------------------------------------------------------------

    def _eval_base(self, missing: Sequence[Output]) -> Work:
        settings = self.spec.stages.eval_base
        read = 2 * min(settings.bits_per_byte_tokens, self._shard_tokens)
        return self._evaluation(read + (self._core(settings.core_max_per_task) if settings.core else 0.0), 0.0, 1)

    def _core(self, most: int | None) -> float:
        """Tokens that are read for CORE."""
        model, items = self.graph.horizon.model, min(CORE_ITEMS, CORE_TASKS * (most or CORE_ITEMS))
        return items * min(CORE_ROOM * model.sequence_length, CORE_CHARACTERS / characters_a_token(model.vocab_size))

    def _choices(self, most: int) -> float:
        """Tokens that are read for the tasks of multiple choice while sft trains."""
        model = self.graph.horizon.model
        return sum(
            min(most, self.known.rows(task, "test"))
            * min(model.sequence_length, self.known.row_tokens(task, "test", model.vocab_size))
            for task in choice_tasks(self.spec)
        )

    def _eval_chat(self, stage: str) -> Work:
        settings, length = self.spec.stages.eval_chat, self.graph.horizon.model.sequence_length
        read, drawn = 0.0, float(len(settings.sample_prompts) * settings.max_new_tokens)
        for part in settings.tasks:
            limits = (part.rows, settings.max_per_task, self.known.rows(part.task, "test"))
            items = min(limit for limit in limits if limit is not None)
            row = min(length, self.known.row_tokens(part.task, "test", self.graph.horizon.model.vocab_size))
            draws = find_task(part.task).kind != "choice"
            read += items * (row / 2 if draws else row)
            drawn += items * settings.samples * min(row / 2, settings.max_new_tokens) * draws
        return self._evaluation(read, drawn, settings.device_batch_size * settings.processes)

    def _evaluation(self, read: float, drawn: float, rows: int) -> Work:
        flops = flops_per_token(self.graph.horizon.model) / 3 * (read + drawn)
        return Work(
            tokens=round(read + drawn), flops=flops, read=read, drawn=drawn, calls=drawn / rows, stored=1_000_000
        )


def text_cores(spec: PipelineSpec, shards: int) -> int:
    """Cores with which a pod learns and encodes so many shards of text in a few minutes."""
    return min(16, max(1, math.ceil(spec.sources.text.characters_per_shard * shards / CHARACTERS_A_CORE)))


def _times(every: int, steps: int) -> int:
    """How often something is measured: after each so many steps, and at the end."""
    return math.ceil(steps / every) if every else 0


def _between(every: int, steps: int) -> int:
    """How often something is measured: after each so many steps, but not at the end."""
    return (steps - 1) // every if every and steps else 0


def _small(missing: Sequence[Output]) -> Work:
    return Work(stored=1_000_000)
