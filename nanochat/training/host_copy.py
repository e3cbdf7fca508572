"""The state of training at one moment, copied to host memory so that it can be written while training goes on.

copy = HostCopy()
files = copy.take({"model.safetensors": model.state_dict()})   # training may go on at once
copy.wait()                                                    # by whoever reads it
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

Files = Mapping[str, Mapping[str, Tensor]]  # tensors by name, by the file that takes them


class HostCopy:
    """Buffers that are made once and take one copy after the other; from a GPU they are pinned."""

    def __init__(self) -> None:
        self._buffers: dict[str, dict[str, Tensor]] = {}
        self._copied: torch.cuda.Event | None = None

    def take(self, files: Files) -> Files:
        """Copy tensors, of the same names and shapes each time, over the copy before.

        From a GPU the copies are only begun: its stream makes them before what follows can change the tensors.
        """
        for file, tensors in files.items():
            kept = self._buffers.setdefault(file, {})
            for name, tensor in tensors.items():
                if name not in kept:
                    kept[name] = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=tensor.is_cuda)
                kept[name].copy_(tensor.detach(), non_blocking=tensor.is_cuda)
        if any(tensor.is_cuda for tensors in files.values() for tensor in tensors.values()):
            self._copied = torch.cuda.Event()
            self._copied.record()
        return self._buffers

    def wait(self) -> None:
        """Return when the copy is whole."""
        if self._copied is not None:
            with torch.cuda.device(self._copied.device):  # a thread begins on the first GPU, which is another rank's
                self._copied.synchronize()
