"""`nanochat bench infer` at a small shape: what it measures, beside another commit, and what it refuses."""

from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from bench_schema import SPREAD
from bench_shapes import bench, document, sentence, write_peer
from jsonschema import validate

from nanochat.bench.generation import Generation, random_model
from nanochat.bench.shapes import Shape
from nanochat.bench.transformers_peer import translate
from nanochat.model import graphs, native, packing
from nanochat.model.packing import PackedLinear
from nanochat.model.sizes import ModelConfig
from nanochat.model.transformer import Transformer
from nanochat.spec.errors import UserError

ROOT = Path(__file__).parents[2]
CHANGED = {"model.sequenceLength": 256, "stages.base.totalBatchTokens": 512}  # of the small shape
LONG = (*(word for name, value in CHANGED.items() for word in ("--set", f"{name}={value}")), "--tokens", "4")
WORK = {
    "prefill",
    "prefill of a short prompt",
    "first token of a second turn",
    "weights read once",
    "decode 1 of 8 slots",
    *(f"decode {rows}" for rows in (1, 2, 4, 8, 16)),
}


def test_prompts_and_rows_are_measured_beside_another_commit(tmp_path: Path) -> None:
    """Which is this one."""
    found = document(bench(tmp_path, "infer", "--peer", str(ROOT), "--json", last=LONG))
    ours, other = found["measured"]
    assert (ours["name"], other["name"]) == ("ours", ROOT.name)
    assert (found["bench"], found["prompt"], found["tokens"]) == ("infer", 128, 4)
    for item in found["measured"]:
        for name in WORK:
            for figure in (name, f"{name}, cpu"):
                validate(item["figures"][figure], SPREAD)
                assert item["figures"][figure]["rounds"] == 5 and item["figures"][figure]["low"] > 0
        assert set(item["of_the_bound"]) == {name for name in WORK if name.startswith("decode")}
    assert {ratio["work"] for ratio in found["times_faster"]} == WORK
    assert {ratio["second"] for ratio in found["times_faster"]} == {ROOT.name}


def test_tables_of_answers_are_for_people(tmp_path: Path) -> None:
    done = bench(tmp_path, "infer", "--markdown", last=LONG)
    assert done.returncode == 0, done.stderr
    for words in ("ours: a prompt of 128 tokens", "| decode 16 |", "| prefill |", "of the bound"):
        assert words in done.stdout


PACKAGE = """
import torch
from torch import nn

NanoChatConfig = dict
StoppingCriteriaList = list

class Layer(nn.Module):
    def __init__(self, width, wide):
        super().__init__()
        self.self_attn = nn.ModuleDict({f"{name}_proj": nn.Linear(width, width, bias=False) for name in "qkvo"})
        self.mlp = nn.ModuleDict(
            {"fc1": nn.Linear(width, wide, bias=False), "fc2": nn.Linear(wide, width, bias=False)}
        )

class NanoChatForCausalLM(nn.Module):
    device = torch.device("cpu")

    def __init__(self, config):
        super().__init__()
        width, vocabulary = config["hidden_size"], config["vocab_size"]
        layers = [Layer(width, config["intermediate_size"]) for _ in range(config["num_hidden_layers"])]
        self.model = nn.ModuleDict(
            {"embed_tokens": nn.Embedding(vocabulary, width), "layers": nn.ModuleList(layers)}
        )
        self.lm_head = nn.Linear(width, vocabulary, bias=False)

    def generate(self, ids, *, max_new_tokens, do_sample, stopping_criteria, **_rest):
        assert not do_sample and not self.training
        for _ in range(max_new_tokens):
            scores = self.lm_head(self.model["embed_tokens"](ids[:, -1]))
            ids = torch.cat((ids, scores.argmax(-1, keepdim=True)), 1)
            for told in stopping_criteria:
                assert not told(ids, scores).any()
        return ids
"""


def test_the_transformers_package_answers_in_turns_with_the_same_weights(tmp_path: Path) -> None:
    (tmp_path / "transformers.py").write_text(PACKAGE)
    found = document(bench(tmp_path, "infer", "--peer", "transformers", "--json", last=LONG, PYTHONPATH=str(tmp_path)))
    ours, other = found["measured"]
    assert (ours["name"], other["name"]) == ("ours", "transformers")
    both = {"prefill", "weights read once", *(f"decode {rows}" for rows in (1, 2, 4, 8, 16))}
    assert {ratio["work"] for ratio in found["times_faster"]} == both
    assert set(other["of_the_bound"]) == {name for name in both if name.startswith("decode")}


@pytest.mark.parametrize(
    ("package", "words"),
    [
        ("raise ModuleNotFoundError('transformers')", "install it with `pip install transformers`"),
        ("", "too old for NanoChatForCausalLM"),
    ],
)
def test_a_package_that_can_not_answer_is_told(tmp_path: Path, package: str, words: str) -> None:
    (tmp_path / "transformers.py").write_text(package)
    done = bench(tmp_path, "infer", "--peer", "transformers", last=LONG, PYTHONPATH=str(tmp_path))
    assert words in sentence(done)


def test_every_weight_has_its_place_in_the_package_or_is_refused() -> None:
    namespace: dict[str, Any] = {}
    exec(PACKAGE, namespace)
    package = SimpleNamespace(**namespace)
    shape = {"depth": 2, "width": 32, "heads": 2, "kv_heads": 2, "sequence_length": 16, "vocab_size": 40}
    model = Transformer(ModelConfig(**shape))
    for index, weight in enumerate(model.parameters()):
        torch.nn.init.constant_(weight, index)
    theirs = translate(model, package)
    assert sorted(w.flatten()[0].item() for w in theirs.parameters()) == list(range(2 * 6 + 2))
    assert torch.equal(theirs.lm_head.weight, model.head.weight)
    with pytest.raises(UserError, match=r"has no place for stream.backout_scale; set model.recipe=classic"):
        translate(Transformer(ModelConfig(**shape, backout=True)), package)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [(("--tokens", "100"), "a context of 256 tokens holds less"), (("--peer", "peer"), "whose engine is not measured")],
)
def test_what_is_not_measured_is_refused(tmp_path: Path, arguments: tuple[str, str], words: str) -> None:
    peer = str(write_peer(tmp_path / "peer"))
    given = [peer if word == "peer" else word for word in arguments]
    assert words in sentence(bench(tmp_path, "infer", last=(*LONG, *given)))


@pytest.mark.skipif(bool(packing.missing(torch.float32)), reason="weights can't be laid out here")
@pytest.mark.parametrize("compiled", [True, False])
def test_a_commit_without_this_way_to_be_fast_has_its_own(monkeypatch: pytest.MonkeyPatch, compiled: bool) -> None:
    """Code where it could be compiled, else weights in their other layout."""

    def speed_up(model: Transformer) -> str:
        model.native = native.Native(model) if compiled else None
        return ""

    monkeypatch.setitem(sys.modules, "nanochat.model.speed", None)
    monkeypatch.setattr(native, "speed_up", speed_up, raising=False)
    shape = Shape(None, ("model.depth=1", "model.sequenceLength=256", "stages.tokenizer.vocabSize=512"))
    task = {"shape": shape.to_dict(), "prompt": 32, "tokens": 4, "rows": [1], "slots": 2}
    model = Generation(random_model(task), task).model
    assert isinstance(model.head, PackedLinear) != compiled


def test_with_cuda_graphs_steps_are_timed_without_them_too(monkeypatch: pytest.MonkeyPatch) -> None:
    """What records here is a stand-in."""
    shape = Shape(None, ("model.depth=1", "model.sequenceLength=256", "stages.tokenizer.vocabSize=512"))
    task = {"shape": shape.to_dict(), "prompt": 32, "tokens": 4, "rows": [1, 2], "slots": 2}
    monkeypatch.setattr(torch.cuda, "graph_pool_handle", lambda: None)
    replayed: list[None] = []
    monkeypatch.setattr(graphs, "record", lambda compute, _pool: lambda: (replayed.append(None), compute())[1])
    model = random_model(task)
    generation = Generation(model, task)
    model.native, model.graphs = None, graphs.Graphs(model)
    generation.round()
    assert {f"decode {rows}{how}" for rows in (1, 2) for how in ("", ", kernel by kernel")} <= set(generation.figures)
    assert model.graphs is not None and len(replayed) >= 3 * 4  # all that was timed, and none that was to be without
