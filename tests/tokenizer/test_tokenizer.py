"""The tokenizer: exact round trips, exact byte lengths, the same vocabulary every time."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import rustbpe
import tiktoken
from hypothesis import given
from hypothesis import strategies as st

from nanochat.spec.errors import StorageError, UserError
from nanochat.tokenizer import SPECIAL, Tokenizer
from nanochat.tokenizer.stream import StreamDecoder
from nanochat.tokenizer.tokenizer import LONGEST_RUN
from nanochat.tokenizer.training import PATTERN, limited

TEXTS = [
    "The quick brown fox jumps over the lazy dog, and the dog doesn't mind. ",
    "한국어 문장과 숫자 1234567, 그리고 émigré café.\r\n\r\n",
    "def f(x):\n    return x + 1  # 12345\n\n\n",
] * 20


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.train(TEXTS, vocab_size=360)


def test_specials_come_last(tokenizer: Tokenizer) -> None:
    assert tokenizer.vocab_size == 360
    assert [tokenizer.special[name] for name in SPECIAL] == list(range(351, 360))
    assert tokenizer.bos == 351


@given(text=st.text())
def test_round_trip(tokenizer: Tokenizer, text: str) -> None:
    ids = tokenizer.encode(text)
    assert tokenizer.decode(ids) == text
    lengths = tokenizer.byte_lengths()
    assert sum(lengths[i] for i in ids) == len(text.encode())


@given(ids=st.lists(st.integers(0, 359)))
def test_a_stream_is_what_is_decoded_at_once(tokenizer: Tokenizer, ids: list[int]) -> None:
    stream = StreamDecoder(tokenizer)
    pieces = [stream.push(i) for i in ids] + [stream.finish()]
    assert "".join(pieces) == tokenizer.decode(ids)


def test_a_stream_never_gives_half_a_character(tokenizer: Tokenizer) -> None:
    stream = StreamDecoder(tokenizer)
    single = {tokenizer.decode_bytes([i]): i for i in range(256)}
    ids = [single[bytes([byte])] for byte in "🎉!".encode()]
    assert [stream.push(i) for i in ids] == ["", "", "", "🎉", "!"]
    assert stream.finish() == ""
    assert (stream.push(ids[0]), stream.finish()) == ("", "\ufffd")


def test_text_never_becomes_special(tokenizer: Tokenizer) -> None:
    ids = tokenizer.encode("<|bos|><|assistant_end|>")
    assert max(ids) < 351
    assert tokenizer.decode(ids) == "<|bos|><|assistant_end|>"
    assert tokenizer.decode([351, *tokenizer.encode("a")]) == "<|bos|>a"


def test_byte_lengths_are_those_of_the_bytes(tokenizer: Tokenizer) -> None:
    lengths = tokenizer.byte_lengths()
    assert lengths[:256] == [1] * 256  # also of bytes that are no UTF-8
    assert lengths[351:] == [0] * 9
    assert lengths == [len(tokenizer.decode_bytes([i])) if i < 351 else 0 for i in range(360)]


def test_tiktoken_encodes_as_the_trainer_does(tokenizer: Tokenizer) -> None:
    trainer = rustbpe.Tokenizer()
    trainer.train_from_iterator(iter(TEXTS), 351, pattern=PATTERN)
    for text in [*TEXTS[:3], "Totally new words: ünïcödé 99999 \t\t x\n\n  y", "don't WE'LL they've"]:
        assert tokenizer.encode(text) == trainer.encode(text)


def test_the_same_text_gives_the_same_vocabulary(tokenizer: Tokenizer) -> None:
    again = Tokenizer.train(iter(TEXTS), vocab_size=360)
    assert again.fingerprint == tokenizer.fingerprint
    assert Tokenizer.train(TEXTS, vocab_size=359).fingerprint != tokenizer.fingerprint


def test_saved_and_loaded(tokenizer: Tokenizer, tmp_path: Path) -> None:
    tokenizer.save(tmp_path)
    loaded = Tokenizer.load(tmp_path)
    assert loaded.fingerprint == tokenizer.fingerprint
    assert loaded.special == tokenizer.special
    assert all(loaded.encode(text) == tokenizer.encode(text) for text in TEXTS[:3])
    assert np.fromfile(tmp_path / "byte_lengths.bin", dtype="<i4").tolist() == tokenizer.byte_lengths()
    assert json.loads((tmp_path / "tokenizer.json").read_text())["pattern"] == PATTERN


@pytest.mark.parametrize("content", ["", "{}", '{"ranks": ["??"], "pattern": "a", "special": {}}'])
def test_a_damaged_file_is_an_error(tmp_path: Path, content: str) -> None:
    with pytest.raises(StorageError, match="is missing"):
        Tokenizer.load(tmp_path)
    (tmp_path / "tokenizer.json").write_text(content)
    with pytest.raises(StorageError, match="is damaged"):
        Tokenizer.load(tmp_path)


def test_a_vocabulary_that_the_text_does_not_support() -> None:
    with pytest.raises(
        UserError, match=r"at most 267 tokens and 5000 are asked for: lower stages\.tokenizer\.vocabSize"
    ):
        Tokenizer.train(["abc"], vocab_size=5000)
    assert Tokenizer.train(["abc"], vocab_size=267).vocab_size == 267


def test_a_vocabulary_without_room_for_bytes() -> None:
    with pytest.raises(UserError, match="at least 265"):
        Tokenizer.train(["abc"], vocab_size=264)


def test_documents_and_characters_are_limited() -> None:
    assert list(limited(["abcdef", "gh", "ijkl", "m"], max_chars=8, document_chars=4)) == ["abcd", "gh", "ij"]


def test_batches_are_texts_one_by_one(tokenizer: Tokenizer) -> None:
    texts = [*TEXTS[:3], "", " " * 200_000]
    expected = [tokenizer.encode(text) for text in texts]
    assert tokenizer.encode_batch(texts) == expected
    assert tokenizer.encode_batch(texts, threads=2) == expected
    assert tokenizer.encode_batch(texts[:4], threads=2) == expected[:4]


AWKWARD = [
    " ", "\n", "\t", "\r\n", " \n", "\u3000", "a", "7", "!", "'", "'s", "\0", "\x1b", "<|bos|>", "\u6f22", "e\u0301",
    "\U0001f469\u200d\U0001f680", "\u2028", "\u00a0",
]  # fmt: skip


@given(runs=st.lists(st.tuples(st.one_of(st.sampled_from(AWKWARD), st.text(max_size=9)), st.integers(1, 3000))))
def test_ids_are_those_of_plain_tiktoken(tokenizer: Tokenizer, runs: list[tuple[str, int]]) -> None:
    text = "".join(part * count for part, count in runs)
    assert tokenizer.encode(text) == _plain(tokenizer).encode_ordinary(text)


@pytest.mark.parametrize("unit", AWKWARD)
def test_ids_of_long_texts_of_one_kind(tokenizer: Tokenizer, unit: str) -> None:
    text = (unit * LONGEST_RUN)[: LONGEST_RUN - 1]
    for awkward in (text, f"{text}x{text}x", f"x{text}"):
        ids = tokenizer.encode(awkward)
        assert ids == _plain(tokenizer).encode_ordinary(awkward)
        assert tokenizer.least_tokens(awkward) <= len(ids)


@pytest.mark.parametrize("unit", [" ", "\n", "\t ", "\u3000\u2028\u0085"])
def test_a_run_that_is_too_long_for_tiktoken_is_cut(tokenizer: Tokenizer, unit: str) -> None:
    run = (unit * LONGEST_RUN)[:LONGEST_RUN]
    for text in (run + run, f"ab {run[:-1]}x{run}y", f"{run[1:]}x{run[1:]}"):
        cut = [text[i : i + LONGEST_RUN] for i in range(0, len(text), LONGEST_RUN)] if run in text else [text]
        assert tokenizer.encode(text) == [i for part in cut for i in _plain(tokenizer).encode_ordinary(part)]


@given(text=st.text())
def test_no_text_has_fewer_tokens(tokenizer: Tokenizer, text: str) -> None:
    assert tokenizer.least_tokens(text) <= len(tokenizer.encode(text))


def _plain(tokenizer: Tokenizer) -> tiktoken.Encoding:
    ranks = [tokenizer.decode_bytes([i]) for i in range(tokenizer.bos)]
    return tiktoken.Encoding(
        "plain",
        pat_str=PATTERN,
        mergeable_ranks={token: rank for rank, token in enumerate(ranks)},
        special_tokens={},
    )


def test_a_million_spaces(tokenizer: Tokenizer) -> None:
    text = "a" + " " * 1_000_000 + "b"
    assert tokenizer.decode(tokenizer.encode(text)) == text


def test_a_vocabulary_of_real_text(mirror: Path) -> None:
    from nanochat.data.text import read_text

    shard = mirror / "datasets/karpathy/fineweb-edu-100b-shuffle/resolve/main/shard_00000.parquet"
    texts = [text for group in read_text(shard) for text in group]
    tokenizer = Tokenizer.train(texts, vocab_size=4096, max_chars=2_000_000)
    text = "".join(texts[-50:])
    ids = tokenizer.encode(text)
    assert tokenizer.decode(ids) == text
    assert len(text.encode()) / len(ids) > 3
