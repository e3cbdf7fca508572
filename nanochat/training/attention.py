"""Which kernel attends in training.

    choice = choose_attention(device, config)
    model.attend = choice.attend
    log.info("%s", choice.reason)

Chosen by what the device has, never by a stopwatch: a resumed run must choose again what it chose before, or its
weights would not be equal bit for bit.
"""

from __future__ import annotations

from dataclasses import dataclass

from nanochat.model import blocked_attention
from nanochat.model.attention import Attend, sdpa
from nanochat.model.sizes import ModelConfig
from nanochat.runtime.device import Device


@dataclass(frozen=True, slots=True)
class Choice:
    """A kernel, and the words that name it."""

    attend: Attend
    reason: str


def choose_attention(device: Device, config: ModelConfig) -> Choice:
    """The fastest kernel for rows of the trained context."""
    if (
        device.device.type == "cpu"
        and config.sequence_length <= blocked_attention.LONGEST
        and blocked_attention.is_supported(device.compute_dtype)
    ):
        return Choice(blocked_attention.blocked, "attention by blocks of rows")
    return Choice(sdpa, "attention by PyTorch's kernels")
