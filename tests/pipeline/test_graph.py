"""Keys change with what changes an output, and with nothing else."""

from __future__ import annotations

from typing import Any

import pytest

from nanochat.pipeline.graph import Graph, build_graph
from nanochat.spec.errors import UserError
from nanochat.spec.load import apply_override, check_pipeline
from nanochat.spec.pipeline import PipelineSpec


def graph(*overrides: str, **options: Any) -> Graph:
    head = {"apiVersion": "nanochat.dev/v1alpha1", "kind": "ChatPipeline", "metadata": {"name": "x"}}
    data: dict[str, Any] = head | {"spec": {}}
    for override in overrides:
        apply_override(data, override)
    return build_graph(check_pipeline(data).spec, **options)


def changed(*overrides: str) -> set[str]:
    """Stages whose outputs have other keys than the default pipeline's."""
    before, after = build_graph(PipelineSpec()), graph(*overrides)
    old = {out.ref: out.key for node in before.nodes for out in node.outputs}
    return {n.stage for n in after.nodes if any(old.get(out.ref) != out.key for out in n.outputs)}


LATE = {"eval-base", "mid", "eval-mid", "sft", "eval-sft", "rl", "eval-rl", "report", "release"}


@pytest.mark.parametrize(
    "override",
    [
        "stages.base.deviceBatchSize=4",
        "stages.base.gpusPerNode=8",
        "stages.base.nodes=2",
        "retries.limit=9",
        "sources.mirror=/somewhere",
        "sources.hub=https://elsewhere",
        "stages.base.checkpointEverySeconds=5",
        "stages.base.logEvery=10",
        "cost.gpuHour=1",
        "stages.base.evalEvery=7",
        "store=team",
    ],
)
def test_what_does_not_change_the_output_keeps_all_keys(override: str) -> None:
    assert changed(override) == set()


@pytest.mark.parametrize(
    ("override", "stages"),
    [
        ("stages.base.matrixLr=0.03", {"base", *LATE}),
        ("stages.base.precision=fp32", {"base", *LATE}),
        ("stages.sft.rowsPerStep=16", {"sft", "eval-sft", "rl", "eval-rl", "report", "release"}),
        ("stages.rl.promptsPerStep=8", {"rl", "eval-rl", "report", "release"}),
        ("stages.evalChat.maxPerTask=5", {"eval-mid", "eval-sft", "eval-rl", "report", "release"}),
        ("stages.release.model=other", {"release"}),
        ("stages.tokenizer.vocabSize=32768", {"dataset", "tokenizer", "tokens", "base", *LATE}),
    ],
)
def test_a_setting_changes_only_what_depends_on_it(override: str, stages: set[str]) -> None:
    assert changed(override) - {"dataset"} == stages - {"dataset"}


MODEL = "0123456789abcdef" * 2


@pytest.mark.parametrize(
    ("first", "stages"),
    [
        ("mid", ("dataset", "tokenizer", "tokens", "mid", "eval-mid", "sft", "eval-sft", "rl", "eval-rl")),
        ("sft", ("dataset", "tokenizer", "tokens", "sft", "eval-sft", "rl", "eval-rl")),
    ],
)
def test_a_pipeline_that_starts_from_a_model_pretrains_nothing(first: str, stages: tuple[str, ...]) -> None:
    made = graph(f"stages.{first}.initialModel={MODEL}")
    assert made.stages == (*stages, "report", "release")
    kinds = {out.ref.kind for node in made.nodes for out in node.outputs}
    assert not kinds & {"text", "text-tokens", "eval-bundle", "encodings"}
    outputs = {str(out.ref): out for node in made.nodes for out in node.outputs}
    assert outputs["tokenizer/bpe"].recipe == {"initialModel": MODEL} and not outputs["tokenizer/bpe"].inputs
    assert outputs[f"model/{first}"].recipe["initialModel"] == MODEL
    assert not [ref for ref in outputs[f"model/{first}"].inputs if ref.kind == "model"]
    other = graph(f"stages.{first}.initialModel={MODEL[::-1]}")
    assert {out.ref for node in other.nodes for out in node.outputs if out.key == outputs.get(str(out.ref)).key} == {
        out.ref for out in made.node("dataset").outputs
    }


def test_a_world_of_generated_tasks_needs_no_data() -> None:
    tasks = "[{task: world-facts}]"
    made = graph(
        f"stages.sft.initialModel={MODEL}", f"stages.sft.mixture={tasks}", f"stages.sft.validation={tasks}",
        f"stages.evalChat.tasks={tasks}", f"stages.rl.tasks={tasks}",
    )  # fmt: skip
    assert made.stages[:2] == ("tokenizer", "tokens")


def test_a_gate_on_a_stage_that_does_not_train_is_refused() -> None:
    with pytest.raises(UserError, match="core"):
        graph(f"stages.mid.initialModel={MODEL}", "stages.release.gates=['base.core > 0.1']")


def test_a_deeper_model_keeps_its_tokenizer_and_adds_shards() -> None:
    small, large = graph("model.depth=20"), graph("model.depth=26")
    assert small.node("tokenizer").outputs == large.node("tokenizer").outputs
    texts = [{o.key for o in g.node("dataset").outputs if o.kind == "text"} for g in (small, large)]
    assert texts[0] < texts[1]


def test_data_that_training_measures_on_is_read_and_in_no_key() -> None:
    made, none = graph(), graph("stages.base.coreEvery=0", "stages.sft.tasksEvery=0")
    tasks = {"task-data/mmlu", "task-data/arc-easy", "task-data/arc-challenge"}
    assert "eval-bundle/core" in made.node("base").needs and tasks <= made.node("sft").needs.keys()
    assert "eval-bundle/core" not in none.node("base").needs and not tasks & none.node("sft").needs.keys()
    assert made.digest() == none.digest()
    assert "eval-bundle/core" not in graph("stages.base.steps=2000").node("base").needs, "eval-base measures the last"
    assert "eval-bundle/core" not in graph("stages.evalBase.core=false").node("base").needs, (
        "it is not fetched for this"
    )


def test_base_prompts_are_in_the_evaluations_key_alone() -> None:
    assert changed("stages.base.samplePrompts=[One]") == {"eval-base", "report", "release"}


def test_the_reference_horizon() -> None:
    horizon = build_graph(PipelineSpec()).horizon
    assert horizon.steps == 21_400
    assert len(horizon.shards) == 237  # ceil(1.1 x 11.22e9 x 4.8 / 250e6)
    assert horizon.validation_shard == 1822
    assert 1822 not in horizon.shards


def test_a_disabled_stage_is_bridged() -> None:
    found = graph("stages.mid.enabled=false", "stages.rl.enabled=false")
    assert found.stages == (
        "dataset", "tokenizer", "tokens", "base", "eval-base", "sft", "eval-sft", "report", "release",
    )  # fmt: skip
    assert "model/base" in found.node("sft").needs
    assert "model/sft" in found.node("release").needs


def test_the_content_of_the_identity_file_is_in_the_key() -> None:
    keys = []
    for digest in ("a", "b"):
        found = graph("stages.mid.identity=/x.jsonl", contents={"/x.jsonl": digest})
        keys.append(next(out.key for out in found.node("dataset").outputs if out.name == "identity"))
    assert keys[0] != keys[1]


def test_an_unknown_task_names_the_nearest() -> None:
    with pytest.raises(UserError, match="gsm8k"):
        graph("stages.rl.tasks=[{task: gsm8}]")
