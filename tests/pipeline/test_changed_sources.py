"""Local sources that change under their revision: said, and never when they have not."""

from __future__ import annotations

import json
import os
import zipfile
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from nanochat.data.hub import Hub
from nanochat.pipeline.changed_sources import changed_sources
from nanochat.pipeline.graph import build_graph
from nanochat.spec.pipeline import PipelineSpec
from nanochat.stages.dataset import make_files
from nanochat.storage.artifacts import Artifacts
from nanochat.storage.opening import open_store
from nanochat.storage.store import Profile


class Taken:
    """A pipeline whose sources were taken in; `said` is what is said of them later."""

    def __init__(self, folder: Path, sources: dict[str, Any], stages: dict[str, Any]) -> None:
        every = {name: {"enabled": False} for name in ("mid", "sft", "rl", "evalBase", "evalChat")} | stages
        data = {"model": {"depth": 1}, "sources": sources, "stages": every}
        self.spec = PipelineSpec.model_validate(data)
        self.graph = build_graph(self.spec)
        self.artifacts = Artifacts(open_store(Profile(str(folder / "store"))), folder / "cache")
        for output in self.graph.node("dataset").outputs:
            if output.kind == "encodings":
                continue
            with self.artifacts.writer(output.kind, output.key, "01-a") as writer:
                made = make_files(self.spec, self.spec.sources.located(), Hub(), output, writer.folder)
                writer.commit(recipe=output.recipe, inputs={}, metadata=made)

    @property
    def said(self) -> list[str]:
        return changed_sources(self.spec, self.graph, self.artifacts)


def shard(path: Path, text: str) -> None:
    pq.write_table(pa.table({"text": [text] * 3}), path)


def age(path: Path) -> None:
    """The same file, written again long ago: only its content could tell it from another."""
    os.utime(path, (1.0, 1.0))


def test_text_shards(tmp_path: Path) -> None:
    for index in (0, 9):
        shard(tmp_path / f"{index}.parquet", "abc")
    text = {"base": str(tmp_path), "path": "{index}.parquet", "shards": 1, "validationShard": 9, "revision": "v1"}
    taken = Taken(tmp_path, {"text": text}, {})
    assert taken.said == []
    age(tmp_path / "0.parquet")
    assert taken.said == []
    shard(tmp_path / "9.parquet", "abd")  # as many bytes
    (said,) = taken.said
    assert said == (
        f"{tmp_path}/9.parquet is not what was taken in from it: the former content is used until "
        "sources.text.revision changes"
    )
    (tmp_path / "9.parquet").unlink()
    assert taken.said == []


@pytest.mark.parametrize("change", ["content", "one more", "one less"])
def test_files_of_ones_own(tmp_path: Path, change: str) -> None:
    folder = tmp_path / "letters"
    folder.mkdir()
    for name in ("a", "b"):
        (folder / f"{name}.jsonl").write_text("".join(f'{{"text": "{name}{n}"}}\n' for n in range(9)))
    taken = Taken(tmp_path, {"text": {"kind": "files", "files": str(folder)}}, {})
    assert taken.said == []
    if change == "content":
        path = folder / "a.jsonl"
        path.write_text(path.read_text().replace("a1", "a!"))
    elif change == "one more":
        (folder / "c.txt").write_text("more")
    else:
        (folder / "b.jsonl").unlink()
    assert [line.split(" is not")[0] for line in taken.said] == [str(folder)]


@pytest.mark.parametrize("zipped", [True, False])
def test_the_bundle(tmp_path: Path, zipped: bool) -> None:
    folder = tmp_path / "bundle"

    def write(answer: str) -> None:
        (folder / "eval_data").mkdir(parents=True, exist_ok=True)
        task = {"label": "t", "icl_task_type": "language_modeling", "dataset_uri": "t.jsonl", "num_fewshot": [0]}
        (folder / "core.yaml").write_text(json.dumps({"icl_tasks": [task]}))
        (folder / "eval_meta_data.csv").write_text("Eval Task,Random baseline\nt,0\n")
        (folder / "eval_data/t.jsonl").write_text(json.dumps({"context": "a", "continuation": answer}) + "\n")
        if zipped:
            with zipfile.ZipFile(tmp_path / "bundle.zip", "w") as packed:
                for path in sorted(folder.rglob("*.*")):
                    packed.write(path, path.relative_to(folder))

    write("b")
    url = str(tmp_path / "bundle.zip" if zipped else folder)
    text = {"kind": "world", "charactersPerShard": 1000, "shards": 1}
    taken = Taken(tmp_path, {"text": text, "evalBundle": {"url": url}}, {"evalBase": {"core": True}})
    assert taken.said == []
    write("c")
    assert [line.rpartition(" ")[0].rpartition(" ")[2] for line in taken.said] == ["sources.evalBundle.revision"]


def test_a_tasks_file(tmp_path: Path) -> None:
    words = tmp_path / "words.txt"
    words.write_text("".join(f"word{'abcdefghij'[n % 10]}{'abcdefghij'[n // 10]}\n" for n in range(100)))
    mid = {"enabled": True, "mixture": [{"task": "simple-spelling"}], "validation": [{"task": "simple-spelling"}]}
    text = {"kind": "world", "charactersPerShard": 1000, "shards": 1}
    taken = Taken(tmp_path, {"text": text, "words": {"url": str(words)}}, {"mid": mid})
    assert taken.said == []
    words.write_text(words.read_text().replace("wordaa", "wordxx"))
    assert [line.split(" is not")[0] for line in taken.said] == [str(words)]


def test_a_pipeline_without_local_sources_asks_the_store_nothing(tmp_path: Path) -> None:
    spec = PipelineSpec.model_validate({"sources": {"text": {"kind": "world"}}})
    nothing: Any = None
    assert changed_sources(spec, build_graph(spec), nothing) == []
