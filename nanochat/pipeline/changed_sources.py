"""Local sources whose content is another one than what was taken in under the same name and revision.

    for sentence in changed_sources(spec, graph, artifacts): log.warning(sentence)

Keys hold names and revisions, so that what was taken in stays in use until the revision changes: that is said here.
A file is read only where its size is the same and it was written since.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from nanochat.data.text_files import local_files
from nanochat.parse.address import local_path
from nanochat.pipeline.graph import Graph, Output
from nanochat.pipeline.task_selection import find_task
from nanochat.spec.errors import UserError
from nanochat.spec.pipeline import PipelineSpec
from nanochat.spec.sources import Sources
from nanochat.storage import files
from nanochat.storage.artifacts import Artifacts
from nanochat.storage.manifest import Manifest
from tasks.task import SourceFile

SHOWN = 5  # files that are named


@dataclass(frozen=True, slots=True)
class Source:
    """A file's address, the setting that names it, and the setting whose value has to change with the content."""

    address: str
    setting: str
    revision: str


def source_of(spec: PipelineSpec, sources: Sources, file: SourceFile) -> Source:
    """The source of a task's file."""
    if file.source == "words":
        return Source(sources.words.url, "sources.words.url", "sources.words.revision")
    if file.source == "identity":
        if own := spec.stages.mid.identity:
            return Source(own, "stages.mid.identity", "stages.mid.identity")
        return Source(sources.identity.url, "sources.identity.url", "sources.identity.revision")
    address = f"{sources.hub.rstrip('/')}/{file.at(sources.hub_revision)}"
    return Source(address, "sources.hub", "sources.hubRevision")


def shard_source(sources: Sources, index: int) -> Source:
    """The source of a shard of text."""
    base = (sources.text.base or sources.hub).rstrip("/")
    path = sources.text.path.format(revision=sources.text.revision, index=index)
    return Source(f"{base}/{path}", "sources.text", "sources.text.revision")


def changed_sources(spec: PipelineSpec, graph: Graph, artifacts: Artifacts) -> list[str]:
    """A sentence on each local file that has changed; the first few, and how many more there are."""
    sources = spec.sources.located()
    if "dataset" not in graph.stages or not sources.local():
        return []
    found: list[str] = []
    for output in graph.node("dataset").outputs:
        places = list(_places(spec, sources, output))
        if not places or (manifest := artifacts.find(output.kind, output.key)) is None:
            continue
        for source, name in places:
            with suppress(OSError, UserError):  # it is gone, which is no matter
                if _changed(source, name, manifest):
                    found.append(
                        f"{source.address} is not what was taken in from it: the former content is used until "
                        f"{source.revision} changes"
                    )
    found = list(dict.fromkeys(found))
    more = [f"{len(found) - SHOWN} more files of the sources have changed"] if len(found) > SHOWN else []
    return found[:SHOWN] + more


def _places(spec: PipelineSpec, sources: Sources, output: Output) -> Iterator[tuple[Source, str]]:
    """The local sources of an output, each with the file of the artifact that is its copy; '' where there is none."""
    found: list[tuple[Source, str]] = []
    if output.kind == "text" and sources.text.kind == "hub":
        found = [(shard_source(sources, int(output.recipe["index"])), "shard.parquet")]
    elif output.kind == "text" and sources.text.files:
        found = [(Source(sources.text.files, "sources.text.files", "sources.text.revision"), "")]
    elif output.kind == "task-data":
        copied = {file for split in find_task(output.name).files.values() for file in split}
        found = [(source_of(spec, sources, file), file.local) for file in copied]
        found = [item for item in found if item[0].setting != "stages.mid.identity"]  # whose content is in the key
    elif output.kind == "eval-bundle":
        url = sources.eval_bundle.url
        found = [(Source(url, "sources.evalBundle.url", "sources.evalBundle.revision"), "")]
    yield from (item for item in found if local_path(item[0].address) is not None)


def _changed(source: Source, name: str, manifest: Manifest) -> bool:
    path = local_path(source.address)
    assert path is not None
    if manifest.kind == "eval-bundle" and not urlsplit(source.address).path.endswith(".zip"):
        return any(_is_other(path / f.path, f.size, f.sha256, manifest.created) for f in manifest.files)
    if name:
        copy = next((file for file in manifest.files if file.path == name), None)
        return copy is not None and _is_other(path, copy.size, copy.sha256, manifest.created)
    noted = manifest.metadata.get("source")
    if not isinstance(noted, dict):  # a version before noted none
        return False
    paths = local_files(path) if manifest.kind == "text" else [path]
    if len(paths) != noted.get("files") or sum(each.stat().st_size for each in paths) != noted.get("bytes"):
        return True
    return any(_is_newer(each, manifest.created) for each in paths) and fingerprint(paths) != noted


def _is_other(path: Path, size: int, sha256: str, created: float) -> bool:
    if path.stat().st_size != size:
        return True
    return _is_newer(path, created) and files.sha256(path) != sha256


def _is_newer(path: Path, created: float) -> bool:
    stat = path.stat()
    return max(stat.st_mtime, stat.st_ctime) > created


def fingerprint(paths: Sequence[Path]) -> dict[str, int | str]:
    """The files' number, bytes and content, as an artifact notes what it was made of."""
    whole = hashlib.sha256(b"".join(bytes.fromhex(files.sha256(path)) for path in paths)).hexdigest()
    return {"files": len(paths), "bytes": sum(path.stat().st_size for path in paths), "sha256": whole}
