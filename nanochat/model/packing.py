"""Weights in oneDNN's own layout, made once: without it each product of a CPU makes it anew, or does without.

    log.info("%s", pack(model))     # after `cast_weights`, for a model that is only asked from now on

One row then takes half the time of `F.linear`. In bf16 products keep their bits; in fp32, which
PyTorch gives to another library, they differ by rounding.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nanochat.model.transformer import Attention, Linear, Transformer
from nanochat.spec.errors import first_line

ROWS = 1  # that the layout is chosen for; it serves all others
PROBE = 32  # the size of a matrix that is tried first


class PackedLinear(nn.Module):
    """A `Linear` whose weight is in oneDNN's layout, which other operations don't read."""

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        self.packed = torch.ops.mkldnn._reorder_linear_weight(weight, ROWS)

    def forward(self, x: Tensor) -> Tensor:
        return torch.ops.mkldnn._linear_pointwise(x, self.packed, None, "none", [], "")


@torch.no_grad()
def pack(model: Transformer) -> str:
    """Lay out all matrices of the blocks and the head anew, where that is possible -> a sentence that says whether."""
    if model.device.type != "cpu":
        return "weights stay as they are: their layout matters on a CPU"
    if why := missing(model.compute_dtype):
        return f"weights stay as they are, which makes answers slower: {why}"
    lay_out(model, lambda weight: PackedLinear(weight.to(model.compute_dtype)))
    return "weights are laid out for products of few rows"


def lay_out(model: Transformer, make: Callable[[Tensor], nn.Module]) -> None:
    """Put what `make` makes of its weight in the place of each matrix; a layer's query, key and value become one."""
    for parent in list(model.modules()):
        if isinstance(parent, Attention):
            parent.fused = make(torch.cat([part.weight for part in (parent.query, parent.key, parent.value)]))
            del parent.query, parent.key, parent.value
        for name, child in list(parent.named_children()):
            if isinstance(child, Linear):
                setattr(parent, name, make(child.weight))


def missing(dtype: torch.dtype) -> str:
    """Why weights of this format can't be laid out here; '' where they can."""
    if not torch.backends.mkldnn.is_available():
        return "this PyTorch has no oneDNN"
    weight, x = torch.eye(PROBE, dtype=dtype), torch.ones(1, PROBE, dtype=dtype)
    try:
        equal = torch.equal(PackedLinear(weight)(x), F.linear(x, weight))
    except (AttributeError, NotImplementedError, RuntimeError) as error:
        return f"oneDNN does not take {str(dtype).removeprefix('torch.')} here ({first_line(error)[:200]})"
    return "" if equal else "oneDNN's products are wrong here"
