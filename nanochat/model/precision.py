"""Which number format a device computes in. Master weights are fp32 in any case."""

from __future__ import annotations

import torch


def compute_dtype_for(device: torch.device | str) -> torch.dtype:
    """bf16 where the device multiplies it in hardware, fp32 elsewhere.

    An emulated bf16 is slower than fp32, so a CPU has to have AVX512-BF16 or AMX.
    """
    kind = torch.device(device).type
    if kind == "cuda":
        native = torch.cuda.is_bf16_supported(including_emulation=False)
    elif kind == "cpu":
        native = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    else:
        native = False
    return torch.bfloat16 if native else torch.float32
