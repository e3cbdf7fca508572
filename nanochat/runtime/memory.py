"""Memory that is used up, by the exceptions that say so. Imports no torch: stages without it ask too."""

from __future__ import annotations

import sys

# How PyTorch's allocator of host memory begins its error, a RuntimeError like any other: it has no type and no code.
CPU_ALLOCATOR = "[enforce fail at alloc_cpu.cpp"


def is_out_of_memory(error: BaseException) -> bool:
    """Whether the device or the host had too little memory."""
    if isinstance(error, MemoryError):
        return True
    torch = sys.modules.get("torch")
    if torch is None or not isinstance(error, RuntimeError):
        return False
    return isinstance(error, torch.OutOfMemoryError) or str(error).startswith(CPU_ALLOCATOR)
