"""A model as files: model.safetensors (fp32) and config.json, ModelConfig and what the stage adds.

save_model(folder, model, {"stage": "base", "step": 21_400})
model, extra = load_model(folder, device="cuda")
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from nanochat.model.artifact import CONFIG, WEIGHTS
from nanochat.model.sizes import ModelConfig
from nanochat.model.transformer import Transformer
from nanochat.runtime.device import compute_dtype_for
from nanochat.runtime.memory import is_out_of_memory
from nanochat.spec.errors import UserError
from nanochat.storage.failures import translate_errors


def save_model(folder: Path, model: Transformer, extra: Mapping[str, Any]) -> None:
    """Write weights and configuration into an existing folder."""
    weights = {name: weight.detach().contiguous() for name, weight in model.state_dict().items()}
    with translate_errors(doing="writing", where=str(folder)):
        save_file(weights, folder / WEIGHTS)
        (folder / CONFIG).write_text(json.dumps({**model.config.to_dict(), **extra}, indent=2) + "\n")


def load_model(
    folder: Path, *, device: torch.device | str, compute_dtype: torch.dtype | None = None
) -> tuple[Transformer, dict[str, Any]]:
    """The model, with fp32 weights, and what was saved beside its configuration.

    compute_dtype is the device's own unless given. On a CPU the weights are pages of the file until they are cast, or
    copied where they are computed with as they are.
    """
    try:
        values = json.loads((folder / CONFIG).read_text())
        config = ModelConfig.from_dict(values)
        weights = load_file(folder / WEIGHTS, device=str(device))
        with torch.device("meta"):
            model = Transformer(config)
        model.load_state_dict({name: weight.float() for name, weight in weights.items()}, assign=True)
        with torch.device(device):
            model.rotary = model.rotary_table()
    except (OSError, ValueError, TypeError, RuntimeError, SafetensorError) as error:
        if is_out_of_memory(error):
            raise
        message = f"{folder} holds no readable model ({error}); name a folder that a stage wrote."
        raise UserError(message) from error
    model.compute_dtype = compute_dtype or compute_dtype_for(device)
    if model.device.type == "cpu" and model.compute_dtype == torch.float32:
        for weight in model.parameters():
            weight.data = weight.data.clone()
    return model, {name: value for name, value in values.items() if name not in _config_fields()}


def _config_fields() -> frozenset[str]:
    return frozenset(field.name for field in fields(ModelConfig))
