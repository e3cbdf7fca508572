"""Best-fit packing: full rows that begin with a bos, every token once, a pure function of the step."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nanochat.data import bestfit
from nanochat.data.bestfit import BestFitLoader, PackedFile, Piece, pack
from nanochat.data.loader import Shard
from nanochat.data.tokenfile import TokenFile, write_text
from nanochat.spec.errors import UserError

BOS = 9999
LENGTHS = st.lists(st.lists(st.integers(0, 40), min_size=1, max_size=30), min_size=1, max_size=3)


def make(folder: Path, files: list[list[int]]) -> list[Shard[TokenFile]]:
    """Files of documents of these lengths; every token but bos is another."""
    shards, first = [], 0
    for number, lengths in enumerate(files):
        target = folder / str(number)
        target.mkdir()
        documents = []
        for length in lengths:
            documents.append(list(range(first, first + length)))
            first += length
        write_text(target, documents, bos=BOS, vocab_size=65_536)
        shards.append(Shard.local(target))
    return shards


@settings(max_examples=60, deadline=None)
@given(files=LENGTHS, length=st.integers(1, 16), waiting=st.integers(1, 8))
def test_rows_are_full_begin_with_bos_and_repeat_nothing(files: list[list[int]], length: int, waiting: int) -> None:
    with TemporaryDirectory() as name, pytest.MonkeyPatch.context() as patch:
        patch.setattr(bestfit, "WAITING", waiting)
        for shard in make(Path(name), files):
            file = shard.open()
            packed = PackedFile(file, length)
            rows = [packed.row(index) for index in range(len(packed))]
            assert len(rows) == len(file) // (length + 1)
            assert all(len(row) == length + 1 and row[0] == BOS for row in rows)
            found = Counter(int(token) for row in rows for token in row if token != BOS)
            assert set(found.values()) <= {1}
            # What is left over is the end of the last documents: a row, and as many tokens as there are added bos.
            added = sum(piece.continued for row in packed.rows for piece in row)
            given = sum(token != BOS for token in file.tokens.tolist())
            assert given - found.total() <= length + 1 + added


def test_the_longest_that_fits_is_taken_and_the_longest_is_cut() -> None:
    documents = [Piece(0, 3), Piece(3, 8), Piece(8, 20), Piece(20, 24)]  # 3, 5, 12, 4
    rows = pack(documents, rows=2, capacity=10)
    assert rows[0] == [Piece(3, 8), Piece(20, 24), Piece(8, 9)]  # 5, 4, and one of the 12 to fill
    assert rows[1] == [Piece(0, 3), Piece(9, 15, True)]  # the rest of it, 12 with its bos, does not fit


def test_a_document_longer_than_rows_goes_on_behind_a_bos(tmp_path: Path) -> None:
    (shard,) = make(tmp_path, [[20]])
    packed = PackedFile(shard.open(), 6)
    assert sorted(row.tolist() for row in map(packed.row, range(3))) == [
        [BOS, 0, 1, 2, 3, 4, 5],
        [BOS, 6, 7, 8, 9, 10, 11],
        [BOS, 12, 13, 14, 15, 16, 17],
    ]


def test_a_long_document_is_no_batch_of_its_own(tmp_path: Path) -> None:
    (shard,) = make(tmp_path, [[800, *[7] * 100]])  # as many rows of the one as of the others
    packed = PackedFile(shard.open(), 7)
    long = ["l" if packed.row(index)[1] < 800 else "s" for index in range(len(packed))]
    assert min(long.count("l"), long.count("s")) > 90
    assert max(len(run) for letter in "ls" for run in "".join(long).split(letter)) < 20


def test_batches_are_a_pure_function_of_the_step(tmp_path: Path) -> None:
    files = make(tmp_path, [[30, 4, 9, 2] * 3, [7] * 12, [50]])
    loader = BestFitLoader(files, rows=4, length=7, seed=4)
    per_epoch = sum(file.tokens // 8 for file in files)
    assert loader.total == per_epoch * 7
    whole = [loader.batch(step) for step in range(18)]
    for step in (11, 0, 7):
        fresh = BestFitLoader(files, rows=4, length=7, seed=4)
        for part in (slice(0, 1), slice(1, 4), slice(2, 2)):
            inputs, targets = fresh.batch(step, part)
            assert np.array_equal(inputs, whole[step][0][part]) and np.array_equal(targets, whole[step][1][part])
        fresh.close()
    loader.close()
    inputs = np.concatenate([inputs for inputs, _ in whole])
    assert (inputs[:, 0] == BOS).all()
    assert sorted(map(tuple, inputs[:per_epoch])) == sorted(map(tuple, inputs[per_epoch : 2 * per_epoch]))
    assert not np.array_equal(inputs[:per_epoch], inputs[per_epoch : 2 * per_epoch])  # an order of its own
    assert all(np.array_equal(i[:, 1:], t[:, :-1]) for i, t in whole)


def test_too_little_text_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no token file holds a row of 65 tokens"):
        BestFitLoader(make(tmp_path, [[20], [30]]), rows=2, length=64, seed=1)
