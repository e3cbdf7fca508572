"""The tokens stage: text shards and conversations as token files, so that no accelerator waits for a tokenizer.

Worker processes take an output each; what is done is committed at once, so that a run that was stopped goes on with
what is missing.
"""

from __future__ import annotations

import logging
import math
import multiprocessing
import os
import signal
from collections.abc import Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from nanochat.data.own_text import EVERY
from nanochat.data.text import read_text
from nanochat.data.tokenfile import write_conversations, write_text
from nanochat.pipeline.graph import Output
from nanochat.pipeline.orphan import die_with_parent
from nanochat.pipeline.resolve import WORKER_MEMORY, shard_name
from nanochat.pipeline.task_selection import find_task
from nanochat.runtime.cgroup import free_memory
from nanochat.runtime.threads import cores
from nanochat.spec.errors import OutOfMemory, Stopped, UserError
from nanochat.stages.context import StageContext
from nanochat.storage.artifacts import Writer
from nanochat.tokenizer import Tokenizer
from nanochat.tokenizer.chat import render_conversation
from tasks.task import DataError

log = logging.getLogger(__name__)


def run(context: StageContext) -> None:
    """Make every output that is missing."""
    room = max(1, free_memory() // WORKER_MEMORY)
    workers = min(context.settings.workers or cores(), len(context.outputs), room)
    pool = ProcessPoolExecutor(
        workers, mp_context=multiprocessing.get_context("spawn"), initializer=_start_worker, initargs=(os.getpid(),)
    )
    done = False
    try:
        tokens = _encode_all(context, pool, workers)
        done = True
    except BrokenProcessPool:
        if context.stop:
            raise Stopped("stopped: token files that are committed stay") from None
        raise OutOfMemory(
            "a worker process was ended from outside, most likely for want of memory: lower stages.tokens.workers"
        ) from None
    finally:
        # After an error this process ends, and its workers with it: work under way is not waited for.
        pool.shutdown(wait=done, cancel_futures=True)
    log.info("%d token files with %d tokens are in %s", len(context.outputs), tokens, context.store.uri("artifacts"))


def _encode_all(context: StageContext, pool: ProcessPoolExecutor, workers: int) -> int:
    """Encode all outputs, a few more at once than there are workers; returns the number of tokens."""
    # The largest first, so that no worker is left alone with one at the end.
    left = sorted(context.outputs, key=lambda out: _weight(context, out))
    running: dict[Future[dict[str, Any]], tuple[Output, Writer]] = {}
    done = tokens = 0
    context.progress.update(phase="encoding", step=0, total=len(context.outputs))
    with ExitStack() as stack:
        while left or running:
            while left and len(running) <= workers:
                output = left.pop()
                writer = stack.enter_context(context.writer(output))
                running[_submit(context, pool, output, writer.folder)] = (output, writer)
            finished, _ = wait(running, timeout=0.5, return_when=FIRST_COMPLETED)
            if context.stop:
                raise Stopped("stopped: token files that are committed stay")
            for future in finished:
                output, writer = running.pop(future)
                index = future.result()
                _check_length(context, output, index["tokens"])
                if output.kind == "text-tokens":  # its text is read once, conversations' data by several outputs
                    context.release(f"text/{output.name}")
                context.commit(writer, output, index)
                done += 1
                tokens += index["tokens"]
            context.progress.update(step=done)
    return tokens


def _check_length(context: StageContext, output: Output, tokens: int) -> None:
    """UserError where text that is measured has less than a row: now, and not after the training."""
    horizon, stages = context.horizon, context.spec.stages
    measured = [horizon.validation_shard] if stages.base.eval_every or stages.eval_base.enabled else []
    measured += horizon.shards[:1] if stages.eval_base.enabled else []
    least = horizon.model.sequence_length + 1
    if output.kind != "text-tokens" or tokens >= least or output.name not in map(shard_name, measured):
        return
    characters = int(context.manifest(f"text/{output.name}").metadata["characters"])
    what = "training" if output.name != shard_name(horizon.validation_shard) else "validation"
    own = f" (one of {EVERY} documents is held out)" if context.spec.sources.text.kind == "files" else ""
    raise UserError(
        f"the {what} text {output.name} has {tokens:,} tokens in {characters:,} characters, and a row that is measured "
        f"has {least:,}: give {what} about {math.ceil(characters * least / tokens):,} characters{own}, or set "
        f"model.sequenceLength to at most {tokens - 1:,}"
    )


def _weight(context: StageContext, output: Output) -> int:
    """About how much work an output is: bytes of what it is made from."""
    refs = [ref for ref in output.inputs if ref.kind != "tokenizer"]
    return sum(file.size for ref in refs for file in context.manifest(ref).files)


def _submit(context: StageContext, pool: ProcessPoolExecutor, output: Output, folder: Path) -> Future[dict[str, Any]]:
    tokenizer = context.fetch("tokenizer/bpe")
    if output.kind == "text-tokens":
        source = context.fetch(f"text/{output.name}") / "shard.parquet"
        return pool.submit(encode_text, source, tokenizer=tokenizer, folder=folder)
    recipe = output.recipe
    data = f"task-data/{recipe['task']}"
    return pool.submit(
        encode_conversations,
        recipe["task"],
        split=recipe["split"],
        rows=recipe["rows"],
        seed=recipe["seed"],
        data=context.fetch(data) if data in output.inputs else Path(),
        tokenizer=tokenizer,
        folder=folder,
    )


def encode_text(source: Path, *, tokenizer: Path, folder: Path) -> dict[str, Any]:
    """Write a text shard's tokens into `folder`; returns the index."""
    encoder = Tokenizer.load(tokenizer)
    texts = (text for group in read_text(source) for text in group)
    return write_text(folder, map(encoder.encode, texts), bos=encoder.bos, vocab_size=encoder.vocab_size)


def encode_conversations(
    name: str, *, split: str, rows: int | None, seed: int, data: Path, tokenizer: Path, folder: Path
) -> dict[str, Any]:
    """Write the first `rows` conversations of a task's split into `folder`; returns the index."""
    encoder = Tokenizer.load(tokenizer)
    kind = find_task(name)
    if split not in kind.splits:
        raise UserError(f"task {name} has no split '{split}': it has {', '.join(kind.splits)}")

    def rendered() -> Iterator[tuple[list[int], list[int]]]:
        task = kind(data, split, seed=seed)
        for i in range(len(task) if rows is None else min(rows, len(task))):
            row = render_conversation(encoder, task[i].messages, where=f"task {name}, split {split}, row {i}")
            yield row.ids, row.mask

    try:
        return write_conversations(folder, rendered(), special=encoder.special, vocab_size=encoder.vocab_size)
    except DataError as error:
        raise UserError(f"task {name}: {error}") from None


def _start_worker(parent: int) -> None:
    """A worker ends with its parent; an interrupt is the parent's to handle."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    die_with_parent(parent)
