"""The dataset stage: text shards, the files of every task, the evaluation bundle and the peers' vocabularies.

Each is an artifact of its own, committed as soon as it is there and verified, so that a run that was stopped goes on
with what is missing. Several are fetched at once.
"""

from __future__ import annotations

import logging
import shutil
import sys
import tempfile
import threading
import time
from collections.abc import Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from pathlib import Path
from typing import Any

from nanochat.data.bundle import fetch_bundle
from nanochat.data.hub import Hub, Retry
from nanochat.data.hub_access import HubAccess
from nanochat.data.own_text import EVERY, Part, dealt, read_documents
from nanochat.data.text import TextStatistics, check_text_shard, until, write_text_shard
from nanochat.data.text_files import SETTING, local_files, stored_files
from nanochat.data.verify import DamagedFile, WrongFile, check_parquet
from nanochat.evaluation.core_tasks import load_tasks
from nanochat.parse.address import FILE, local_path, resolve, shown
from nanochat.pipeline.changed_sources import Source, fingerprint, shard_source, source_of
from nanochat.pipeline.graph import Output
from nanochat.pipeline.resolve import horizon
from nanochat.pipeline.task_selection import find_task
from nanochat.spec.errors import NanochatError, Stopped, UserError
from nanochat.spec.pipeline import PipelineSpec
from nanochat.spec.sources import Sources, TextSource
from nanochat.stages.context import StageContext
from nanochat.storage import Profile
from nanochat.storage.backends import SCHEMES
from nanochat.tokenizer.compression import read_ranks
from tasks.task import DataError
from tasks.world.text import documents

log = logging.getLogger(__name__)

OPTIONAL_SECONDS = 20.0
LARGEST_RANKS = 64 << 20  # bytes of a peer's vocabulary
LARGEST_FILE = 16 << 30  # bytes of one file of a task, or of one shard of text


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
    access = HubAccess.of()
    sources = access.located(context.spec.sources)
    hub = Hub(watch=watch, store=Profile(**context.plan.profile), access=access)
    with hub, ThreadPoolExecutor(context.spec.sources.parallel_downloads) as pool:
        waiting: set[Future[None]] = {pool.submit(_make, context, sources, hub, out) for out in context.outputs}
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


def _make(context: StageContext, sources: Sources, hub: Hub, output: Output) -> None:
    with context.writer(output) as writer:
        metadata = make_files(context.spec, sources, hub, output, writer.folder)
        context.commit(writer, output, metadata)


def make_files(spec: PipelineSpec, sources: Sources, hub: Hub, output: Output, folder: Path) -> dict[str, Any]:
    """The verified files of one output in a folder -> the artifact's metadata."""
    makers = {"text": _text, "task-data": _task, "eval-bundle": _bundle, "encodings": _encodings}
    return makers[output.kind](spec, sources, hub, output, folder)


def _text(spec: PipelineSpec, sources: Sources, hub: Hub, output: Output, folder: Path) -> dict[str, Any]:
    index = int(output.recipe["index"])
    target = folder / "shard.parquet"
    if sources.text.kind == "world":
        # Far more documents than any shard takes: it ends at its number of characters.
        write_text_shard(target, until(documents(index, sys.maxsize), sources.text.characters_per_shard))
        found = check_text_shard(target)
    elif sources.text.kind == "files":
        return _own_text(spec, sources.text, hub, index, target)
    else:
        source = shard_source(sources, index)
        seen: list[TextStatistics] = []
        hub.fetch(
            source.address,
            target,
            setting=source.setting,
            check=lambda path: seen.append(check_text_shard(path)),
            limit=LARGEST_FILE,
        )
        found = seen[0]
    if not found.characters:
        raise UserError(f"text shard {index} has no text: correct sources.text")
    return {"documents": found.documents, "characters": found.characters}


def _own_text(spec: PipelineSpec, text: TextSource, hub: Hub, index: int, target: Path) -> dict[str, Any]:
    """One shard of files of the user's: they are all read for each."""
    assert text.files is not None
    shards = horizon(spec).shards
    part = Part(held_out=True) if index not in shards else Part(shards.index(index), len(shards))
    address = resolve(text.files, FILE)
    with tempfile.TemporaryDirectory(dir=target.parent) as beside:
        if address.path is not None:
            paths = local_files(address.path)
        else:
            found = stored_files(text.files, hub.store) if address.scheme in SCHEMES else [text.files]
            paths = [Path(beside) / f"{number:06d}-{url.rpartition('/')[2]}" for number, url in enumerate(found)]
            for url, path in zip(found, paths, strict=True):
                hub.fetch(url, path, setting=SETTING, limit=LARGEST_FILE)
        source = fingerprint(paths)
        try:
            write_text_shard(target, _watched(dealt(read_documents(paths, column=text.column), part), hub))
        except WrongFile as error:
            raise UserError(f"{error.message}: correct it, {SETTING} or sources.text.column") from None
        except OSError as error:
            raise UserError(f"{SETTING}: {error.filename or text.files} cannot be read: {error.strerror}") from None
    made = check_text_shard(target)
    if not made.characters:
        least = 1 if part.held_out else part.of + 1 + part.of // (EVERY - 1)
        raise UserError(
            f"{text.files} has too few documents: of {EVERY} one is held out, and each of {part.of} training shards "
            f"needs one: give at least {least}, or lower sources.text.shards"
        )
    return {"documents": made.documents, "characters": made.characters, "source": source}


def _watched(documents: Iterable[str], hub: Hub) -> Iterator[str]:
    """The documents, between which the stage may be stopped."""
    for text in documents:
        hub.watch(0)
        yield text


def _task(spec: PipelineSpec, sources: Sources, hub: Hub, output: Output, folder: Path) -> dict[str, Any]:
    """The files of a task, every row of them read as training and evaluation will."""
    task = find_task(output.name)
    places: dict[str, Source] = {}
    for file in sorted({file for split in task.files.values() for file in split}, key=lambda file: file.local):
        source = places[file.local] = source_of(spec, sources, file)
        check = check_parquet if file.local.endswith(".parquet") else None
        hub.fetch(source.address, folder / file.local, setting=source.setting, check=check, limit=LARGEST_FILE)
    try:
        return {"rows": {split: task(folder, split).check() for split in task.splits}}
    except DataError as error:
        source = places.get(error.path.name)
        line = f", line {error.line}" if error.line is not None else ""
        if source is None:
            raise UserError(str(error)) from None
        where = f"{shown(source.address)}{line}"
        raise UserError(f"{where}: {error.problem}: correct it, or {source.setting}") from None


def _bundle(spec: PipelineSpec, sources: Sources, hub: Hub, output: Output, folder: Path) -> dict[str, Any]:
    url = sources.eval_bundle.url
    files = fetch_bundle(hub, url, folder, setting="sources.evalBundle.url")
    path = local_path(url)
    noted = {"source": fingerprint([path])} if path is not None and path.is_file() else {}
    return {"files": files, "items": {task.label: task.size() for task in load_tasks(folder)}} | noted


def _encodings(spec: PipelineSpec, sources: Sources, hub: Hub, output: Output, folder: Path) -> dict[str, Any]:
    """The peers' vocabularies, for the compression table alone: they are waited for a few seconds, and once.

    One that cannot be had is left out, which the artifact remembers and the report says.
    """
    places = {
        "r50k_base.tiktoken": (sources.encodings.gpt2, "sources.encodings.gpt2"),
        "cl100k_base.tiktoken": (sources.encodings.gpt4, "sources.encodings.gpt4"),
    }
    missing = dict.fromkeys(places, f"it did not come within {OPTIONAL_SECONDS:g} s")
    with tempfile.TemporaryDirectory() as beside:  # what comes later is in no artifact
        threads = [
            # Looking up a host's name cannot be interrupted, so threads are left behind where it hangs.
            threading.Thread(target=_optional, args=(missing, Path(beside) / name, *place), daemon=True)
            for name, place in places.items()
        ]
        for thread in threads:
            thread.start()
        deadline = time.monotonic() + OPTIONAL_SECONDS
        while any(thread.is_alive() for thread in threads) and time.monotonic() < deadline:
            threads[0].join(0.05)
            hub.watch(0)
        without = dict(missing)
        for name in places.keys() - without:
            shutil.move(Path(beside) / name, folder / name)
    for name, why in sorted(without.items()):
        log.warning("the compression table goes without %s: %s", name, why)
    return {"missing": without}


def _optional(missing: dict[str, str], target: Path, url: str, setting: str) -> None:
    """Fetch a file that nothing depends on; `missing` has why it is not there."""
    try:
        with Hub(retry=Retry(attempts=2, longest_asked=5.0, timeout=5.0)) as hub:
            hub.fetch(url, target, setting=setting, check=_check_ranks, limit=LARGEST_RANKS)
        del missing[target.name]
    except NanochatError as error:
        missing[target.name] = error.message
    except OSError:
        pass  # it came too late


def _check_ranks(path: Path) -> None:
    try:
        read_ranks(path)
    except ValueError as error:
        raise DamagedFile(str(error)) from error
