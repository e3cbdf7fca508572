"""Why outputs have to be made: how much is asked of the store, and how much at once."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

from nanochat.pipeline.admission import admit_local
from nanochat.pipeline.explain import NEW
from nanochat.pipeline.outputs import Outputs
from nanochat.spec.load import check_pipeline
from nanochat.storage.artifacts import AT_ONCE, RECENT, Artifacts
from nanochat.storage.folder import FolderStore
from nanochat.storage.store import Entry

T = TypeVar("T")
SHARDS = 240


class Counting(FolderStore):
    """Counts requests, and the most that were under way at once."""

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        self.lock, self.asked, self.now, self.most = threading.Lock(), 0, 0, 0

    def _counted(self, ask: Callable[[], T]) -> T:
        with self.lock:
            self.asked, self.now = self.asked + 1, self.now + 1
            self.most = max(self.most, self.now)
        time.sleep(0.001)  # others come meanwhile
        try:
            return ask()
        finally:
            with self.lock:
                self.now -= 1

    def read(self, path: str, limit: int) -> bytes:
        return self._counted(lambda: super(Counting, self).read(path, limit))

    def children(self, prefix: str = "") -> Sequence[str]:
        return self._counted(lambda: super(Counting, self).children(prefix))

    def list(self, prefix: str = "") -> Sequence[Entry]:
        return self._counted(lambda: super(Counting, self).list(prefix))


def outputs(folder: Path, *, characters: int = 1000) -> Outputs:
    """Those of a pipeline of many shards."""
    document = {
        "apiVersion": "nanochat.dev/v1alpha1",
        "kind": "ChatPipeline",
        "metadata": {"name": "x"},
        "spec": {
            "sources": {"text": {"kind": "world", "charactersPerShard": characters, "shards": SHARDS}},
            "stages": {"base": {"steps": 4}},
        },
    }
    artifacts = Artifacts(Counting(folder / "store"), folder / "cache")
    return Outputs(artifacts, admit_local(check_pipeline(document)).graph)


def explain(found: Outputs) -> Counting:
    store = found.artifacts.store
    assert isinstance(store, Counting)
    found.explain()
    return store


def test_where_nothing_lies_each_kind_is_asked_for_once(tmp_path: Path) -> None:
    found = outputs(tmp_path)
    store = explain(found)
    stages = len(found.graph.nodes)
    assert set(found.explanations) == set(found.graph.stages)
    assert all(sentence.endswith(NEW) for sentence in found.explanations.values())
    assert store.asked <= 2 * stages


def test_what_others_made_is_read_side_by_side_and_once(tmp_path: Path) -> None:
    other = outputs(tmp_path, characters=2000)
    texts = [out for node in other.graph.nodes for out in node.outputs if out.kind == "text"]
    models = [out for node in other.graph.nodes for out in node.outputs if out.kind == "model"]
    for out in texts[: RECENT + 5] + models:
        with other.artifacts.writer(out.kind, out.key, "01-a") as writer:
            writer.commit(recipe=dict(out.recipe) | {"name": out.name}, inputs=out.input_keys())
    found = outputs(tmp_path)
    store = explain(found)
    stages = len(found.graph.nodes)
    assert found.explanations["dataset"].startswith(f"{len(found.missing('dataset'))} of")
    assert "changed: " in found.explanations["base"]
    assert store.asked <= 2 * stages + RECENT + len(models), "not one for each shard, nor each model for each stage"
    assert 1 < store.most <= AT_ONCE


def test_damage_is_looked_for_where_anything_lies(tmp_path: Path) -> None:
    found = outputs(tmp_path)
    shard = next(out for out in found.graph.node("dataset").outputs if out.kind == "text")
    store = found.artifacts.store
    store.write(f"{found.artifacts.folder(shard.kind, shard.key)}/manifest.json", b"{")
    assert explain(found).asked <= 2 * len(found.graph.nodes) + 2
    assert f"{shard.ref}: " in found.explanations["dataset"] and "is damaged" in found.explanations["dataset"]
