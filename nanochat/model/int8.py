"""Weights of 8 bits on a CPU: each row of a matrix by its own scale, half of the memory of bf16.

    log.info("%s", to_int8(model))     # instead of `pack`, before `cast_weights`

An activation goes as two numbers of 8 bits, a coarse and a fine one, so that it loses next to nothing (2^-15 of its
row's largest); what answers lose is the rounding of the weights. Products and sums are whole numbers, and therefore
exact: a row has the same bits whatever rows are beside it.
"""

from __future__ import annotations

import warnings
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from nanochat.model.packing import lay_out
from nanochat.model.transformer import Transformer
from nanochat.spec.errors import UserError

LARGEST = 127
FINE = 128  # fine steps of a coarse one
OFFSET = 128  # what the product adds to an activation, which it takes without a sign
PROBE = 64  # size of the matrix that is tried first


class Int8Linear(nn.Module):
    """A `Linear` without a bias whose weight (outputs, inputs) has 8 bits."""

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        scale = weight.double().abs().amax(dim=1).div(LARGEST).clamp_min(1e-30)  # (outputs,)
        whole = weight.double().div(scale[:, None]).round().to(torch.int8)
        self.whole, self.scale = whole, scale.float()

    @cached_property
    def packed(self) -> Any:
        """The weight as FBGEMM reads it, made where PyTorch multiplies: compiled code does without this copy."""
        zero = torch.zeros(len(self.scale), dtype=torch.int64)
        with warnings.catch_warnings():  # in later versions of PyTorch than the one that is installed it may be gone
            warnings.simplefilter("ignore", UserWarning)
            quantized = torch._make_per_channel_quantized_tensor(  # pyright: ignore[reportPrivateImportUsage]
                self.whole, self.scale.double(), zero, 0
            )
        return torch.ops.quantized.linear_prepack(quantized, None)

    def forward(self, x: Tensor) -> Tensor:
        """x (..., inputs) -> (..., outputs), in its dtype."""
        rows = x.reshape(-1, x.size(-1)).float()
        scale = rows.abs().amax(dim=-1, keepdim=True).div_(LARGEST * FINE).clamp_min_(1e-30)
        whole = rows.div(scale).round_()
        coarse = whole.div(FINE).round_()
        fine = whole.sub_(coarse, alpha=FINE)
        both = torch.ops.quantized.linear_with_input_q_dq_qweight_dq_output_fp32(
            torch.cat((coarse, fine)), 1.0, OFFSET, self.packed
        )
        y = both[len(rows) :].add_(both[: len(rows)], alpha=FINE).mul_(scale)
        return y.to(x.dtype).view(*x.shape[:-1], -1)


@torch.no_grad()
def to_int8(model: Transformer) -> str:
    """Turn all matrices of the blocks and the head into 8 bits -> a sentence that says so; UserError where the device
    does not multiply them."""
    if model.device.type != "cpu":
        raise UserError(f"Weights of 8 bits are for CPUs, and this model is on {model.device.type}: leave out int8.")
    if why := missing():
        raise UserError(f"Weights of 8 bits can't be used here, {why}: leave out int8.")
    lay_out(model, Int8Linear)
    return "weights have 8 bits, each row by its own scale"


def missing() -> str:
    """Why weights of 8 bits can't be multiplied here; '' where they can."""
    if "fbgemm" not in engines():
        return "for this PyTorch lacks FBGEMM"
    # The largest of sums: CPUs without the instructions for it would cut them off.
    x = torch.full((1, PROBE), float(LARGEST))
    exact = Int8Linear(torch.ones(1, PROBE))(x).item() == LARGEST * PROBE
    return "" if exact else "for this CPU multiplies them inexactly"


def engines() -> list[str]:
    """PyTorch's libraries for such products."""
    return torch.backends.quantized.supported_engines
