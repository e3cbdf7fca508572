"""FlashAttention 3 on Hopper GPUs (arXiv 2407.08608), a kernel that the package `kernels` fetches from its hub.

    attend = load(cache, world, device)    # Unavailable, with the reason, where there is none

It is machine code of others, at a pinned commit, and loaded only where somebody installed `kernels` (the extra
`hopper`). One process of each node fetches it into the cache, by a process of its own that is ended after SECONDS; then
all load it without the network. It is tried before it is used.
"""

from __future__ import annotations

import importlib
import os
import subprocess
import sys
from collections.abc import Callable
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor

from nanochat.model.attention import Attend, sdpa
from nanochat.runtime.distributed import World
from nanochat.storage.cache import Cache

REPOSITORY = "kernels-community/flash-attn3"
COMMIT = "9542c462013476380ce4b395b9ddc0e8118161ee"
PROGRAM = f"from kernels import get_kernel; get_kernel({REPOSITORY!r}, revision={COMMIT!r})"
SECONDS = 180.0  # for fetching, some 100 MB
ROUNDING = 0.02  # of results, by those of PyTorch's kernel

Kernel = Callable[..., Any]


class Unavailable(Exception):
    """There is no such kernel here; the message says why."""


def load(cache: Cache, world: World, device: torch.device) -> Attend:
    """The kernel, where every process has it; all of them call this."""
    reason, attend = "", sdpa
    try:
        if find_spec("kernels") is None:
            raise Unavailable("the package kernels is not installed")
        os.environ.setdefault("KERNELS_CACHE", str(cache.folder_for(f"{REPOSITORY} at {COMMIT}")))
        if world.local_rank == 0:
            fetch()
    except Unavailable as error:
        reason = str(error)
    world.sum(0.0)  # all wait until it is there
    if not reason:
        try:
            attend = prove(wrap(read()), device)
        except Exception as error:  # whatever code of others raises
            reason = in_one_line(error)
    (failed,) = world.sum(float(bool(reason)))
    if failed:
        raise Unavailable(reason or "another process has none")
    return attend


def fetch() -> None:
    """Get the kernel into the cache, unless it is there."""
    try:
        subprocess.run([sys.executable, "-c", PROGRAM], check=True, timeout=SECONDS, capture_output=True, text=True)
    except subprocess.TimeoutExpired:
        raise Unavailable(f"FlashAttention 3 did not come within {SECONDS:g} s") from None
    except subprocess.CalledProcessError as error:
        raise Unavailable(in_one_line(error.stderr.strip().rpartition("\n")[2])) from None


def read() -> Kernel:
    """The function that is in the cache, without asking the hub."""
    os.environ["HF_HUB_OFFLINE"] = "1"  # read when `kernels` is imported
    kernel = importlib.import_module("kernels").get_kernel(REPOSITORY, revision=COMMIT)
    return kernel.flash_attn_func


def wrap(kernel: Kernel) -> Attend:
    """The kernel as a model calls it; the compiler leaves it alone, for it cannot see into it."""

    def attend(q: Tensor, k: Tensor, v: Tensor, window: int | None) -> Tensor:
        before = -1 if window is None else window - 1
        found = kernel(q, k, v, causal=True, window_size=(before, 0 if window else -1))
        return found[0] if isinstance(found, tuple) else found  # some builds give the sums, too

    alone: Any = torch.compiler.disable
    return alone(attend)


def prove(attend: Attend, device: torch.device) -> Attend:
    """The same, once its results and gradients are those of PyTorch's kernel."""
    draw = torch.Generator().manual_seed(0)
    given = [torch.randn(2, 256, 2, 64, generator=draw).to(device, torch.bfloat16) for _ in range(4)]
    for window in (None, 100):
        found, expected = (results(each, given, window) for each in (attend, sdpa))
        for a, b in zip(found, expected, strict=True):
            if not float((a.float() - b.float()).norm()) <= ROUNDING * float(b.float().norm()):
                raise Unavailable("FlashAttention 3 does not compute here what PyTorch's kernel does")
    return attend


def results(attend: Attend, given: list[Tensor], window: int | None) -> list[Tensor]:
    """The output for q, k and v of `given`, and their gradients for that of the output, the last."""
    q, k, v = (x.clone().requires_grad_() for x in given[:3])
    y = attend(q, k, v, window)
    return [y.detach(), *torch.autograd.grad(y, (q, k, v), given[3])]


def in_one_line(problem: object) -> str:
    """The first line of what code of others says, up to 200 characters."""
    text = " ".join(str(problem).strip().splitlines()[:1])[:200]
    return f"FlashAttention 3 cannot be had ({text or type(problem).__name__})"
