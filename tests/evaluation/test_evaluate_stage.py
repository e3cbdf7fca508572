"""The evaluation stage: what it measures, what it lists as not run, and where it writes."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from nanochat.data.tokenfile import write_text
from nanochat.evaluation.items import ITEMS, Item, read_items
from nanochat.evaluation.sandbox import Sandbox
from nanochat.model.attention import sdpa
from nanochat.model.export import save_model
from nanochat.model.pointwise import PLAIN
from nanochat.model.transformer import Transformer
from nanochat.pipeline.graph import build_graph
from nanochat.pipeline.plan import StagePlan
from nanochat.runtime.compiler import cxx_compiler
from nanochat.runtime.device import Device
from nanochat.spec.errors import Stopped, UserError
from nanochat.spec.pipeline import PipelineSpec
from nanochat.stages import evaluate
from nanochat.stages.base import SAMPLE_PROMPTS, continued
from nanochat.stages.context import StageContext, StopFlag
from nanochat.tokenizer import Tokenizer

TEXTS = ["a thin cat in the winter " * 4] * 20


@pytest.fixture
def make_context(tmp_path: Path, model: Transformer, tokenizer: Tokenizer) -> Any:
    """A function that makes the context of an evaluation, its inputs committed before."""

    def make(stage: str, *, stop: StopFlag | None = None, texts: Sequence[str] = TEXTS, **stages: Any) -> StageContext:
        spec = PipelineSpec.model_validate(
            {
                "model": {"depth": 2, "width": 32, "headDim": 16, "sequenceLength": 48},
                "sources": {"text": {"kind": "world", "charactersPerShard": 1000, "validationShard": 1}},
                "stages": {
                    "tokenizer": {"vocabSize": tokenizer.vocab_size},
                    "base": {"steps": 1, "totalBatchTokens": 48},
                    "mid": {"totalBatchTokens": 48, "mixture": [{"task": "world-sums"}],
                            "validation": [{"task": "world-sums", "split": "test"}]},
                    "sft": {"mixture": [{"task": "world-sums"}],
                            "validation": [{"task": "world-sums", "split": "test"}]},
                    "rl": {"enabled": False},
                    **stages,
                },
            }
        )  # fmt: skip
        graph = build_graph(spec)
        node = graph.node(stage)
        run = "runs/default.test/1"
        plan = StagePlan(
            stage=stage, name="test", namespace="default", run=run, attempt=1, launch="launch", outputs=node.outputs,
            inputs=node.needs, spec=spec.to_yaml_dict(),
            horizon=graph.horizon.to_dict(),
            profile={"root": str(tmp_path / "store")}, cache=str(tmp_path / "cache"), work=str(tmp_path),
        )  # fmt: skip
        context = StageContext(plan, stop=stop)
        for ref, key in node.needs.items():
            kind = ref.split("/")[0]
            with context.artifacts.writer(kind, key, "before") as writer:
                if kind == "model":
                    save_model(writer.folder, model, {"stage": "x", "step": 7})
                    tokenizer.save(writer.folder)
                elif kind == "text-tokens":
                    ids = [tokenizer.encode(text) for text in texts]
                    write_text(writer.folder, ids, bos=tokenizer.bos, vocab_size=tokenizer.vocab_size)
                writer.commit(recipe={}, inputs={}, metadata={})
        return context

    return make


def items(context: StageContext) -> list[Item]:
    (output,) = context.outputs
    manifest = context.artifacts.find(output.kind, output.key)
    assert manifest is not None
    return list(read_items(context.artifacts.fetch(manifest) / ITEMS))


def results(context: StageContext) -> dict[str, Any]:
    (output,) = context.outputs
    manifest = context.artifacts.find(output.kind, output.key)
    assert manifest is not None
    return json.loads((context.artifacts.fetch(manifest) / "results.json").read_text())


def test_base_model(make_context: Any) -> None:
    context = make_context("eval-base", evalBase={"core": False, "sampleTokens": 3})
    evaluate.run(context)
    context.close()
    found = results(context)
    assert set(found["metrics"]) == {"train_bpb", "val_bpb"}
    assert all(figure["n"] > 100 and figure["stderr"] >= 0 for figure in found["metrics"].values())
    assert found["notRun"] == {"core": "it is switched off (stages.evalBase.core)"}
    assert len(found["samples"]) == len(SAMPLE_PROMPTS)
    assert context.progress.state.phase == "val_bpb"
    history = list(context.store.list(f"{context.plan.run}/metrics/eval-base"))
    assert history


def test_a_base_model_continues_the_pipelines_own_beginnings(make_context: Any) -> None:
    beginnings = ["The cat is", "Two and two"]
    context = make_context(
        "eval-base",
        evalBase={"core": False, "sampleTokens": 3},
        base={"steps": 1, "totalBatchTokens": 48, "samplePrompts": beginnings},
    )
    evaluate.run(context)
    context.close()
    assert [sample["prompt"] for sample in results(context)["samples"]] == beginnings


def test_beginnings_of_any_length_are_continued(model: Transformer, tokenizer: Tokenizer) -> None:
    long = "a beginning that the context does not hold, however it is cut; " * 16
    found = continued(model, tokenizer, ["", long, long[1:]], 4096)
    assert found[1] == found[2] and len(found) == 3 and all(found)


def test_chat_model(make_context: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Sandbox, "unavailable", lambda self: "no isolation on this machine")
    tasks = [{"task": name} for name in ("world-sums", "world-facts", "world-talk", "humaneval", "identity")]
    more = [{"task": "world-counts", "rows": 3}, {"task": "world-spelling", "rows": 9}]
    settings = {"tasks": [*tasks, *more], "maxPerTask": 5, "maxNewTokens": 4}
    context = make_context("eval-sft", evalChat=settings | {"samplePrompts": ["Who are you?"], "deviceBatchSize": 4})
    evaluate.run(context)
    context.close()
    found = results(context)
    assert {name: figure["n"] for name, figure in found["metrics"].items()} == {
        "world-sums": 5, "world-facts": 5, "world-counts": 3, "world-spelling": 5,
    }  # fmt: skip
    assert found["tasks"]["world-sums"].keys() >= {"accuracy", "stderr", "n", "centered", "baseline", "cut"}
    assert found["notRun"]["humaneval"] == "no isolation on this machine"
    assert "cannot be graded" in found["notRun"]["world-talk"]
    assert "no test split" in found["notRun"]["identity"]
    assert "evalChat.tasks" in found["notRun"]["mmlu"]
    assert "humaneval" in found["notRun"]["chatcore"]
    assert [sample["prompt"] for sample in found["samples"]] == ["Who are you?"]
    for name, figure in found["metrics"].items():
        of_task = [item for item in items(context) if item.task == name]
        assert [item.index for item in of_task] == list(range(figure["n"]))
        assert sum(item.right for item in of_task) / len(of_task) == figure["value"]
    assert all(item.prompt and item.expected and len(item.answers) == 1 for item in items(context))


def test_several_answers_to_each_problem(make_context: Any) -> None:
    settings = {"samples": 3, "temperature": 1.0, "maxPerTask": 5, "maxNewTokens": 4, "deviceBatchSize": 4}
    context = make_context("eval-sft", evalChat=settings | {"tasks": [{"task": "world-sums"}]})
    evaluate.run(context)
    context.close()
    found = results(context)
    assert {name: figure["n"] for name, figure in found["metrics"].items()} == {
        "world-sums": 5, "world-sums-pass2": 5, "world-sums-pass3": 5,
    }  # fmt: skip
    assert [len(item.answers) for item in items(context)] == [3] * 5


def test_text_for_not_one_row_is_no_figure(make_context: Any) -> None:
    context = make_context("eval-base", texts=["a thin cat"], evalBase={"core": False})
    with pytest.raises(UserError, match=r"train_bpb cannot be measured on \d+ tokens of shard_00000, .* row has 48"):
        evaluate.run(context)
    context.close()


def test_a_stop_ends_it_without_results(make_context: Any) -> None:
    stop = StopFlag()
    stop.set()
    context = make_context("eval-base", stop=stop, evalBase={"core": False})
    with pytest.raises(Stopped, match="train_bpb"):
        evaluate.run(context)
    context.close()
    (output,) = context.outputs
    assert context.artifacts.find(output.kind, output.key) is None


@pytest.mark.parametrize("name", ["fp32", "bf16"])
@torch.inference_mode()
def test_a_measured_model_is_as_fast_as_the_device_allows_and_says_the_same(
    tmp_path: Path, model: Transformer, name: str
) -> None:
    """Rows that are longer than any in training, too."""
    save_model(tmp_path, model, {"step": 7})
    dtype, most = {"fp32": (torch.float32, 1e-4), "bf16": (torch.bfloat16, 0.3)}[name]
    measured, extra = evaluate.load_measured(tmp_path, Device(torch.device("cpu"), dtype))
    assert extra["step"] == 7
    assert (measured.native is None) is (cxx_compiler() is None)
    assert (measured.attend is sdpa) is (dtype == torch.float32)
    assert (measured.pointwise is PLAIN) is (dtype == torch.float32 or cxx_compiler() is None)
    ids = torch.randint(256, (1, 400), generator=torch.Generator().manual_seed(1))
    assert float((measured(ids) - model(ids)).abs().max()) < most
