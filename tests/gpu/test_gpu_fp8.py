"""Training in FP8 on a GPU that multiplies it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from conftest import Site

from nanochat.runtime.device import has_fp8

pytestmark = pytest.mark.gpu


@pytest.mark.parametrize("compiled", ["never", "always"])
def test_losses_are_near_those_of_bf16(data: Site, tmp_path: Path, compiled: str) -> None:
    if not has_fp8(torch.device("cuda")):
        pytest.skip("this GPU does not multiply in FP8")
    settings = {"steps": 12, "totalBatchTokens": 4096, "deviceBatchSize": 8, "compile": compiled}
    plain, small = (data.copy(tmp_path / str(fp8), base={**settings, "fp8": fp8}) for fp8 in (False, True))
    assert "does not work" not in plain.run("base") + small.run("base")
    expected, found = plain.losses("base"), small.losses("base")
    assert found != expected
    assert found == pytest.approx(expected, rel=0.03)
