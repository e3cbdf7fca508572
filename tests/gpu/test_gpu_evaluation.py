"""Measurements on a GPU against those on the CPU."""

from __future__ import annotations

from copy import deepcopy
from pathlib import Path

import numpy as np
import pytest
import torch

from nanochat.evaluation.bpb import bits_per_byte
from nanochat.evaluation.core import measure_core
from nanochat.evaluation.core_tasks import load_tasks
from nanochat.model.transformer import Transformer
from nanochat.runtime.device import Device
from nanochat.runtime.distributed import World
from nanochat.tokenizer import Tokenizer
from tests.evaluation.test_core import bundle

__all__ = ["bundle"]

pytestmark = pytest.mark.gpu

ROUNDING = {torch.float32: 1e-3, torch.bfloat16: 2e-2}


def test_bits_per_byte_are_the_cpus(model: Transformer, tokenizer: Tokenizer, device: Device) -> None:
    draw = np.random.default_rng(0)
    batches = [tuple(draw.integers(0, tokenizer.vocab_size, (2, 4, 200))) for _ in range(3)]
    moved = deepcopy(model).to(device.device)
    moved.compute_dtype = device.compute_dtype
    expected, found = (
        bits_per_byte(each, batches, byte_lengths=tokenizer.byte_lengths(), world=World()) for each in (model, moved)
    )
    assert found.value == pytest.approx(expected.value, rel=ROUNDING[device.compute_dtype])
    assert found.n == expected.n


def test_core_is_the_cpus(bundle: Path, model: Transformer, tokenizer: Tokenizer) -> None:
    """In true fp32, PyTorch's default, where no two answers are as good within rounding."""
    moved = deepcopy(model).to("cuda")
    tasks = load_tasks(bundle)
    expected, found = (measure_core(each, tokenizer, tasks, batch_size=4, world=World()) for each in (model, moved))
    assert found == expected
    assert any(0 < result.accuracy.value < 1 for result in found.tasks.values())
