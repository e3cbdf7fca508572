"""A small problem for optimizers: a model's parameters, and gradients that depend on weights, step and batch."""

from __future__ import annotations

import torch
from torch import Tensor, nn

ROWS = 6  # of the global batch


class Tables(nn.Module):
    """What build_optimizer looks for. Neither rows nor matrices divide by 2 or 3."""

    def __init__(self) -> None:
        super().__init__()
        self.compute_dtype = torch.float32
        generator = torch.Generator().manual_seed(5)

        def made(*shape: int) -> nn.Parameter:
            return nn.Parameter(torch.randn(shape, generator=generator) * shape[-1] ** -0.5)

        self.embedding = made(13, 8)
        self.head = nn.Module()
        self.head.weight = made(13, 8)
        self.square = nn.ParameterList([made(8, 8) for _ in range(5)])
        self.tall = made(32, 8)
        self.wide = made(8, 32)
        self.value_embedding = nn.Module()
        self.value_embedding.table, self.value_embedding.gate = made(13, 8), made(2, 8)
        self.stream = nn.Module()
        self.stream.stream_scale, self.stream.input_scale = made(5), made(5)
        self.stream.smear_gate, self.stream.smear_scale, self.stream.backout_scale = made(1, 8), made(1), made(1)

    def loss(self, ids: Tensor) -> Tensor:
        """ids (rows, 2): a token and the one to guess -> the sum of the rows' losses."""
        stream = self.stream
        x = first = self.embedding[ids[:, 0]]
        x = x + stream.smear_scale * torch.sigmoid(x @ stream.smear_gate.T) * x.roll(1, dims=-1)
        for layer, matrix in enumerate(self.square):
            x = x + torch.tanh(x @ matrix.T) + stream.stream_scale[layer] * x + stream.input_scale[layer] * first
        gate = torch.sigmoid(x @ self.value_embedding.gate.T)  # (rows, 2)
        x = x + (gate[..., None] * self.value_embedding.table[ids[:, 0]].view(-1, 2, 4)).flatten(1)
        x = x + torch.relu(x @ self.tall.T) @ self.wide.T - stream.backout_scale * first
        return nn.functional.cross_entropy(x @ self.head.weight.T, ids[:, 1], reduction="sum")


def batch(step: int) -> Tensor:
    """The global batch of a step, (ROWS, 2)."""
    return torch.randint(13, (ROWS, 2), generator=torch.Generator().manual_seed(step))
