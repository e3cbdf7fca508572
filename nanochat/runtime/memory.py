"""Memory that is used up, by the exceptions that say so; large pages. Imports no torch: stages without it ask too."""

from __future__ import annotations

import ctypes
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


LARGE_PAGE = 2 << 20
MADV_COLLAPSE = 25  # Linux 6.1


def use_large_pages(address: int, size: int) -> None:
    """Put memory, and what shares pages with it, into large pages, where the system does that: what is read from end to
    end is then read faster."""
    begin, end = address // LARGE_PAGE * LARGE_PAGE, -(-(address + size) // LARGE_PAGE) * LARGE_PAGE
    if sys.platform == "linux" and 4 * size >= LARGE_PAGE:
        ctypes.CDLL(None).madvise(ctypes.c_void_p(begin), ctypes.c_size_t(end - begin), MADV_COLLAPSE)
