"""The text loader is a pure function of (files, seed, step)."""

from __future__ import annotations

import itertools
from collections import Counter
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pytest
from data_helpers import flat
from hypothesis import given, settings
from hypothesis import strategies as st

from nanochat.data.loader import Shard, TextLoader, file_order
from nanochat.data.tokenfile import TokenFile, write_text
from nanochat.spec.errors import UserError

LENGTHS = st.lists(st.integers(0, 23), min_size=1, max_size=5).filter(lambda lengths: sum(lengths) > 0)


def make(folder: Path, lengths: list[int]) -> list[Shard]:
    """Files of these numbers of tokens; every token of all of them is another (bos is 60,000 and occurs never)."""
    shards, first = [], 0
    for i, length in enumerate(lengths):
        target = folder / str(i)
        target.mkdir()
        write_text(target, [], bos=60_000, vocab_size=65_536)
        tokens = np.arange(first, first + length, dtype="<u2")
        tokens.tofile(target / "tokens.bin")
        (target / "index.json").write_text(f'{{"dtype": "uint16", "tokens": {length}, "documents": 1}}')
        shards.append(Shard.local(target))
        first += length
    return shards


@settings(max_examples=60)
@given(lengths=LENGTHS, rows=st.integers(1, 5), length=st.integers(1, 9), seed=st.integers(0, 3))
def test_each_epoch_has_every_token_once(lengths: list[int], rows: int, length: int, seed: int) -> None:
    with TemporaryDirectory() as folder:
        loader = TextLoader(make(Path(folder), lengths), rows=rows, length=length, seed=seed)
        total, epochs = sum(lengths), 3
        steps = -(-total * epochs // (rows * length))
        batches = [loader.batch(step) for step in range(steps)]
        inputs = flat(*(inputs for inputs, _ in batches))
        targets = flat(*(targets for _, targets in batches))
        loader.close()
    assert inputs[1:] == targets[:-1]
    for epoch in range(epochs):
        assert Counter(inputs[epoch * total : (epoch + 1) * total]) == Counter(range(total))
    assert inputs[:total] == list(range(total))  # the first epoch is in order


@settings(max_examples=60)
@given(lengths=LENGTHS, rows=st.integers(1, 6), length=st.integers(1, 9), step=st.integers(0, 30), data=st.data())
def test_the_global_batch_is_the_same_however_it_is_cut(
    lengths: list[int], rows: int, length: int, step: int, data: st.DataObject
) -> None:
    bounds = sorted({0, rows, *data.draw(st.lists(st.integers(0, rows), max_size=4))})
    with TemporaryDirectory() as folder:
        files = make(Path(folder), lengths)
        whole = TextLoader(files, rows=rows, length=length, seed=7)
        inputs, targets = whole.batch(step)
        assert inputs.shape == targets.shape == (rows, length)
        assert inputs.dtype == np.int64
        parts = []
        for first, last in itertools.pairwise(bounds):
            mine = TextLoader(files, rows=rows, length=length, seed=7)  # another process, which begins at this step
            parts.append(mine.batch(step, slice(first, last)))
            mine.close()
        whole.close()
    assert np.array_equal(np.concatenate([part for part, _ in parts]), inputs)
    assert np.array_equal(np.concatenate([part for _, part in parts]), targets)


def test_rows_begin_where_the_step_says(tmp_path: Path) -> None:
    loader = TextLoader(make(tmp_path, [40, 60]), rows=3, length=5, seed=1)
    inputs, targets = loader.batch(2)
    assert inputs[1].tolist() == list(range(35, 40))  # (2 x 3 + 1) x 5
    assert targets[1].tolist() == list(range(36, 41))  # across two files
    assert (loader.total, loader.steps_per_epoch) == (100, 7)
    assert [loader.epoch(step) for step in (0, 6, 7)] == [0, 0, 1]
    loader.close()


def test_later_epochs_shuffle_the_files_by_seed() -> None:
    assert file_order(5, 3, 0) == [0, 1, 2, 3, 4]
    assert file_order(50, 3, 1) == file_order(50, 3, 1)
    assert len({tuple(file_order(50, seed, epoch)) for seed in (3, 4) for epoch in (1, 2)}) == 4


def test_the_next_file_is_opened_while_this_one_is_read(tmp_path: Path) -> None:
    opened: list[int] = []

    def shard(index: int, file: TokenFile) -> Shard:
        def opens() -> TokenFile:
            opened.append(index)
            return file

        return Shard(tokens=len(file), open=opens)

    files = [shard(i, local.open()) for i, local in enumerate(make(tmp_path, [50, 50, 50]))]
    loader = TextLoader(files, rows=1, length=10, seed=1)
    loader.batch(0)
    loader.close()
    assert opened[0] == 0
    assert set(opened) <= {0, 1}
    loader = TextLoader(files, rows=1, length=10, seed=1)
    opened.clear()
    for step in range(15):
        loader.batch(step)
    loader.close()
    assert opened[:3] == [0, 1, 2]  # each once, in order


def test_a_file_that_was_read_is_released(tmp_path: Path) -> None:
    held: list[int] = []
    most = 0

    def shard(index: int, file: TokenFile) -> Shard:
        def opens() -> TokenFile:
            nonlocal most
            held.append(index)
            most = max(most, len(held))
            return file

        return Shard(tokens=len(file), open=opens, release=lambda: held.remove(index))

    files = [shard(i, local.open()) for i, local in enumerate(make(tmp_path, [20] * 6))]
    loader = TextLoader(files, rows=1, length=10, seed=1)
    for step in range(30):
        loader.batch(step)
    loader.close()
    assert most <= 3  # this one, the next, and the one before until the thread gets to it


def test_a_file_that_could_not_be_opened_is_tried_again(tmp_path: Path) -> None:
    good = make(tmp_path, [20])[0]
    failures = [OSError("no network")]

    def opens() -> TokenFile:
        if failures:
            raise failures.pop()
        return good.open()

    loader = TextLoader([Shard(tokens=20, open=opens)], rows=1, length=4, seed=1)
    with pytest.raises(OSError, match="no network"):
        loader.batch(0)
    assert loader.batch(0)[0].tolist() == [[0, 1, 2, 3]]
    loader.close()


def test_no_text_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no text"):
        TextLoader(make(tmp_path, [0]), rows=1, length=4, seed=1)
