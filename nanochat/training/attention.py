"""Which kernel attends in training, and what computes between the products.

    choice = choose_attention(device, config, world=world, cache=cache)
    choice.use_in(model)
    log.info("%s", choice.reason)

Chosen by what the device has, never by a stopwatch: a resumed run must choose again what it chose before, or its
weights would not be equal bit for bit. A kernel that is fetched may be there one time and not the next, so what is to
be deterministic on a GPU takes PyTorch's. On a CPU it is compiled where there is a C++ compiler.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from nanochat.model import blocked_attention, fused_attention, fused_pointwise
from nanochat.model.attention import Attend, sdpa
from nanochat.model.pointwise import PLAIN, Pointwise
from nanochat.model.sizes import ModelConfig
from nanochat.model.transformer import Transformer
from nanochat.runtime.device import Device
from nanochat.runtime.distributed import ALONE, World
from nanochat.runtime.native_code import Uncompiled
from nanochat.storage.cache import Cache
from nanochat.training import flash_attention

HOPPER = 9  # the first number of its compute capability
LARGEST_HEAD = 256  # of FlashAttention 3
PYTORCHS = "attention by PyTorch's kernels"


@dataclass(frozen=True, slots=True)
class Choice:
    """A kernel, the words that name it, and what goes with it."""

    attend: Attend
    reason: str
    pointwise: Pointwise = PLAIN

    @property
    def fused(self) -> bool:
        """Whether own code computes what lies between the products of a model that is not compiled."""
        return self.pointwise is not PLAIN

    def use_in(self, model: Transformer) -> None:
        """Let a model compute by it."""
        model.attend, model.pointwise = self.attend, self.pointwise


def choose_attention(
    device: Device,
    config: ModelConfig,
    *,
    deterministic: bool = False,
    world: World = ALONE,
    cache: Cache | None = None,
) -> Choice:
    """The fastest kernel for rows of the trained context; all processes call it, and all get the same.

    Without a cache no kernel is fetched.
    """
    if device.device.type == "cpu":
        return _on_cpu(device.compute_dtype, config.sequence_length, world)
    if device.device.type == "cuda" and device.compute_dtype == torch.bfloat16 and cache and not deterministic:
        hopper = torch.cuda.get_device_capability(device.device)[0] == HOPPER
        if hopper and config.head_dim % 8 == 0 and config.head_dim <= LARGEST_HEAD:
            try:
                return Choice(flash_attention.load(cache, world, device.device), "attention by FlashAttention 3")
            except flash_attention.Unavailable as error:
                return Choice(sdpa, f"{PYTORCHS}: {error}")
    return Choice(sdpa, PYTORCHS)


def _on_cpu(compute_dtype: torch.dtype, length: int, world: World) -> Choice:
    reason = "" if fused_attention.is_supported(compute_dtype) else "this CPU has no instructions for bf16"
    if not reason:
        try:
            fused_attention.prepare()
            fused_pointwise.prepare()
        except (Uncompiled, OSError) as error:
            reason = str(error)
    (failed,) = world.sum(float(bool(reason)))
    if not failed:
        return Choice(fused_attention.fused, "attention by compiled code", fused_pointwise.FUSED)
    said = f": {reason or 'another process has no compiled code'}" if compute_dtype == torch.bfloat16 else ""
    if length <= blocked_attention.LONGEST and blocked_attention.is_supported(compute_dtype):
        return Choice(blocked_attention.blocked, f"attention by blocks of rows{said}")
    return Choice(sdpa, f"{PYTORCHS}{said}")
