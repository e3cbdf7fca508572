from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch

from nanochat.data.mixture import Mixture, Part, RowLoader
from nanochat.data.tokenfile import ConversationFile, write_conversations
from nanochat.model.loss import IGNORED
from nanochat.model.transformer import Transformer
from nanochat.runtime.distributed import World
from nanochat.training.validation import mean_loss, packed_batches, row_batches
from tests.training.rig import CONFIG


@pytest.fixture
def mixture(tmp_path: Path) -> Mixture:
    random = np.random.default_rng(1)
    special = {"bos": 60, "assistant_end": 61, "user_end": 62}
    rows = [
        ([60, *random.integers(0, 60, length).tolist(), 62, 7, 61], [0] * (length + 2) + [1, 1])
        for length in range(3, 13)
    ]
    write_conversations(tmp_path, rows, special=special, vocab_size=64)
    return Mixture([Part(ConversationFile(tmp_path))], seed=1)


def test_all_ranks_together_read_each_row_once(mixture: Mixture) -> None:
    loader = RowLoader(mixture, rows=4, length=16)
    for size in (1, 2, 3):
        rows = [
            row.tolist()
            for rank in range(size)
            for inputs, _ in row_batches(loader, rows=9, world=World(rank=rank, size=size))
            for row in inputs
        ]
        whole = [
            row.tolist() for step in range(3) for row in loader.batch(step, rows=slice(0, min(4, 9 - 4 * step)))[0]
        ]
        assert rows == whole and len(rows) == 9


def test_packed_batches_do_not_depend_on_ranks_or_rows(mixture: Mixture) -> None:
    def rows(size: int, device_rows: int) -> list[list[int]]:
        return [
            row.tolist()
            for rank in range(size)
            for inputs, _ in packed_batches(
                mixture, tokens=10**6, length=16, world=World(rank=rank, size=size), device_rows=device_rows
            )
            for row in inputs
        ]

    assert rows(1, 4) == rows(1, 1) == rows(2, 3)
    assert len(rows(1, 4)) == int(mixture.lengths(0).sum()) // 16


def test_the_mean_is_over_tokens_not_batches() -> None:
    model = Transformer(CONFIG)
    model.init_weights(3)
    torch.nn.init.normal_(model.head.weight, std=0.3)
    random = np.random.default_rng(2)
    inputs, targets = random.integers(0, 64, (5, 16)), random.integers(0, 64, (5, 16))
    targets[:4, 2:] = IGNORED
    whole = mean_loss(model, [(inputs, targets)], world=World())
    parts = mean_loss(model, [(inputs[:4], targets[:4]), (inputs[4:], targets[4:])], world=World())
    assert whole == pytest.approx(parts, rel=1e-6)
    assert math.isnan(mean_loss(model, [], world=World()))
