"""The optimizer's state in safetensors files, one of each process that wrote it, read by any number of processes.

    save_file(optimizer.own_state(), path)                   # each process its own
    optimizer.load_state_dict(StateFiles(paths))             # in order of rank

A tensor of which several files have a part is divided by rows: the parts in order are the whole.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor


class StateFiles(Mapping[str, Tensor]):
    """Whole tensors by name; each is read when it is asked for, and not kept."""

    def __init__(self, paths: Sequence[Path]) -> None:
        self._files: dict[str, list[Any]] = {}  # name -> the files that have a part
        for path in paths:
            file = safe_open(path, framework="pt")
            for name in file.keys():  # noqa: SIM118, it is no mapping
                self._files.setdefault(name, []).append(file)

    def __getitem__(self, name: str) -> Tensor:
        first, *more = [file.get_tensor(name) for file in self._files[name]]
        return torch.cat([first, *more]) if more else first

    def __iter__(self) -> Iterator[str]:
        return iter(self._files)

    def __len__(self) -> int:
        return len(self._files)
