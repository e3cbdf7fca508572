"""Matrix products in FP8, for training on GPUs that multiply it twice as fast as bf16.

    y = fp8_linear(x, weight)    # x (..., inputs) bf16, weight (outputs, inputs) fp32 -> (..., outputs) bf16

Each operand has one scale, by its own largest element at that moment: what comes forward is e4m3, gradients are e5m2,
which reaches further (arXiv 2209.05433). Sums are fp32 or, forward, what the GPU adds up faster. It runs on a CPU too,
slowly, which tests use.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

scaled_mm: Any = torch._scaled_mm  # pyright: ignore[reportPrivateImportUsage]

MULTIPLE = 16  # of which every size of a product has to be one
SMALLEST = 128  # size of a matrix that gains by it
TINY = 1e-12  # a largest element below it counts as this


def fits(weight: Tensor) -> bool:
    """Whether a matrix can be multiplied in FP8, and gains by it."""
    return all(size >= SMALLEST and size % MULTIPLE == 0 for size in weight.shape)


def fp8_linear(x: Tensor, weight: Tensor) -> Tensor:
    """x times the transposed weight; rows of x, all dimensions but the last, are a multiple of MULTIPLE."""
    return Fp8Product.apply(x.flatten(0, -2), weight).unflatten(0, x.shape[:-1])


def quantize(x: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """x in FP8, and the scale () fp32 by which it has to be multiplied."""
    most = torch.finfo(dtype).max
    scale = x.abs().amax().float().clamp(min=TINY) / most
    return (x.float() / scale).clamp(-most, most).to(dtype), scale


class Fp8Product(torch.autograd.Function):
    """x (N, inputs), weight (outputs, inputs) -> (N, outputs), and both gradients, all three in FP8."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor) -> Tensor:
        a, scale_a = quantize(x, torch.float8_e4m3fn)
        b, scale_b = quantize(weight, torch.float8_e4m3fn)
        ctx.save_for_backward(a, scale_a, b, scale_b)
        return scaled_mm(a, b.t(), scale_a, scale_b, out_dtype=x.dtype, use_fast_accum=True)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor]:
        a, scale_a, b, scale_b = ctx.saved_tensors
        to_y, scale = quantize(gradients[0], torch.float8_e5m2)
        to_x = scaled_mm(to_y, by_columns(b), scale, scale_b, out_dtype=gradients[0].dtype)
        turned = to_y.t().contiguous()  # (outputs, N)
        return to_x, scaled_mm(turned, by_columns(a), scale, scale_a, out_dtype=torch.float32)


def by_columns(x: Tensor) -> Tensor:
    """The same matrix with its columns one after the other in memory, as second operands have to be."""
    return x.t().contiguous().t()
