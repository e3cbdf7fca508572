"""A model's folder that others wrote, read with bounds: only plain files of it, each up to a limit."""

from __future__ import annotations

import stat
from pathlib import Path
from typing import Any

from nanochat.parse import Malformed
from nanochat.parse.json_text import read_json
from nanochat.spec.errors import UserError

LARGEST_DOCUMENT = 64 << 20  # bytes; the tokenizer.json of 65,536 tokens has 5 MB
INDEX = "model.safetensors.index.json"
WEIGHTS = "model.safetensors"
MOST_SHARDS = 1024
PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")


class ForeignFolder:
    """A folder whose files may be anything."""

    def __init__(self, path: Path) -> None:
        if not path.is_dir():
            raise UserError(f"{path} is no folder: name one that holds config.json, tokenizer.json and {WEIGHTS}")
        self.path = path

    def file(self, name: str) -> Path:
        """The path of a plain file of this folder."""
        path = self.path / name
        try:
            real = path.resolve(strict=True)
            inside, plain = real.is_relative_to(self.path.resolve()), stat.S_ISREG(real.stat().st_mode)
        except FileNotFoundError:
            raise UserError(f"{self.path} has no {name}") from None
        except (OSError, RuntimeError) as error:  # a link to itself
            raise UserError(f"{path} cannot be read: {error}") from None
        if not inside:
            raise UserError(f"{path} is a link that leads out of the folder: put a copy of the file in its place")
        if not plain:
            raise UserError(f"{path} is no plain file")
        return real

    def document(self, name: str) -> Any:
        """The value of a JSON file."""
        path = self.file(name)
        try:
            with path.open("rb") as file:
                return read_json(file.read(LARGEST_DOCUMENT + 1), limit=LARGEST_DOCUMENT)
        except Malformed as error:
            raise UserError(f"{self.path / name} cannot be read: {error}") from None

    def shards(self) -> list[Path]:
        """The files of the weights, one or those that an index names."""
        if (self.path / WEIGHTS).exists() or (self.path / WEIGHTS).is_symlink():
            return [self.file(WEIGHTS)]
        if not (self.path / INDEX).exists():
            pickled = sorted(path.name for path in self.path.iterdir() if path.suffix in PICKLES)
            if pickled:
                raise UserError(
                    f"{self.path} holds its weights in {pickled[0]!a}, which can run code when it is read: "
                    "save the model with safetensors"
                )
            raise UserError(f"{self.path} has no {WEIGHTS}")
        index = self.document(INDEX)
        listed = index.get("weight_map") if isinstance(index, dict) else None
        if not isinstance(listed, dict) or not all(isinstance(name, str) for name in listed.values()):
            raise UserError(f"{self.path / INDEX} has no weight_map of weights and their files")
        found = sorted(set(listed.values()))
        if not 1 <= len(found) <= MOST_SHARDS:
            raise UserError(f"{self.path / INDEX} names {len(found):,} files; 1 to {MOST_SHARDS:,} are read")
        if bad := [name for name in found if Path(name).name != name or not name.endswith(".safetensors")]:
            raise UserError(f"{self.path / INDEX} names {bad[0][:80]!a}, which is no safetensors file of the folder")
        return [self.file(name) for name in found]
