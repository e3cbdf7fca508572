"""Value embeddings: a table of each token's contribution to a layer's values, with a gate for each key-value head.

    v = value_embedding(v, x, ids)      # v + gate(x) table[ids]

They add many parameters and hardly any FLOPs. The modern recipe has them in every second layer.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nanochat.model.sizes import GATE_CHANNELS, ModelConfig

LARGEST_GATE = 3.0


class ValueEmbedding(nn.Module):
    """One layer's table (V, H_kv * hd) and gate (H_kv, channels)."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.table = nn.Parameter(torch.empty(config.vocab_size, config.kv_width))
        self.gate = nn.Parameter(torch.empty(config.kv_heads, min(GATE_CHANNELS, config.width)))

    def forward(self, v: Tensor, x: Tensor, ids: Tensor) -> Tensor:
        """v (B, T, H_kv, hd), the attention's input x (B, T, D), ids (B, T) -> as v."""
        gate = LARGEST_GATE * torch.sigmoid(F.linear(x[..., : self.gate.size(1)], self.gate.to(x.dtype)))
        return v + gate[..., None] * F.embedding(ids, self.table).to(x.dtype).view_as(v)

    def init_weights(self, width: int, generator: torch.Generator) -> None:
        """The table as large as the values of a model of this width, the gate about half open."""
        self.table.normal_(0.0, width**-0.5, generator=generator)
        self.gate.uniform_(0.0, 0.02, generator=generator)
