"""Mixtures, packing and rows: nothing lost, nothing repeated, cut at messages."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pytest
from data_helpers import SPECIAL, conversation, flat
from hypothesis import given, settings
from hypothesis import strategies as st

from nanochat.data.mixture import Mixture, PackedLoader, Part, RowLoader
from nanochat.data.packing import cut_conversation
from nanochat.data.tokenfile import ConversationFile, write_conversations
from nanochat.spec.errors import UserError

MakeFile = Callable[[list[tuple[list[int], list[int]]]], ConversationFile]
TURNS = st.lists(st.tuples(st.integers(0, 6), st.integers(0, 6)), min_size=1, max_size=4)
CONVERSATIONS = st.lists(TURNS, min_size=1, max_size=8)


def write(folder: Path, turns: list[list[tuple[int, int]]]) -> ConversationFile:
    rows = [conversation(each, first=7 * i) for i, each in enumerate(turns)]
    write_conversations(folder, rows, special=SPECIAL, vocab_size=200)
    return ConversationFile(folder)


def test_parts_take_their_first_rows_and_repeat(chat_file: MakeFile) -> None:
    first = chat_file([conversation([(1, 1)], first=10 * i) for i in range(5)])
    second = chat_file([conversation([(2, 2)], first=10 * i) for i in range(3)])
    mixture = Mixture([Part(first, rows=2), Part(second, epochs=2), Part(first, rows=99)], seed=1)
    assert len(mixture) == 2 + 6 + 5
    for epoch in (0, 1):
        pairs = Counter((int(part), int(row)) for part, row in mixture.order(epoch))
        assert pairs == Counter(
            {(0, 0): 1, (0, 1): 1, **{(1, i): 2 for i in range(3)}, **{(2, i): 1 for i in range(5)}}
        )
    assert mixture.order(0).tolist() != mixture.order(1).tolist()
    assert mixture.order(0).tolist() == Mixture(mixture.parts, seed=1).order(0).tolist()


def test_an_empty_mixture_is_an_error(chat_file: MakeFile) -> None:
    with pytest.raises(UserError, match="no conversation"):
        Mixture([], seed=1)
    with pytest.raises(UserError, match="no conversation"):
        Mixture([Part(chat_file([]))], seed=1)


@settings(max_examples=60)
@given(turns=CONVERSATIONS, rows=st.integers(1, 4), length=st.integers(1, 12))
def test_packing_has_every_token_of_an_epoch_once(turns: list[list[tuple[int, int]]], rows: int, length: int) -> None:
    with TemporaryDirectory() as folder:
        file = write(Path(folder), turns)
        loader = PackedLoader(Mixture([Part(file)], seed=3), rows=rows, length=length)
        total, epochs = loader.total, 2
        batches = [loader.batch(step) for step in range(-(-total * epochs // (rows * length)))]
        inputs = flat(*(inputs for inputs, _ in batches))
        assert inputs[1:] == flat(*(targets for _, targets in batches))[:-1]
        for epoch in range(epochs):
            order = loader.mixture.order(epoch)
            expected = flat(*(file.row(int(row))[0] for _, row in order))
            assert inputs[epoch * total : (epoch + 1) * total] == expected


@settings(max_examples=60)
@given(turns=CONVERSATIONS, rows=st.integers(1, 5), length=st.integers(1, 30), step=st.integers(0, 9), data=st.data())
def test_rows_are_the_same_however_the_batch_is_cut(
    turns: list[list[tuple[int, int]]], rows: int, length: int, step: int, data: st.DataObject
) -> None:
    bounds = sorted({0, rows, *data.draw(st.lists(st.integers(0, rows), max_size=3))})
    with TemporaryDirectory() as folder:
        mixture = Mixture([Part(write(Path(folder), turns))], seed=3)
        for loader in (
            RowLoader(mixture, rows=rows, length=length, multiple=4),
            PackedLoader(mixture, rows=rows, length=length),
        ):
            inputs, targets = loader.batch(step)
            parts = [loader.batch(step, slice(a, b)) for a, b in itertools.pairwise(bounds)]
            assert np.array_equal(np.concatenate([part for part, _ in parts]), inputs)
            assert np.array_equal(np.concatenate([part for _, part in parts]), targets)


@settings(max_examples=80)
@given(turns=CONVERSATIONS, rows=st.integers(1, 5), length=st.integers(1, 40))
def test_rows_hold_whole_conversations_or_their_beginning(
    turns: list[list[tuple[int, int]]], rows: int, length: int
) -> None:
    with TemporaryDirectory() as folder:
        file = write(Path(folder), turns)
        mixture = Mixture([Part(file)], seed=3)
        loader = RowLoader(mixture, rows=rows, length=length, multiple=8)
        seen = 0
        for step in range(loader.steps_per_epoch):
            inputs, targets = loader.batch(step)
            assert inputs.shape[1] <= length
            for r in range(rows):
                ids, mask = mixture.at(step * rows + r)
                seen += 1
                answers = [i + 1 for i in range(min(len(ids), length + 1)) if ids[i] == SPECIAL["assistant_end"]]
                kept = len(ids) if len(ids) <= length + 1 else (answers[-1] if answers else length + 1)
                assert inputs[r, : kept - 1].tolist() == ids[: kept - 1].tolist()
                assert (inputs[r, kept - 1 :] == SPECIAL["bos"]).all()
                expected = [int(i) if trained else -1 for i, trained in zip(ids[1:kept], mask[1:kept], strict=True)]
                assert targets[r, : kept - 1].tolist() == expected
                assert (targets[r, kept - 1 :] == -1).all()
        assert seen >= len(file)


def test_a_cut_is_after_an_answer_and_counted() -> None:
    ids = np.asarray(conversation([(2, 2), (3, 3), (1, 1)])[0])  # exchanges end at 9, 19 and 25 tokens
    names = {"assistant_end": SPECIAL["assistant_end"], "user_end": SPECIAL["user_end"]}
    assert cut_conversation(ids, 25, **names) == (25, 0)
    assert cut_conversation(ids, 24, **names) == (19, 2)
    assert cut_conversation(ids, 19, **names) == (19, 2)
    assert cut_conversation(ids, 18, **names) == (9, 4)
    assert cut_conversation(ids, 8, **names) == (8, 5)  # the first answer itself is cut
    assert cut_conversation(ids, 3, **names) == (3, 6)


def test_what_is_cut_is_counted(chat_file: MakeFile) -> None:
    file = chat_file([conversation([(2, 2)]), conversation([(2, 2), (3, 3)]), conversation([(20, 2)])])
    cut = RowLoader(Mixture([Part(file)], seed=1), rows=2, length=10).cut()
    assert (cut.rows, cut.messages, cut.untrained) == (2, 4, 1)


def test_rows_are_as_wide_as_they_must_be(chat_file: MakeFile) -> None:
    file = chat_file([conversation([(4, 4)])])  # 12 tokens, 11 of them inputs
    mixture = Mixture([Part(file)], seed=1)
    assert RowLoader(mixture, rows=2, length=100, multiple=8).batch(0)[0].shape == (2, 16)
    assert RowLoader(mixture, rows=2, length=100, multiple=100).batch(0)[0].shape == (2, 100)
    assert RowLoader(mixture, rows=2, length=13, multiple=8).batch(0)[0].shape == (2, 13)
