"""Causal attention in bf16 on a CPU by compiled code (`fused_attention.cpp`), forward and backward.

    prepare()                       # compiles it where that was not done; `Uncompiled` or OSError where it can't be had
    y = fused(q, k, v, window)      # as `nanochat.model.attention.sdpa`, bf16

Scores never leave a core's cache, and for backward one number for each position and head is kept. It is an operator of
PyTorch's, which torch.compile takes as it is. B rows, T positions, H heads, hd head size.
"""

from __future__ import annotations

import ctypes
from ctypes import Structure, byref, c_int, c_int64, c_void_p
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from nanochat.model.attention import gradients_like
from nanochat.runtime.native_code import compiled

SOURCE = Path(__file__).with_suffix(".cpp")


class _Shape(Structure):
    _fields_ = [(name, c_int64) for name in ("batch", "length", "heads", "kv_heads", "head_dim", "window")]


@cache
def prepare() -> ctypes.CDLL:
    """The compiled code."""
    library = ctypes.CDLL(str(compiled(SOURCE)))
    library.forward.argtypes = [c_void_p] * 6 + [c_int]
    library.backward.argtypes = [c_void_p] * 10 + [c_int]
    return library


def is_supported(compute_dtype: torch.dtype) -> bool:
    """Whether this CPU multiplies so."""
    return compute_dtype == torch.bfloat16 and torch.cpu._is_avx512_bf16_supported()


def fused(q: Tensor, k: Tensor, v: Tensor, window: int | None) -> Tensor:
    """q (B, T, H, hd), k and v (B, T, H_kv, hd), bf16 -> (B, T, H, hd)."""
    return torch.ops.nanochat.fused_attention(q, k, v, q.size(1) if window is None else window)[0]


def forward(q: Tensor, k: Tensor, v: Tensor, window: int) -> tuple[Tensor, Tensor]:
    """The output, and the logarithms of the sums of the weights (B, H, T), fp32."""
    if q.dtype != torch.bfloat16:
        raise TypeError(f"compiled code attends in bf16, not in {q.dtype}")
    q, k, v = (x.contiguous() for x in (q, k, v))
    y, sums = _like_forward(q, k, v, window)
    _call(prepare().forward, _shape(q, k, window), q, k, v, y, sums)
    return y, sums


def backward(
    to_y: Tensor, q: Tensor, k: Tensor, v: Tensor, y: Tensor, sums: Tensor, window: int
) -> tuple[Tensor, Tensor, Tensor]:
    """The gradients of q, k and v, from that of y and from what forward gave."""
    to_y, q, k, v = (x.contiguous() for x in (to_y, q, k, v))
    gradients = torch.empty_like(q), torch.empty_like(k), torch.empty_like(v)
    _call(prepare().backward, _shape(q, k, window), to_y, q, k, v, y, sums, *gradients)
    return gradients


def _shape(q: Tensor, k: Tensor, window: int) -> _Shape:
    b, t, h, hd = q.shape
    return _Shape(b, t, h, k.size(2), hd, min(window, t))


def _call(function: Any, shape: _Shape, *tensors: Tensor) -> None:
    function(byref(shape), *(tensor.data_ptr() for tensor in tensors), torch.get_num_threads())


def _keep(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    q, k, v, ctx.window = inputs
    ctx.save_for_backward(q, k, v, *output)


def _backward(ctx: Any, to_y: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
    return (*torch.ops.nanochat.fused_attention_backward(to_y, *ctx.saved_tensors, ctx.window), None)


def _like_forward(q: Tensor, k: Tensor, v: Tensor, window: int) -> tuple[Tensor, Tensor]:
    b, t, h, _ = q.shape
    return torch.empty_like(q, memory_format=torch.contiguous_format), q.new_empty(b, h, t, dtype=torch.float32)


_OPERATORS = torch.library.Library("nanochat", "FRAGMENT")  # see `nanochat.model.blocked_attention`
_OPERATORS.define("fused_attention(Tensor q, Tensor k, Tensor v, int window) -> (Tensor, Tensor)")
_OPERATORS.define(
    "fused_attention_backward(Tensor to_y, Tensor q, Tensor k, Tensor v, Tensor y, Tensor sums, int window)"
    " -> (Tensor, Tensor, Tensor)"
)
_OPERATORS.impl("fused_attention", forward, "CPU")
_OPERATORS.impl("fused_attention_backward", backward, "CPU")
torch.library.register_fake("nanochat::fused_attention", _like_forward, lib=_OPERATORS)
torch.library.register_fake("nanochat::fused_attention_backward", gradients_like, lib=_OPERATORS)
torch.library.register_autograd("nanochat::fused_attention", _backward, setup_context=_keep, lib=_OPERATORS)
