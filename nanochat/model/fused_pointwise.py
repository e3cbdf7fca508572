"""Norms, rotary positions and the MLP's square by compiled code (`fused_pointwise.cpp`), in bf16 on a CPU.

    prepare()                       # compiles it where that was not done; `Uncompiled` or OSError where it can't be had
    model.pointwise = FUSED         # torch.compile fuses the plain ones itself

PyTorch takes up to ten passes over the numbers for what is one here, forward and backward.
"""

from __future__ import annotations

import ctypes
from ctypes import Structure, byref, c_float, c_int, c_int64, c_void_p
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from nanochat.model.pointwise import EPSILON, Pointwise
from nanochat.runtime.native_code import compiled

SOURCE = Path(__file__).with_suffix(".cpp")
ALONE = 1 << 15  # numbers up to which one thread takes no longer than several that wait for one another


class _Angles(Structure):
    _fields_ = [("cos", c_void_p), ("sin", c_void_p), ("length", c_int64), ("heads", c_int64)]


@cache
def prepare() -> ctypes.CDLL:
    """The compiled code."""
    library = ctypes.CDLL(str(compiled(SOURCE)))
    sizes = [c_int64, c_int64, c_float]
    library.norm.argtypes = [c_void_p, *sizes, c_void_p, c_int]
    library.norm_back.argtypes = [c_void_p, c_void_p, *sizes, c_void_p, c_int]
    library.turn.argtypes = [c_void_p, c_void_p, *sizes, c_void_p, c_int]
    library.turn_back.argtypes = [c_void_p, c_void_p, c_void_p, *sizes, c_void_p, c_int]
    library.square.argtypes = [c_void_p, c_int64, c_void_p, c_int]
    library.square_back.argtypes = [c_void_p, c_void_p, c_int64, c_void_p, c_int]
    return library


class Norm(torch.autograd.Function):
    """x (..., D) -> `nanochat.model.pointwise.norm`."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        x = x.contiguous()
        ctx.save_for_backward(x)
        return _call(prepare().norm, x, *_sizes(x))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        return _call(prepare().norm_back, gradients[0].contiguous(), x, *_sizes(x))


class Turn(torch.autograd.Function):
    """x (B, T, H, hd), rotary (2, 1, T, 1, hd/2) -> `nanochat.model.pointwise.turn`."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, rotary: Tensor) -> Tensor:
        x, ctx.rotary = x.contiguous(), rotary
        ctx.save_for_backward(x)
        return _call(prepare().turn, x, *_angles(x, rotary), *_sizes(x))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        (x,) = ctx.saved_tensors
        return _call(prepare().turn_back, gradients[0].contiguous(), x, *_angles(x, ctx.rotary), *_sizes(x)), None


class Square(torch.autograd.Function):
    """x -> `nanochat.model.pointwise.square`."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        x = x.contiguous()
        ctx.save_for_backward(x)
        return _call(prepare().square, x, x.numel())

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        return _call(prepare().square_back, gradients[0].contiguous(), x, x.numel())


FUSED = Pointwise(Norm.apply, Turn.apply, Square.apply)


def _sizes(x: Tensor) -> tuple[int, int, float]:
    return x.numel() // x.size(-1), x.size(-1), EPSILON


def _angles(x: Tensor, rotary: Tensor) -> tuple[Any]:
    cos, sin = (part.view(x.size(1), -1) for part in rotary)  # a view, for nothing else would keep them
    return (byref(_Angles(cos.data_ptr(), sin.data_ptr(), x.size(1), x.size(2))),)


def _call(function: Any, *given: Any) -> Tensor:
    """The first tensor is like the result."""
    if given[0].dtype != torch.bfloat16:
        raise TypeError(f"compiled code works on bf16, not on {given[0].dtype}")
    out = torch.empty_like(given[0])
    pointers = [value.data_ptr() if isinstance(value, Tensor) else value for value in given]
    function(*pointers, out.data_ptr(), torch.get_num_threads() if out.numel() > ALONE else 1)
    return out
