"""The dataset, tokenizer and tokens stages, from sources to token files."""

from __future__ import annotations

import json
import logging
import re
import shutil
import threading
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from data_helpers import FakeHub, status
from pydantic import ValidationError

from nanochat.data.tokenfile import ConversationFile, TokenFile
from nanochat.pipeline.graph import Graph, build_graph
from nanochat.pipeline.plan import StagePlan
from nanochat.spec.errors import NanochatError, Stopped, UserError
from nanochat.spec.pipeline import PipelineSpec
from nanochat.stages import dataset, tokenizer, tokens
from nanochat.stages.context import StageContext, StopFlag
from nanochat.storage import Profile
from nanochat.tokenizer import Tokenizer

RUNS = {"dataset": dataset.run, "tokenizer": tokenizer.run, "tokens": tokens.run}
WORLD: dict[str, Any] = {
    "model": {"depth": 1, "width": 32, "headDim": 16, "sequenceLength": 64},
    "sources": {"text": {"kind": "world", "shards": 2, "charactersPerShard": 20_000, "validationShard": 5}},
    "stages": {
        "tokenizer": {"vocabSize": 400, "maxChars": 30_000},
        "tokens": {"workers": 2},
        "base": {"totalBatchTokens": 256, "steps": 4},
        "mid": {
            "totalBatchTokens": 256,
            "mixture": [{"task": "identity"}],
            "validation": [{"task": "identity", "rows": 2}],
        },
        "sft": {"enabled": False},
        "rl": {"enabled": False},
        "evalBase": {"core": False},
        "evalChat": {"enabled": False},
    },
}
IDENTITY = [
    [{"role": "user", "content": f"question {i}"}, {"role": "assistant", "content": f"answer {i}"}] for i in range(5)
]


class FakePlanner:
    """Runs the stages of a spec in this process, handing each what is missing."""

    def __init__(self, spec: dict[str, Any], folder: Path) -> None:
        self.spec = PipelineSpec.model_validate(spec)
        self.graph: Graph = build_graph(self.spec)
        self.folder = folder
        self.launches = 0

    def context(self, stage: str, stop: StopFlag | None = None) -> StageContext:
        node, plan = self.graph.node(stage), self.graph.horizon
        self.launches += 1
        context = StageContext(
            StagePlan(
                stage=stage,
                name="test",
                namespace="default",
                run="runs/default.test/1",
                attempt=self.launches,
                launch=f"{self.launches:02d}-test",
                outputs=node.outputs,
                inputs=dict(node.needs),
                spec=self.spec.model_dump(mode="json", by_alias=True),
                horizon=plan.to_dict(),
                profile=asdict(Profile(root=str(self.folder / "store"))),
                cache=str(self.folder / "cache"),
                work=str(self.folder),
            ),
            stop=stop,
        )
        context.outputs = tuple(out for out in node.outputs if context.artifacts.find(out.kind, out.key) is None)
        return context

    def run(self, stage: str, stop: StopFlag | None = None) -> None:
        context = self.context(stage, stop)
        try:
            RUNS[stage](context)
        finally:
            context.close()

    def made(self, stage: str) -> list[str]:
        context = self.context(stage)
        missing = {out.ref for out in context.outputs}
        return sorted(out.ref for out in self.graph.node(stage).outputs if out.ref not in missing)

    def folder_of(self, ref: str) -> Path:
        output = self.graph.by_ref[ref]
        artifacts = self.context("dataset").artifacts
        manifest = artifacts.find(output.kind, output.key)
        assert manifest is not None
        return artifacts.fetch(manifest)


@pytest.fixture
def identity(tmp_path: Path) -> Path:
    path = tmp_path / "identity.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in IDENTITY))
    return path


@pytest.fixture
def world(tmp_path: Path, identity: Path) -> Callable[..., FakePlanner]:
    def make(**sources: Any) -> FakePlanner:
        spec = json.loads(json.dumps(WORLD))
        spec["stages"]["mid"]["identity"] = str(identity)
        spec["sources"].update(sources)
        return FakePlanner(spec, tmp_path)

    return make


def test_from_the_world_to_token_files(world: Callable[..., FakePlanner]) -> None:
    planner = world()
    for stage in ("dataset", "tokenizer", "tokens"):
        planner.run(stage)
        assert planner.made(stage) == sorted(out.ref for out in planner.graph.node(stage).outputs)
    encoder = Tokenizer.load(planner.folder_of("tokenizer/bpe"))
    table = json.loads((planner.folder_of("tokenizer/bpe") / "compression.json").read_text())
    assert {"train", "validation"} < {row["name"] for row in table["texts"]}
    assert set(table["missing"]) == {"gpt2", "gpt4"}
    file = TokenFile(planner.folder_of("text-tokens/shard_00001"))
    text = encoder.decode(file.tokens.tolist())
    assert text.startswith("<|bos|>")
    assert text.count("<|bos|>") == file.index["documents"]
    chat = ConversationFile(planner.folder_of("chat-tokens/identity-train"))
    said = {encoder.decode([int(i) for i, mask in zip(*chat.row(r), strict=True) if mask]) for r in range(len(chat))}
    assert said == {f"answer {i}<|assistant_end|>" for i in range(5)}


def test_the_same_spec_gives_the_same_files(world: Callable[..., FakePlanner], tmp_path: Path) -> None:
    planner = world()
    refs = ["text/shard_00000", "tokenizer/bpe", "text-tokens/shard_00000", "chat-tokens/identity-train"]
    found = []
    for _ in range(2):
        for stage in ("dataset", "tokenizer", "tokens"):
            planner.run(stage)
        files = [path for ref in refs for path in sorted(planner.folder_of(ref).iterdir())]
        found.append([(path.name, path.read_bytes()) for path in files])
        shutil.rmtree(tmp_path / "store")
    assert found[0] == found[1]


def test_what_is_committed_stays_when_a_source_fails(world: Callable[..., FakePlanner], identity: Path) -> None:
    planner = world(parallelDownloads=1)
    identity.rename(identity.with_suffix(".away"))
    with pytest.raises(UserError, match=r"there is no file .*identity\.jsonl: correct stages\.mid\.identity"):
        planner.run("dataset")
    assert planner.made("dataset") == ["text/shard_00000", "text/shard_00001", "text/shard_00005"]
    identity.with_suffix(".away").rename(identity)
    assert [out.ref for out in planner.context("dataset").outputs] == ["task-data/identity"]
    planner.run("dataset")


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (b'[{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]\nnot json\n', "line 2: not JSON"),
        (b'[{"role": "user", "content": "\xff"}]\n', "line 1: not UTF-8"),
        (b'[{"role": "user", "content": "a"}, {"role": "user", "content": "b"}]\n', "line 1: .* must alternate"),
        (b"", "no conversation"),
        (b'[{"role": "user", "content": "\\ud800"}, {"role": "assistant", "content": "b"}]\n', "line 1: not JSON"),
    ],
)
def test_an_identity_file_that_is_wrong(
    world: Callable[..., FakePlanner], identity: Path, content: bytes, problem: str
) -> None:
    identity.write_bytes(content)
    with pytest.raises(UserError, match=rf"identity\.jsonl.*{problem}"):
        world().run("dataset")


def test_a_stage_that_is_stopped_keeps_what_it_has(world: Callable[..., FakePlanner]) -> None:
    planner, stop = world(), StopFlag()
    context = planner.context("dataset", stop)
    stop.set()
    assert context.stop  # the flag that was handed over, also if it was not set then
    with pytest.raises(Stopped):
        planner.run("dataset", stop)
    planner.run("dataset")
    with pytest.raises(Stopped):
        planner.run("tokenizer", stop)
    planner.run("tokenizer")
    with pytest.raises(Stopped):
        planner.run("tokens", stop)
    planner.run("tokens")


def test_a_vocabulary_that_is_too_large(world: Callable[..., FakePlanner]) -> None:
    planner = world()
    planner.spec = planner.spec.model_copy(
        update={
            "stages": planner.spec.stages.model_copy(
                update={"tokenizer": planner.spec.stages.tokenizer.model_copy(update={"vocab_size": 60_000})}
            )
        }
    )
    planner.graph = build_graph(planner.spec)
    planner.run("dataset")
    with pytest.raises(UserError, match=r"the text supports a vocabulary of at most \d+ tokens and 60000"):
        planner.run("tokenizer")


def test_a_validation_text_of_less_than_a_row_is_told_before_anything_is_trained(tmp_path: Path) -> None:
    spec = json.loads(json.dumps(WORLD))
    spec["model"]["sequenceLength"] = 4096
    spec["sources"]["text"] |= {"shards": 30, "charactersPerShard": 1000, "validationShard": 50}
    spec["stages"]["base"] |= {"totalBatchTokens": 4096}
    spec["stages"]["mid"] = {"enabled": False}
    planner = FakePlanner(spec, tmp_path)
    for stage in ("dataset", "tokenizer"):
        planner.run(stage)
    with pytest.raises(UserError, match=r"text shard_000[05]0 has [\d,]+ tokens in [\d,]+ characters") as caught:
        planner.run("tokens")
    words = re.findall(r"[\d,]+\d", caught.value.message)
    tokens, characters, least, wanted, most = (int(word.replace(",", "")) for word in words[1:])
    assert least == 4097 and wanted >= characters * least / tokens and most == tokens - 1


def test_conversations_that_cannot_be_rendered_name_their_row(world: Callable[..., FakePlanner]) -> None:
    planner = world()
    for stage in ("dataset", "tokenizer"):
        planner.run(stage)
    with pytest.raises(NanochatError, match="task identity has no split 'dev': it has train"):
        tokens.encode_conversations(
            "identity",
            split="dev",
            rows=None,
            seed=1,
            data=planner.folder_of("task-data/identity"),
            tokenizer=planner.folder_of("tokenizer/bpe"),
            folder=planner.folder,
        )
    with pytest.raises(UserError, match=r"task identity: .*is missing"):
        tokens.encode_conversations(
            "identity",
            split="train",
            rows=None,
            seed=1,
            data=planner.folder / "nothing",
            tokenizer=planner.folder_of("tokenizer/bpe"),
            folder=planner.folder,
        )


def test_shards_of_a_hub(world: Callable[..., FakePlanner], hub_server: FakeHub, tmp_path: Path) -> None:
    """Two shards that are whole, one that is truncated; vocabularies of the peers that cannot be had."""
    source = world()
    source.run("dataset")
    shard = (source.folder_of("text/shard_00000") / "shard.parquet").read_bytes()
    hub_server.files = {f"/shards/v1/{i}.parquet": shard for i in (0, 1, 5)}
    hub_server.files["/shards/v1/1.parquet"] = shard[:-100]
    hub_server.answers["/shards/v1/0.parquet"] = [status(503, Retry_After="0"), status(429, Retry_After="0")]
    text = {
        "kind": "hub",
        "base": hub_server.base,
        "path": "shards/{revision}/{index}.parquet",
        "revision": "v1",
        "shards": 2,
        "charactersPerShard": 20_000,
        "validationShard": 5,
    }
    encodings = {"gpt2": f"{hub_server.base}/gpt2", "gpt4": f"{hub_server.base}/gpt4"}
    planner = world(text=text, encodings=encodings, parallelDownloads=1)
    with pytest.raises(UserError, match=r"1\.parquet is damaged: it is no whole parquet file"):
        planner.run("dataset")
    assert "text/shard_00000" in planner.made("dataset")
    hub_server.files["/shards/v1/1.parquet"] = shard
    planner.run("dataset")
    assert planner.graph.by_ref["text/shard_00000"].key != source.graph.by_ref["text/shard_00000"].key
    assert list(planner.folder_of("encodings/gpt").iterdir()) == []
    planner.run("tokenizer")
    assert hub_server.ranges("/shards/v1/0.parquet") == [None] * 3


def test_the_stage_reads_gated_data_and_tells_no_one_the_token(
    world: Callable[..., FakePlanner],
    hub_server: FakeHub,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    source = world()
    source.run("dataset")
    shard = (source.folder_of("text/shard_00000") / "shard.parquet").read_bytes()
    hub_server.files = {f"/{i}.parquet": shard for i in (0, 1, 5)}
    monkeypatch.setenv("HF_ENDPOINT", hub_server.base)
    monkeypatch.setenv("HF_TOKEN", "hf_SeCrEt")
    text = WORLD["sources"]["text"] | {"kind": "hub", "path": "{index}.parquet"}
    encodings = {"gpt2": "/nowhere/gpt2", "gpt4": "/nowhere/gpt4"}
    with caplog.at_level(logging.DEBUG):
        world(text=text, encodings=encodings).run("dataset")
    assert {headers.get("Authorization") for _, headers in hub_server.requests} == {"Bearer hf_SeCrEt"}
    kept = b"".join(path.read_bytes() for path in tmp_path.rglob("*") if path.is_file())
    assert "SeCrEt" not in caplog.text and b"SeCrEt" not in kept


def test_vocabularies_that_do_not_come_hold_nothing_up(
    world: Callable[..., FakePlanner], hub_server: FakeHub, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One server does not answer, one refuses: the artifact and the table say so, and it is not tried again."""
    source = world()
    source.run("dataset")
    text = WORLD["sources"]["text"] | {"kind": "hub", "path": "{index}.parquet", "base": hub_server.base}
    hub_server.files = {f"/{i}.parquet": b"" for i in (0, 1, 5)}
    shard = (source.folder_of("text/shard_00000") / "shard.parquet").read_bytes()
    hub_server.files = dict.fromkeys(hub_server.files, shard)
    release = threading.Event()
    hub_server.answers["/silent"] = [lambda handler, body: release.wait(60) and None] * 9
    monkeypatch.setattr(dataset, "OPTIONAL_SECONDS", 0.5)
    planner = world(text=text, encodings={"gpt2": f"{hub_server.base}/silent", "gpt4": f"{hub_server.base}/gpt4"})
    try:
        planner.run("dataset")
    finally:
        release.set()
    asked = len(hub_server.ranges("/silent"))
    planner.run("dataset")
    planner.run("tokenizer")
    assert len(hub_server.ranges("/silent")) == asked
    table = json.loads((planner.folder_of("tokenizer/bpe") / "compression.json").read_text())
    assert table["missing"]["gpt2"] == "its vocabulary could not be had: it did not come within 0.5 s"
    assert "/gpt4 does not exist (HTTP 404)" in table["missing"]["gpt4"]


def test_a_task_whose_data_is_wrong_names_source_and_row(
    world: Callable[..., FakePlanner], tmp_path: Path, identity: Path
) -> None:
    """Before anything is trained, and as the user's to mend."""
    rows = {"question": ["q"] * 2, "choices": [["a", "b", "c", "d"]] * 2, "answer": [0, 4]}
    for split in ("auxiliary_train", "dev", "validation", "test"):
        path = tmp_path / f"hub/datasets/cais/mmlu/resolve/main/all/{split}-00000-of-00001.parquet"
        path.parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(pa.table(rows), path)
    words = tmp_path / "words.txt"
    words.write_text("<html>\nno\n")
    planner = world(hub=str(tmp_path / "hub"), words={"url": str(words)}, parallelDownloads=1)
    problem = r"cais/mmlu/.*auxiliary_train-00000-of-00001\.parquet: row 1 of task mmlu: answer: .*, or sources\.hub"
    for task, found in (
        ("mmlu", problem),
        ("spelling-bee", r"words\.txt: no word for the split .* sources\.words\.url"),
    ):
        spec = planner.spec.to_yaml_dict()
        spec["stages"]["evalChat"] = {"tasks": [{"task": task}]}
        with pytest.raises(UserError, match=found):
            FakePlanner(spec, tmp_path).run("dataset")


@pytest.mark.parametrize("path", ["{name}.parquet", "{index:x}", "{", "{index.real}"])
def test_a_shard_path_with_unknown_braces(path: str) -> None:
    with pytest.raises(ValidationError, match=r"sources\.text\.path"):
        PipelineSpec.model_validate(WORLD | {"sources": {"text": {"kind": "hub", "base": "/nowhere", "path": path}}})


def test_the_mirror(mirror: Path, tmp_path: Path) -> None:
    """Every task, the bundle and the peers from the mirror; one conversation of each as tokens."""
    spec = {
        "model": {"depth": 1, "width": 32, "headDim": 16, "sequenceLength": 64},
        "sources": {
            "mirror": str(mirror),
            "text": {"shards": 1, "charactersPerShard": 11_000_000, "validationShard": 7},
        },
        "stages": {
            "tokenizer": {"vocabSize": 2048, "maxChars": 500_000},
            "base": {"totalBatchTokens": 256, "steps": 4},
            "mid": {"totalBatchTokens": 256, "mixture": [{"task": name, "rows": 3} for name in ("smoltalk", "gsm8k")]},
            "sft": {"mixture": [{"task": "arc-easy", "rows": 3}, {"task": "spelling-bee", "rows": 3}]},
        },
    }
    planner = FakePlanner(spec, tmp_path)
    planner.run("dataset")
    planner.run("tokenizer")
    data = {out.name: planner.folder_of(out.ref) for out in planner.graph.node("dataset").outputs}
    assert {"mmlu", "arc-easy", "arc-challenge", "gsm8k", "humaneval", "core", "gpt", "shard_00007"} <= set(data)
    assert len(list((data["core"] / "eval_data").rglob("*.jsonl"))) == 21
    assert {path.name for path in data["gpt"].iterdir()} == {"r50k_base.tiktoken", "cl100k_base.tiktoken"}
    for output in planner.graph.node("tokens").outputs:
        if output.kind == "chat-tokens" and output.recipe["split"] == "train":
            folder = tmp_path / output.name
            folder.mkdir()
            recipe = output.recipe
            index = tokens.encode_conversations(
                recipe["task"],
                split="train",
                rows=3,
                seed=1,
                data=data.get(recipe["task"], Path()),
                tokenizer=planner.folder_of("tokenizer/bpe"),
                folder=folder,
            )
            assert index["rows"] == 3
            assert np.all(ConversationFile(folder).mask.sum() > 0)
