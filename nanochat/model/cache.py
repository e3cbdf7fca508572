"""The key-value cache: slots of one sequence each, which `Transformer.extend` reads and writes.

    cache = KVCache(model.config, slots=8, length=1024, device=device, dtype=model.compute_dtype)
    model.extend(prompt, start=torch.tensor([0]), slots=torch.tensor([3]), cache=cache)

A slot needs no clearing: a sequence only ever attends to the positions that it has written itself.
"""

from __future__ import annotations

import torch

from nanochat.model.sizes import ModelConfig


class KVCache:
    """Keys and values of all layers, k and v of shape (L, slots, length, H_kv, hd)."""

    def __init__(
        self, config: ModelConfig, *, slots: int, length: int, device: torch.device | str, dtype: torch.dtype
    ) -> None:
        shape = (config.depth, slots, length, config.kv_heads, config.head_dim)
        # Zeros, not empty: masked positions have weight 0, and 0 * NaN would not be 0.
        self.k = torch.zeros(shape, device=device, dtype=dtype)
        self.v = torch.zeros(shape, device=device, dtype=dtype)
        self.slots = slots
        self.length = length

    def copy_slot(self, source: int, target: int, length: int) -> None:
        """Copy the first `length` positions of a slot: the shared prefix of several samples."""
        self.k[:, target, :length] = self.k[:, source, :length]
        self.v[:, target, :length] = self.v[:, source, :length]
