"""CPU cores, the threads that compute on them, and the memory that they compute in.

    settle()        # first of all, in every program that computes; then import torch

Imports no torch: what is set here is read when PyTorch is imported.
"""

from __future__ import annotations

import ctypes
import math
import os

from nanochat.runtime.cgroup import cpu_quota


def cores() -> int:
    """CPU cores that this process may use: those it may run on, and no more than its container has the time of."""
    there = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quota = cpu_quota()
    return there if quota is None else max(1, min(there, math.ceil(quota)))


# Kernels for matrices of so many shapes are kept, in oneDNN's cache and in PyTorch's before it. Each takes some
# hundreds of kilobytes, and the 1,024 of the default are reached where prompts have any length.
KERNELS = {"LRU_CACHE_CAPACITY": "128", "ONEDNN_PRIMITIVE_CACHE_CAPACITY": "128"}
SPINS = "1000"  # how often a thread that waits looks before it sleeps: some ten microseconds, a wake-up's time


def settle() -> None:
    """Set this process up to compute; what the environment says already counts.

    Threads that wait fall asleep after a moment: without the sleep two processes that share the cores take twice as
    long, without the moment one alone takes a fifth longer (docs/performance.md).
    """
    os.environ.setdefault("OMP_NUM_THREADS", str(cores()))
    if os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE").upper() == "PASSIVE":
        os.environ.setdefault("GOMP_SPINCOUNT", SPINS)
    for name, count in KERNELS.items():
        os.environ.setdefault(name, count)
    keep_pages()


M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_MAX = -1, -2, -4  # glibc's malloc.h
PAD_BYTES = 64 * 2**20


def keep_pages() -> None:
    """Let glibc's allocator keep the memory that is freed, for the next step needs as much again.

    Else each large tensor is mapped anew, and the kernel clears its pages one by one. MALLOC_ variables in the
    environment count as they do without this; other C libraries have no such setting.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None or any(name.startswith("MALLOC_") for name in os.environ):
        return
    for setting, value in ((M_MMAP_MAX, 0), (M_TRIM_THRESHOLD, -1), (M_TOP_PAD, PAD_BYTES)):  # -1: never
        mallopt(setting, value)


def give_back() -> None:
    """Give memory that was freed back to the system after all, where it was needed once."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)
