"""Which kernel attends in training.

    choice = choose_attention(device, config, world=world, cache=cache)
    model.attend = choice.attend
    log.info("%s", choice.reason)

Chosen by what the device has, never by a stopwatch: a resumed run must choose again what it chose before, or its
weights would not be equal bit for bit. A kernel that is fetched may be there one time and not the next, so what is to
be deterministic on a GPU takes PyTorch's.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from nanochat.model import blocked_attention
from nanochat.model.attention import Attend, sdpa
from nanochat.model.sizes import ModelConfig
from nanochat.runtime.device import Device
from nanochat.runtime.distributed import ALONE, World
from nanochat.storage.cache import Cache
from nanochat.training import flash_attention

HOPPER = 9  # the first number of its compute capability
LARGEST_HEAD = 256  # of FlashAttention 3
PYTORCHS = "attention by PyTorch's kernels"


@dataclass(frozen=True, slots=True)
class Choice:
    """A kernel, and the words that name it."""

    attend: Attend
    reason: str


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
        fits = config.sequence_length <= blocked_attention.LONGEST
        if fits and blocked_attention.is_supported(device.compute_dtype):
            return Choice(blocked_attention.blocked, "attention by blocks of rows")
    elif device.device.type == "cuda" and device.compute_dtype == torch.bfloat16 and cache and not deterministic:
        hopper = torch.cuda.get_device_capability(device.device)[0] == HOPPER
        if hopper and config.head_dim % 8 == 0 and config.head_dim <= LARGEST_HEAD:
            try:
                return Choice(flash_attention.load(cache, world, device.device), "attention by FlashAttention 3")
            except flash_attention.Unavailable as error:
                return Choice(sdpa, f"{PYTORCHS}: {error}")
    return Choice(sdpa, PYTORCHS)
