"""A model artifact as a folder that transformers loads: AutoModelForCausalLM and AutoTokenizer, nothing else needed.

export(folder, target)          # the target must not be there yet, or be empty; it is written whole or not at all
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from nanochat.exchange.card import render_card
from nanochat.exchange.chat_template import CHAT_TEMPLATE
from nanochat.exchange.config import to_transformers, token_ids
from nanochat.exchange.tokenizer import to_huggingface, tokenizer_config
from nanochat.exchange.weights import names, shapes
from nanochat.model.artifact import CONFIG, TOKENIZER, WEIGHTS
from nanochat.model.sizes import ModelConfig
from nanochat.spec.errors import UserError
from nanochat.storage.files import temporary
from nanochat.tokenizer import Tokenizer

TEMPLATE = "chat_template.jinja"


def export(folder: Path, target: Path) -> None:
    """Write the model of an artifact's folder to `target`; UserError where that cannot be."""
    if target.is_symlink() or (target.exists() and not (target.is_dir() and not any(target.iterdir()))):
        raise UserError(f"{target} is there already: name a folder that is new or empty")
    values = _config(folder)
    config = ModelConfig.from_dict(values)
    tokenizer = Tokenizer.load(folder)
    if config.vocab_size != tokenizer.vocab_size:
        raise UserError(
            f"{folder} holds a model of {config.vocab_size:,} ids and a tokenizer of {tokenizer.vocab_size:,}: "
            "name a folder that a stage wrote"
        )
    documents = {
        CONFIG: to_transformers(config, tokenizer.special),
        TOKENIZER: to_huggingface(tokenizer),
        "tokenizer_config.json": tokenizer_config(tokenizer, sequence_length=config.sequence_length),
        "generation_config.json": _generation(tokenizer),
    }
    target.parent.mkdir(parents=True, exist_ok=True)
    scratch = temporary(target)
    scratch.mkdir()
    try:
        _write_weights(folder / WEIGHTS, scratch / WEIGHTS, config)
        for name, document in documents.items():
            (scratch / name).write_text(json.dumps(document, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
        (scratch / TEMPLATE).write_text(CHAT_TEMPLATE, encoding="utf-8")
        (scratch / "README.md").write_text(render_card(config, values), encoding="utf-8")
        scratch.rename(target)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _config(folder: Path) -> dict[str, Any]:
    try:
        return json.loads((folder / CONFIG).read_text())
    except (OSError, ValueError) as error:
        raise UserError(f"{folder / CONFIG} cannot be read ({error}): name a folder that a stage wrote") from error


def _generation(tokenizer: Tokenizer) -> dict[str, Any]:
    """How answers are sampled unless a caller says otherwise: as the chat API does."""
    special = tokenizer.special
    ends = [special["assistant_end"], special["bos"]]
    return token_ids(special) | {"eos_token_id": ends, "do_sample": True, "temperature": 0.8, "top_k": 50}


def _write_weights(source: Path, target: Path, config: ModelConfig) -> None:
    try:
        weights = load_file(source)
    except (OSError, SafetensorError) as error:
        raise UserError(f"{source} cannot be read ({error}): name a folder that a stage wrote") from error
    wanted = shapes(config)
    if {name: tuple(weight.shape) for name, weight in weights.items()} != wanted:
        raise UserError(f"{source} does not fit its {CONFIG}: name a folder that a stage wrote")
    renamed = names(config)
    try:
        save_file({renamed[name]: weight for name, weight in weights.items()}, target, metadata={"format": "pt"})
    except SafetensorError as error:
        raise UserError(f"{target.parent.parent} cannot take the weights: {error}") from error
