from __future__ import annotations

import pytest
import torch

from nanochat.runtime.device import choose_device


@pytest.mark.parametrize(("precision", "dtype"), [("bf16", torch.bfloat16), ("fp32", torch.float32)])
def test_the_precision_can_be_chosen(precision: str, dtype: torch.dtype) -> None:
    assert choose_device(precision).compute_dtype == dtype  # type: ignore[arg-type]
