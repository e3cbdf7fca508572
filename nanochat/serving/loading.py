"""A model artifact's folder as something that can speak: weights in their compute format and the tokenizer."""

from __future__ import annotations

import hashlib
import logging
from pathlib import Path
from typing import Any

from nanochat.model.artifact import SERVED, combined
from nanochat.model.export import load_model
from nanochat.model.int8 import to_int8
from nanochat.model.speed import speed_up
from nanochat.model.transformer import Transformer
from nanochat.runtime.device import choose_device
from nanochat.runtime.threads import give_back
from nanochat.tokenizer import Tokenizer

_log = logging.getLogger(__name__)


def load(folder: Path, *, int8: bool = False, beside: bool = False) -> tuple[Transformer, Tokenizer, dict[str, Any]]:
    """Model, tokenizer and what the artifact says of the model (stage, step), on the best device there is.

    With `int8` its matrices have 8 bits, on a CPU; UserError elsewhere. Code that has to be compiled is waited for,
    unless it may come `beside` the first answers.
    """
    device = choose_device()
    model, extra = load_model(folder, device=device.device, compute_dtype=device.compute_dtype)
    if int8:
        _log.info("%s", to_int8(model))
    model.cast_weights()
    speed_up(model, beside=beside, settled=not int8)
    give_back()
    return model, Tokenizer.load(folder), extra


def fingerprint(folder: Path) -> str:
    """Sixteen hexadecimal digits that name the model: what `nanochat.model.artifact` reads in a manifest."""
    digests = {}
    for name in SERVED:
        with (folder / name).open("rb") as file:
            digests[name] = hashlib.file_digest(file, "sha256").hexdigest()
    return combined(digests)
