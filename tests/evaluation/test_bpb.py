"""Bits per byte against its definition."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch

from nanochat.data.tokenfile import TokenFile, write_text
from nanochat.evaluation.bpb import bits_per_byte, text_batches
from nanochat.model.transformer import Transformer
from nanochat.runtime.distributed import World
from nanochat.tokenizer import Tokenizer


def test_bits_over_bytes_without_special_tokens(model: Transformer, tokenizer: Tokenizer) -> None:
    draw = np.random.default_rng(0)
    inputs = draw.integers(0, tokenizer.vocab_size, (6, 20))
    targets = draw.integers(0, tokenizer.vocab_size, (6, 20))
    targets[0, :5] = -1
    targets[1, 3] = tokenizer.bos
    lengths = tokenizer.byte_lengths()
    with torch.no_grad():
        logs = model(torch.from_numpy(inputs)).log_softmax(-1)
    bits = size = n = 0.0
    for r in range(6):
        for t in range(20):
            target = int(targets[r, t])
            if target >= 0 and lengths[target]:
                bits -= float(logs[r, t, target]) / math.log(2)
                size += lengths[target]
                n += 1
    for split in (1, 2, 6):
        batches = zip(np.split(inputs, split), np.split(targets, split), strict=True)
        figure = bits_per_byte(model, batches, byte_lengths=lengths, world=World())
        assert figure.value == pytest.approx(bits / size, rel=1e-5)
        assert figure.n == n
        assert 0 < figure.stderr < figure.value


def test_text_comes_once_whatever_the_ranks(tmp_path: Path, tokenizer: Tokenizer) -> None:
    documents = [list(range(i % 40 + 1)) for i in range(100)]
    write_text(tmp_path, documents, bos=tokenizer.bos, vocab_size=tokenizer.vocab_size)
    file = TokenFile(tmp_path)
    for ranks in (1, 3):
        rows = []
        for rank in range(ranks):
            for inputs, targets in text_batches(
                file, length=16, tokens=1000, batch_size=4, world=World(rank=rank, size=ranks)
            ):
                assert len(inputs) <= 4
                rows += list(zip(inputs, targets, strict=True))
        assert len(rows) == 1000 // 16
        assert np.array_equal(np.concatenate([row[0] for row in rows]), file.tokens[: len(rows) * 16])
        assert all(np.array_equal(row[0][1:], row[1][:-1]) for row in rows)


def test_nothing_to_measure_is_no_number(model: Transformer, tokenizer: Tokenizer) -> None:
    figure = bits_per_byte(model, [], byte_lengths=tokenizer.byte_lengths(), world=World())
    assert math.isnan(figure.value) and figure.n == 0
