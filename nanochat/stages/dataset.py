"""The dataset stage: text shards, the files of every task, the evaluation bundle and the peers' vocabularies.

Each is an artifact of its own, committed as soon as it is there and verified, so that a run that was stopped goes on
with what is missing. Several are fetched at once.
"""

from __future__ import annotations

import logging
import sys
import threading
import time
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from pathlib import Path
from typing import Any

from nanochat.data.bundle import fetch_bundle
from nanochat.data.hub import Hub
from nanochat.data.text import until, write_text_shard
from nanochat.data.verify import DamagedFile, TextStatistics, check_parquet, check_text_shard
from nanochat.parse.address import shown
from nanochat.pipeline.graph import Output
from nanochat.pipeline.task_selection import find_task
from nanochat.spec.errors import Stopped, StorageError, UserError
from nanochat.spec.sources import Sources
from nanochat.stages.context import StageContext
from nanochat.storage import Profile
from nanochat.tokenizer.compression import read_ranks
from tasks.identity import read_conversations
from tasks.task import DataError, SourceFile
from tasks.world.text import documents

log = logging.getLogger(__name__)


class Abandoned(Exception):
    """Another output of the stage failed, so this one is given up."""


class Watch:
    """Counts bytes over all transfers, and ends them when the stage has to stop or has failed."""

    def __init__(self, context: StageContext) -> None:
        self._context = context
        self._lock = threading.Lock()
        self._started = time.monotonic()
        self.abandoned = False
        self.bytes = 0

    def __call__(self, count: int) -> None:
        with self._lock:
            self.bytes += count
        if self._context.stop:
            raise Stopped("stopped between downloads: what is committed stays")
        if self.abandoned:
            raise Abandoned

    @property
    def rate(self) -> float:
        """Megabytes a second since the start."""
        return self.bytes / 1e6 / max(time.monotonic() - self._started, 1e-3)


def run(context: StageContext) -> None:
    """Make every output that is missing."""
    watch = Watch(context)
    total = len(context.outputs)
    context.progress.update(phase="fetching", step=0, total=total)
    # What a user puts into object storage lies on the server that the store is on.
    hub = Hub(watch=watch, store=Profile(**context.plan.profile))
    with hub, ThreadPoolExecutor(context.spec.sources.parallel_downloads) as pool:
        waiting: set[Future[None]] = {pool.submit(_make, context, hub, out) for out in context.outputs}
        failures: list[BaseException] = []
        done = 0
        while waiting:
            finished, waiting = wait(waiting, timeout=1.0, return_when=FIRST_COMPLETED)
            for future in finished:
                error = None if future.cancelled() else future.exception()
                if error is not None:
                    failures.append(error)
                    watch.abandoned = True
                    for other in waiting:
                        other.cancel()
                elif not future.cancelled():
                    done += 1
            context.progress.update(step=done, rates={"MB/s": watch.rate})
    causes = [error for error in failures if not isinstance(error, Abandoned)]
    if causes:
        raise min(causes, key=lambda error: not isinstance(error, UserError))
    log.info("%d data sets are in %s", total, context.store.uri("artifacts"))


def _make(context: StageContext, hub: Hub, output: Output) -> None:
    makers = {"text": _text, "task-data": _task, "eval-bundle": _bundle, "encodings": _encodings}
    sources = context.spec.sources.located()
    with context.writer(output) as writer:
        metadata = makers[output.kind](context, sources, hub, output, writer.folder)
        context.commit(writer, output, metadata)


def _text(context: StageContext, sources: Sources, hub: Hub, output: Output, folder: Path) -> dict[str, Any]:
    index = int(output.recipe["index"])
    target = folder / "shard.parquet"
    if sources.text.kind == "world":
        # Far more documents than any shard takes: it ends at its number of characters.
        write_text_shard(target, until(documents(index, sys.maxsize), sources.text.characters_per_shard))
        found = check_text_shard(target)
    else:
        base = (sources.text.base or sources.hub).rstrip("/")
        url = f"{base}/{_shard_path(sources, index)}"
        seen: list[TextStatistics] = []
        hub.fetch(url, target, setting="sources.text", check=lambda path: seen.append(check_text_shard(path)))
        found = seen[0]
    if not found.characters:
        raise UserError(f"text shard {index} has no text: correct sources.text")
    return {"documents": found.documents, "characters": found.characters}


def _shard_path(sources: Sources, index: int) -> str:
    try:
        return sources.text.path.format(revision=sources.text.revision, index=index)
    except (KeyError, IndexError, ValueError, AttributeError):
        raise UserError(
            f"sources.text.path ({sources.text.path}) may have {{revision}} and {{index}} and nothing else in braces"
        ) from None


def _task(context: StageContext, sources: Sources, hub: Hub, output: Output, folder: Path) -> dict[str, Any]:
    files = {file.local: file for split in find_task(output.name).files.values() for file in split}
    rows: dict[str, int] = {}
    for name, file in sorted(files.items()):
        url, setting = _address(context, sources, file)
        target = folder / name
        if name.endswith(".parquet"):
            seen: list[int] = []
            hub.fetch(url, target, setting=setting, check=lambda path, seen=seen: seen.append(check_parquet(path)))
            rows[name] = seen[0]
            continue
        hub.fetch(url, target, setting=setting)
        rows[name] = _identity_rows(target, url) if file.source == "identity" else _lines(target, url, setting)
    return {"rows": rows}


def _address(context: StageContext, sources: Sources, file: SourceFile) -> tuple[str, str]:
    """Where a task's file comes from, and the setting that says so."""
    if file.source == "words":
        return sources.words.url, "sources.words.url"
    if file.source == "identity":
        own = context.spec.stages.mid.identity
        return (own, "stages.mid.identity") if own else (sources.identity.url, "sources.identity.url")
    return f"{sources.hub.rstrip('/')}/{file.at(sources.hub_revision)}", "sources.hub"


def _identity_rows(path: Path, url: str) -> int:
    """The conversations of an identity file, all of them checked; UserError with file and line."""
    try:
        return len(read_conversations(path))
    except DataError as error:
        line = f", line {error.line}" if error.line is not None else ""
        raise UserError(f"{shown(url)}{line}: {error.problem}") from None


def _lines(path: Path, url: str, setting: str) -> int:
    """The lines of a text file that are not empty; UserError where there is none or it is not UTF-8."""
    try:
        count = sum(1 for line in path.read_text(encoding="utf-8").splitlines() if line.strip())
    except UnicodeDecodeError:
        raise UserError(f"{shown(url)} is not UTF-8: save it in that encoding, or correct {setting}") from None
    if not count:
        raise UserError(f"{shown(url)} is empty: correct {setting}")
    return count


def _bundle(context: StageContext, sources: Sources, hub: Hub, output: Output, folder: Path) -> dict[str, Any]:
    return {"files": fetch_bundle(hub, sources.eval_bundle.url, folder, setting="sources.evalBundle.url")}


def _encodings(context: StageContext, sources: Sources, hub: Hub, output: Output, folder: Path) -> dict[str, Any]:
    """The peers' vocabularies; one that cannot be had is left out, and the compression table says so."""
    missing: dict[str, str] = {}
    places = {
        "r50k_base.tiktoken": (sources.encodings.gpt2, "sources.encodings.gpt2"),
        "cl100k_base.tiktoken": (sources.encodings.gpt4, "sources.encodings.gpt4"),
    }
    for name, (url, setting) in places.items():
        try:
            hub.fetch(url, folder / name, setting=setting, check=_check_ranks)
        except (UserError, StorageError) as error:
            log.warning("the compression table goes without %s: %s", name, error.message)
            (folder / f"{name}.part").unlink(missing_ok=True)
            missing[name] = error.message
    return {"missing": missing}


def _check_ranks(path: Path) -> None:
    try:
        read_ranks(path)
    except ValueError as error:
        raise DamagedFile(str(error)) from error
