"""The modern recipe's learned scalars around the blocks: smear, residual and input scalars, backout.

    stream = ResidualStream(config)
    x = first = stream.smear(x, before)             # x_t + scale gate(x_t) x_(t-1)
    x = stream.enter(layer, x, first)               # a_layer x + b_layer first, before each block
    x = stream.leave(x, middle)                     # x - c middle, after the last one

A classic model has none of these parameters, and each call then returns x itself. Shapes: x (B, T, D).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nanochat.model.sizes import SMEAR_CHANNELS, ModelConfig


class ResidualStream(nn.Module):
    """Learned scalars on the stream between embedding and head."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.has_smear, self.has_scalars, self.has_backout = config.smear, config.residual_scalars, config.backout
        self.middle = config.depth // 2  # the layer after which the stream is kept for backout
        if config.smear:
            self.smear_gate = nn.Parameter(torch.empty(1, min(SMEAR_CHANNELS, config.width)))
            self.smear_scale = nn.Parameter(torch.empty(1))
        if config.residual_scalars:
            self.stream_scale = nn.Parameter(torch.empty(config.depth))
            self.input_scale = nn.Parameter(torch.empty(config.depth))
        if config.backout:
            self.backout_scale = nn.Parameter(torch.empty(1))

    def smear(self, x: Tensor, before: Tensor | None = None) -> Tensor:
        """Mix each token's predecessor in; `before` (B, 1, D) is that of the first, zero where there is none."""
        if not self.has_smear:
            return x
        previous = torch.cat((torch.zeros_like(x[:, :1]) if before is None else before, x[:, :-1]), dim=1)
        gate = torch.sigmoid(F.linear(x[..., : self.smear_gate.size(1)], self.smear_gate.to(x.dtype)))  # (B, T, 1)
        return x + self.smear_scale.to(x.dtype) * gate * previous

    def enter(self, layer: int, x: Tensor, first: Tensor) -> Tensor:
        """The input of a layer's block; `first` is the stream before all of them."""
        if not self.has_scalars:
            return x
        return self.stream_scale[layer].to(x.dtype) * x + self.input_scale[layer].to(x.dtype) * first

    def leave(self, x: Tensor, middle: Tensor) -> Tensor:
        """The stream that goes to the head; `middle` is that after the block of layer `self.middle`."""
        return x - self.backout_scale.to(x.dtype) * middle if self.has_backout else x

    def init_weights(self, generator: torch.Generator) -> None:
        """Smear does nothing at first; early layers lean more on the embedding than late ones."""
        if self.has_smear:
            self.smear_gate.uniform_(0.0, 0.02, generator=generator)
            self.smear_scale.zero_()
        if self.has_scalars:
            self.stream_scale.copy_(torch.linspace(1.15, 1.05, len(self.stream_scale)))
            self.input_scale.copy_(torch.linspace(0.20, 0.05, len(self.input_scale)))
        if self.has_backout:
            self.backout_scale.fill_(0.2)
