"""The modern recipe is a set of defaults; classic pipelines, and the keys of what they made, know nothing of it."""

from __future__ import annotations

from typing import Any

import pytest

from nanochat.model.scaling import Scaling
from nanochat.model.sizes import FEATURES
from nanochat.pipeline.graph import Graph, build_graph
from nanochat.pipeline.resolve import horizon, model_config, scaling
from nanochat.spec.errors import UserError
from nanochat.spec.load import check_pipeline
from nanochat.spec.pipeline import PipelineSpec

HEAD = {"apiVersion": "nanochat.dev/v1alpha1", "kind": "ChatPipeline", "metadata": {"name": "case"}}
# Each of the recipe's settings alone, in a classic pipeline.
ALONE: dict[str, dict[str, Any]] = {
    "value embeddings": {"model": {"valueEmbeddings": True}},
    "scalars": {"model": {"residualScalars": True}},
    "windows": {"model": {"windowPattern": "SSSL"}},
    "smear": {"model": {"smear": True}},
    "backout": {"model": {"backout": True}},
    "polar express": {"stages": {"base": {"orthogonalisation": "polar-express"}}},
    "decay": {"stages": {"base": {"matrixDecay": 0.28}}},
    "scaling rules": {"stages": {"base": {"scalingRules": True}}},
    "packing": {"stages": {"base": {"packing": "best-fit"}}},
}


def spec(settings: dict[str, Any]) -> PipelineSpec:
    return check_pipeline({**HEAD, "spec": settings}).spec


def scaled(**model: Any) -> PipelineSpec:
    """A modern pipeline with the scaling rules."""
    return spec({"model": {"recipe": "modern", **model}, "stages": {"base": {"scalingRules": True}}})


def base_recipe(graph: Graph) -> dict[str, Any]:
    (output,) = graph.node("base").outputs
    return dict(output.recipe)


def test_keys_of_classic_pipelines_name_nothing_modern() -> None:
    recipe = base_recipe(build_graph(PipelineSpec()))
    assert not {"orthogonalisation", "matrixDecay", "scalingRules", "packing", "recipe"} & recipe.keys()
    assert not {field.name for field in FEATURES} & recipe["model"].keys()
    assert build_graph(spec({"model": {"recipe": "classic"}})).digest() == build_graph(PipelineSpec()).digest()


@pytest.mark.parametrize("settings", ALONE.values(), ids=ALONE)
def test_each_setting_alone_makes_another_model_of_the_same_tokens(settings: dict[str, Any]) -> None:
    before, after = build_graph(PipelineSpec()), build_graph(spec(settings))
    assert before.node("tokenizer") == after.node("tokenizer")
    assert before.node("base").outputs[0].key != after.node("base").outputs[0].key


def test_modern_fills_what_is_not_given() -> None:
    modern = spec({"model": {"recipe": "modern"}})
    assert model_config(modern).to_dict().items() >= {
        "value_embeddings": True, "window_pattern": "SSSL", "smear": True, "vocab_size": 32_768,
    }.items()  # fmt: skip
    base = modern.stages.base
    assert (base.tokens_per_parameter, base.warmdown_ratio, base.final_lr_fraction) == (10.5, 0.65, 0.05)
    assert (base.scaling_rules, base.orthogonalisation, base.packing) == (False, "polar-express", "best-fit")
    assert (base.matrix_decay, base.embedding_lr, modern.model.backout) == (0.28, 0.2, False)
    assert (
        base_recipe(build_graph(modern)).items()
        >= {"orthogonalisation": "polar-express", "packing": "best-fit"}.items()
    )
    given = {
        "model": {"recipe": "modern", "smear": False},
        "stages": {"base": {"warmdownRatio": 0.2, "packing": "stream"}},
    }
    changed = spec(given)
    assert not changed.model.smear and changed.model.value_embeddings
    assert (changed.stages.base.warmdown_ratio, changed.stages.base.packing) == (0.2, "stream")


def test_what_is_stored_is_read_as_it_is() -> None:
    """The whole declaration of a modern pipeline, and one that a version before wrote."""
    modern = spec({"model": {"recipe": "modern", "smear": False}})
    assert spec(modern.to_yaml_dict()) == modern == PipelineSpec.model_validate(modern.to_yaml_dict())
    older = PipelineSpec().to_yaml_dict()
    del older["model"]["recipe"], older["model"]["windowPattern"], older["stages"]["base"]["packing"]
    assert spec(older) == PipelineSpec()


def test_a_pattern_of_other_letters_is_refused() -> None:
    with pytest.raises(UserError, match=r"'spec\.model\.windowPattern'"):
        spec({"model": {"windowPattern": "SX"}})


@pytest.mark.parametrize(("depth", "batch"), [(8, 1 << 18), (12, 1 << 19), (16, 1 << 19), (20, 1 << 20), (32, 1 << 21)])
def test_the_batch_grows_with_the_tokens(depth: int, batch: int) -> None:
    rules = scaling(scaled(depth=depth))
    assert rules.batch_tokens == batch
    assert rules.rates == pytest.approx((batch / 2**19) ** 0.5)


@pytest.mark.parametrize(("given", "shared"), [(None, 6), (1, 1), (2, 2), (5, 3), (10, 6)])
def test_the_reference_has_the_key_value_heads_that_it_can_share(given: int | None, shared: int) -> None:
    """Of the 6 heads of depth 12; the model of depth 20 has 10."""
    grouped = scaled(kvHeads=given)
    assert model_config(grouped).kv_heads == (given or 10)
    assert model_config(grouped, 12).kv_heads == shared
    assert scaling(grouped).batch_tokens == 1 << 20


def test_the_horizon_is_of_the_scaled_batch() -> None:
    modern = scaled()
    plan, rules = horizon(modern), scaling(modern)
    assert plan.tokens == plan.steps * rules.batch_tokens
    # For each of 435 million parameters; 461 million of embeddings are left out.
    assert plan.tokens == pytest.approx(10.5 * 435e6, rel=0.01)
    assert scaling(PipelineSpec()) == Scaling(524_288)


def test_decay_forgets_over_the_same_part_of_the_training() -> None:
    """rate x decay x steps is that of the reference, whatever the batch; by steps as by tokens."""
    for tokens in (1e8, 1e9, 2e10):
        rules = Scaling.of(tokens=tokens, reference=1e9, multiple=2048)
        assert rules.rates * rules.decay * tokens / rules.batch_tokens == pytest.approx(1e9 / 2**19)
        steps = round(tokens / rules.batch_tokens)
        by_steps = Scaling.of(steps=steps, reference=1e9, multiple=2048)
        seen = steps * by_steps.batch_tokens
        again = Scaling.of(tokens=seen, reference=1e9, multiple=2048)
        assert 0.5 <= by_steps.batch_tokens / again.batch_tokens <= 2
        assert by_steps.rates * by_steps.decay * steps == pytest.approx(1e9 / 2**19)
    assert Scaling.of(tokens=1e6, reference=1e9, multiple=3000).batch_tokens % 3000 == 0
