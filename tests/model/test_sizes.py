from __future__ import annotations

import subprocess
import sys
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from nanochat.model import sizes
from nanochat.model.sizes import ModelConfig
from nanochat.model.transformer import Transformer
from nanochat.spec.errors import UserError
from tests.model.recipe_models import RECIPES


def reference(depth: int) -> ModelConfig:
    return ModelConfig.from_depth(depth, vocab_size=65_536, sequence_length=2048)


def count(config: ModelConfig) -> int:
    with torch.device("meta"):
        return sum(weight.numel() for weight in Transformer(config).parameters())


@pytest.mark.parametrize(("depth", "expected"), [(20, 560_988_160), (32, 1_879_048_192)])
def test_parameters_of_the_reference(depth: int, expected: int) -> None:
    assert sizes.parameters(reference(depth)) == expected
    assert count(reference(depth)) == expected


@pytest.mark.parametrize(("depth", "expected"), [(20, 3.49e9), (32, 1.208e10)])
def test_flops_of_the_reference(depth: int, expected: float) -> None:
    assert sizes.flops_per_token(reference(depth)) == pytest.approx(expected, rel=2e-3)


@given(depth=st.integers(1, 40), kv=st.integers(1, 4), recipe=st.sampled_from(sorted(RECIPES)))
def test_the_formula_counts_the_module(depth: int, kv: int, recipe: str) -> None:
    config = ModelConfig.from_depth(depth, vocab_size=100, sequence_length=8, **RECIPES[recipe])
    if config.heads % kv == 0:
        config = replace(config, kv_heads=kv)
    assert config.head_dim % 2 == 0
    assert config.head_dim <= 128
    assert sizes.parameters(config) == count(config)


def test_short_windows_cost_fewer_flops_and_tables_none() -> None:
    classic = reference(8)
    windowed = replace(classic, window_pattern="SSSL")  # six short ones of 512, two of 2048
    saved = 12 * classic.width * 6 * (2048 - 512)
    assert sizes.flops_per_token(classic) - sizes.flops_per_token(windowed) == saved
    assert [windowed.window(layer) for layer in range(8)] == [512, 512, 512, None] * 2
    assert replace(classic, window_pattern="S").window(7) is None
    embedded = replace(classic, value_embeddings=True)
    gates = 4 * classic.kv_heads * 12
    assert sizes.flops_per_token(embedded) - sizes.flops_per_token(classic) == 6 * gates
    assert sizes.parameters(embedded) - sizes.parameters(classic) == 4 * 65_536 * 512 + gates


def test_depth_sets_width_and_heads() -> None:
    assert (reference(20).width, reference(20).heads, reference(20).head_dim) == (1280, 10, 128)
    assert (reference(5).width, reference(5).heads) == (320, 4)
    demo = ModelConfig.from_depth(4, vocab_size=1024, sequence_length=256, width=192, head_dim=64)
    assert (demo.width, demo.heads, demo.kv_heads) == (192, 3, 3)


def test_round_trip() -> None:
    config = reference(20)
    assert ModelConfig.from_dict({**config.to_dict(), "stage": "base"}) == config
    for features in RECIPES.values():
        modern = replace(config, **features)
        assert ModelConfig.from_dict(modern.to_dict()) == modern
        assert modern.to_dict() == config.to_dict() | features


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"heads": 5}, "heads of an even size"),
        ({"kv_heads": 3}, "key-value heads"),
        ({"depth": 0}, "at least 1"),
    ],
)
def test_impossible_shapes_say_what_to_change(changes: dict[str, int], message: str) -> None:
    shape = {"depth": 2, "width": 32, "heads": 4, "kv_heads": 2, "sequence_length": 16, "vocab_size": 61}
    with pytest.raises(UserError, match=message):
        ModelConfig(**(shape | changes))


@pytest.mark.parametrize("pattern", ["", "SXL"])
def test_a_pattern_is_of_s_and_l(pattern: str) -> None:
    with pytest.raises(ValueError, match="window_pattern"):
        replace(reference(4), window_pattern=pattern)


def test_sizes_import_no_torch() -> None:
    code = "import sys, nanochat.model.sizes; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
