"""A folder of transformers' NanoChatForCausalLM as the files of a model artifact.

foreign = read(Path("nanochat-d20"))     # UserError where it is none, or another model than this project has
foreign.digests                          # {"config.json": "9f...", ...}: what it was read from
foreign.write(folder)                    # model.safetensors (fp32), config.json, tokenizer.json, byte_lengths.bin
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from nanochat.exchange.config import from_transformers
from nanochat.exchange.folder import ForeignFolder
from nanochat.exchange.tokenizer import from_huggingface
from nanochat.exchange.weights import names, shapes
from nanochat.model.artifact import CONFIG, IMPORTED, TOKENIZER, WEIGHTS
from nanochat.model.sizes import ModelConfig, parameters
from nanochat.runtime.cgroup import free_memory
from nanochat.spec.errors import UserError
from nanochat.storage.files import sha256
from nanochat.tokenizer import Tokenizer

T = TypeVar("T")
TYPES = "F32, BF16, F16"


@dataclass(frozen=True, slots=True)
class ForeignModel:
    """A model that was found sound, its weights' values excepted, which are read when it is written."""

    folder: Path
    config: ModelConfig
    tokenizer: Tokenizer
    shards: tuple[Path, ...]
    digests: dict[str, str]

    def weights(self) -> dict[str, torch.Tensor]:
        """The weights by this project's names, in fp32; UserError where one is not finite."""
        own = {theirs: own for own, theirs in names(self.config).items()}
        weights: dict[str, torch.Tensor] = {}
        for shard in self.shards:
            with safe_open(shard, "pt") as file:
                for name in file.keys():  # noqa: SIM118  (no mapping)
                    weights[own[name]] = weight = file.get_tensor(name).to(torch.float32)
                    if not weight.isfinite().all():
                        raise UserError(f"{shard}: {name} holds numbers that are not finite")
        return weights

    def write(self, target: Path, weights: dict[str, torch.Tensor]) -> None:
        """Write the artifact's files into an existing folder."""
        save_file(weights, target / WEIGHTS)
        document = {**self.config.to_dict(), "stage": IMPORTED, "step": 0}
        (target / CONFIG).write_text(json.dumps(document, indent=2) + "\n")
        self.tokenizer.save(target)


def read(path: Path) -> ForeignModel:
    """The model of a folder; UserError with one sentence where it cannot be imported."""
    folder = ForeignFolder(path)
    shards = folder.shards()
    config = _of(folder, CONFIG, from_transformers)
    tokenizer = _of(folder, TOKENIZER, from_huggingface)
    if config.vocab_size != tokenizer.vocab_size:
        raise UserError(
            f"{path} holds a model of {config.vocab_size:,} ids and a tokenizer of {tokenizer.vocab_size:,}: "
            "the two have to be as many"
        )
    needed, free = 4 * parameters(config), free_memory()
    if needed > free:
        raise UserError(
            f"{path} holds a model that takes {needed / 2**30:,.1f} GiB of memory, and {free / 2**30:,.1f} GiB are free"
        )
    _check(shards, config)
    documents = [folder.file(name) for name in (CONFIG, TOKENIZER)]
    digests = {file.name: sha256(file) for file in (*documents, *shards)}
    return ForeignModel(path, config, tokenizer, tuple(shards), digests)


def _of(folder: ForeignFolder, name: str, understand: Callable[[Any], T]) -> T:
    document = folder.document(name)
    try:
        return understand(document)
    except UserError as error:
        raise UserError(f"{folder.path / name} cannot be imported: {error.message}") from None


def _check(shards: list[Path], config: ModelConfig) -> None:
    """UserError unless the shards hold the model's weights, each once, in its shape and in a known type."""
    sizes = shapes(config)
    wanted = {theirs: sizes[own] for own, theirs in names(config).items()}
    for shard in shards:
        try:
            with safe_open(shard, "pt") as file:
                found = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118  (no mapping)
                for name, part in found.items():
                    shape = wanted.pop(name, None)
                    if shape is None:
                        raise UserError(f"{shard}: {name[:80]!a} is no weight of the model, or is there twice")
                    if tuple(part.get_shape()) != shape:
                        raise UserError(f"{shard}: {name} has the shape {part.get_shape()} instead of {list(shape)}")
                    if part.get_dtype() not in TYPES.split(", "):
                        raise UserError(f"{shard}: {name} is of the type {part.get_dtype()}, and only {TYPES} are read")
        except (OSError, SafetensorError) as error:
            raise UserError(f"{shard} is no readable safetensors file: {error}") from None
    if wanted:
        raise UserError(f"{shards[0].parent} lacks {min(wanted)} and {len(wanted) - 1:,} other weights of the model")
