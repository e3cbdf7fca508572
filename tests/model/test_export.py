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


def test_weights_that_cannot_be_written_are_an_error_of_storage(
    tmp_path: Path, config: ModelConfig, make_model: Make
) -> None:
    (tmp_path / "model.safetensors").mkdir()
    with pytest.raises(UserError, match=f"^{tmp_path} is a file where a folder should be, or the reverse"):
        save_model(tmp_path, make_model(config), {})


@pytest.mark.parametrize(("dtype", "copied"), [(torch.bfloat16, False), (torch.float32, True)])
def test_weights_are_those_of_the_file_and_can_be_trained(
    tmp_path: Path,
    config: ModelConfig,
    make_model: Make,
    monkeypatch: pytest.MonkeyPatch,
    dtype: torch.dtype,
    copied: bool,
) -> None:
    """Copied once, where they are computed with in their own format, and else not at all."""
    save_model(tmp_path, make_model(config), {})
    read = export.load_file(tmp_path / "model.safetensors")
    monkeypatch.setattr(export, "load_file", lambda *_, **__: read)
    loaded, _ = load_model(tmp_path, device="cpu", compute_dtype=dtype)
    for name, weight in loaded.named_parameters():
        assert torch.equal(weight, read[name]) and weight.dtype == torch.float32 and weight.requires_grad
        assert (weight.data_ptr() != read[name].data_ptr()) is copied
    assert torch.equal(loaded.rotary, Transformer(config).rotary)
    ids = torch.arange(16)[None]
    loaded(ids, ids).backward()
    assert all(weight.grad is not None for weight in loaded.parameters())


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
