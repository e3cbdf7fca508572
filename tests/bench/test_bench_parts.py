"""`nanochat bench data`, `checkpoint` and `startup` at a small shape, with a peer that is a few lines."""

from __future__ import annotations

from pathlib import Path

import jsonschema
import pytest
from bench_schema import DOCUMENT
from bench_shapes import SETS, bench, document, refused, sentence, write_peer

from nanochat.bench import startup
from nanochat.bench.checkout import find_checkout
from nanochat.bench.checkpoint import checkpoint_tables
from nanochat.bench.data import data_tables
from nanochat.bench.measurement import Measurement, peer_checkpoint, peer_loader
from nanochat.bench.shapes import Shape, read_shape
from nanochat.bench.startup import startup_tables
from nanochat.bench.synthetic import lengths, texts, zipf
from nanochat.bench.workers import Workers, take_turns
from nanochat.pipeline.profiles import resolve_profile
from tests.cli.small_pipeline import called


def test_data_is_compared_with_what_training_takes(tmp_path: Path) -> None:
    found = document(bench(tmp_path, "data", "--json"))
    jsonschema.validate(found, DOCUMENT)
    names = [item["name"] for item in found["measured"]]
    assert names == ["loader of base", "loader of sft", "tokenizer", "ours, eager"]
    assert [(ratio["first"], ratio["second"]) for ratio in found["times_faster"]] == [
        (name, "ours, eager") for name in names[:3]
    ]
    assert found["measured"][0]["figures"]["tokens"]["median"] == 20 * 128
    assert all(item["tokens_per_second"]["low"] > 0 for item in found["measured"])
    text = "".join(table.markdown() for table in data_tables(found))
    assert "| loader of base / ours, eager |" in text


def test_a_save_is_taken_apart(tmp_path: Path) -> None:
    found = document(bench(tmp_path, "checkpoint", "--json"))
    jsonschema.validate(found, DOCUMENT)
    (ours,) = found["measured"]
    figures = ours["figures"]
    # Weights, and of the matrices one moment, of embedding and head two.
    matrices, embeddings = 12 * 32 * 32, 2 * 300 * 32
    assert figures["bytes"]["median"] >= 4 * (2 * matrices + 3 * embeddings)
    names = ("copy_seconds", "write_seconds", "store_seconds", "wait_seconds", "save_seconds", "step_seconds")
    assert all(figures[name]["low"] > 0 for name in names)
    assert figures["save_seconds"]["low"] >= figures["wait_seconds"]["low"]
    text = "".join(table.markdown() for table in checkpoint_tables(found))
    assert "| the loop waits |" in text and "| loop waits, of 60 s between saves |" in text
    left = [path.name for path in (tmp_path / "state").rglob("*") if path.is_file() and path.stat().st_size > 1000]
    assert left == [], "what was saved to measure is removed"


@pytest.mark.slow
def test_a_start_has_parts(tmp_path: Path) -> None:
    found = document(bench(tmp_path, "startup", "--json"))
    jsonschema.validate(found, DOCUMENT)
    ours, cached = found["measured"]
    parts = {"interpreter", "import torch", "imports", "store", "build model", "data", "compile", "first step"}
    assert ours["name"] == "ours, eager" and set(ours["figures"]) == parts | startup.WHOLE
    assert cached["name"] == startup.CACHED and set(cached["figures"]) == startup.WHOLE
    assert ours["figures"]["seconds"]["low"] > ours["figures"]["import torch"]["low"] > 0
    text = "".join(table.markdown() for table in startup_tables(found))
    assert "| import torch |" in text and f"| {startup.CACHED} |" in text


def test_a_run_that_fails_is_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(startup, "PIPELINE", "kind: Nothing")
    assert "the small pipeline that is run to be cached did not end well: " in refused(
        lambda: startup.run(tmp_path, {})
    )


SAVING = """
import torch
def save_checkpoint(folder, step, model, optimizer, meta, rank=0):
    torch.save([model, optimizer], f"{folder}/state.pt")
"""
READING = """
import torch
def tokenizing_distributed_data_loader_bos_bestfit(tokenizer, rows, length, split, device):
    while True:
        yield torch.zeros(rows, length), torch.zeros(rows, length)
"""
TOKENIZER = """
class RustBPETokenizer:
    @classmethod
    def train_from_iterator(cls, texts, size):
        assert len(list(texts)) > 100
        return cls()
"""
PLACE = "import os\nDATA_DIR = os.environ['NANOCHAT_BASE_DIR'] + '/data'"


def test_loaders_and_checkpoints_of_a_peer_are_its_own(tmp_path: Path) -> None:
    changed = {"checkpoint_manager": SAVING, "dataloader": READING, "tokenizer": TOKENIZER, "dataset": PLACE}
    peer = find_checkout(write_peer(tmp_path / "peer", **changed))
    asked = Measurement(
        shape=Shape(None, tuple(SETS)),
        spec=read_shape(None, SETS),
        rounds=5,
        threads=1,
        peer=peer,
        profile=resolve_profile(),
    )
    contenders = [*peer_loader(asked), *peer_checkpoint(asked, str(tmp_path))]
    assert [contender.name for contender in contenders] == ["peer, loader", "peer"]
    with Workers() as workers:
        loading, saving = take_turns([each.start(workers) for each in contenders], rounds=2, profile=False)
    assert loading.spread("tokens").median == 20 * 128
    assert saving.spread("bytes").low > 4 * 2 * 300 * 32
    assert not list(tmp_path.glob("*/state.pt"))


@pytest.mark.parametrize("what", ["data", "checkpoint"])
def test_another_commit_is_refused_where_only_another_project_is_measured(tmp_path: Path, what: str) -> None:
    other = tmp_path / "other" / "nanochat" / "stages"
    other.mkdir(parents=True)
    (other / "session.py").touch()
    said = sentence(called(tmp_path, "bench", what, "--peer", str(tmp_path / "other")))
    assert "is a commit of this project, which only `nanochat bench train` and `nanochat bench startup` measure" in said


def test_made_up_data_is_the_same_each_time() -> None:
    ids = zipf(10_000, 500, 1, first=3)
    assert ids.min() == 3 and ids.max() < 500 and (ids == zipf(10_000, 500, 1, first=3)).all()
    assert (ids == 3).sum() > 20 * (ids == 103).sum()
    assert lengths(100, 512) == lengths(100, 512) and 32 <= min(lengths(100, 512)) <= max(lengths(100, 512)) <= 512
    given = texts()
    assert given == texts() and len(given[0].split()) == 300
