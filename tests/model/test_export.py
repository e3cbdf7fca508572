from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from nanochat.model import export
from nanochat.model.export import load_model, save_model
from nanochat.model.sizes import ModelConfig
from nanochat.model.transformer import Transformer
from nanochat.spec.errors import UserError
from tests.model.recipe_models import RECIPES

Make = Callable[[ModelConfig], Transformer]


@pytest.mark.parametrize("recipe", sorted(RECIPES))
def test_what_is_saved_is_loaded(tmp_path: Path, config: ModelConfig, make_model: Make, recipe: str) -> None:
    config = replace(config, **RECIPES[recipe])
    model = make_model(config)
    save_model(tmp_path, model, {"stage": "base", "step": 7})
    loaded, extra = load_model(tmp_path, device="cpu", compute_dtype=torch.float32)
    assert extra == {"stage": "base", "step": 7}
    assert loaded.config == config
    ids = torch.arange(16)[None]
    assert torch.equal(loaded(ids), model(ids))


def test_the_files_of_a_classic_model_name_nothing_modern(
    tmp_path: Path, config: ModelConfig, make_model: Make
) -> None:
    save_model(tmp_path, make_model(config), {})
    fields = ["depth", "width", "heads", "kv_heads", "sequence_length", "vocab_size", "rope_base"]
    assert list(json.loads((tmp_path / "config.json").read_text())) == fields
    assert list(make_model(config).state_dict())[:2] == ["embedding", "blocks.0.attention.query.weight"]
    assert not any("stream" in name or "value_embedding" in name for name in make_model(config).state_dict())


@pytest.mark.parametrize("damage", ["missing", "truncated", "config"])
def test_an_unreadable_model_is_one_sentence(
    tmp_path: Path, config: ModelConfig, make_model: Make, damage: str
) -> None:
    save_model(tmp_path, make_model(config), {})
    weights = tmp_path / "model.safetensors"
    if damage == "missing":
        weights.unlink()
    elif damage == "truncated":
        weights.write_bytes(weights.read_bytes()[:-100])
    else:
        (tmp_path / "config.json").write_text(json.dumps({"depth": 2}))
    with pytest.raises(UserError, match="holds no readable model"):
        load_model(tmp_path, device="cpu")


def test_want_of_memory_is_no_fault_of_the_model(
    tmp_path: Path, config: ModelConfig, make_model: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_model(tmp_path, make_model(config), {})

    def load(*_: object, **__: object) -> None:
        raise torch.OutOfMemoryError("full")

    monkeypatch.setattr(export, "load_file", load)
    with pytest.raises(torch.OutOfMemoryError):
        load_model(tmp_path, device="cpu")
