"""The compression table, with and without its peers."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import tiktoken

from nanochat.tokenizer import Tokenizer
from nanochat.tokenizer.compression import PEERS, SAMPLES, compression_table, read_ranks


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.train(list(SAMPLES.values()), vocab_size=400)


def test_peers_that_cannot_be_had_are_named(tokenizer: Tokenizer) -> None:
    table = compression_table(tokenizer, {"a": "abc é", "none": ""}, encodings=None)
    assert table["missing"] == {peer: "its vocabulary could not be had" for peer in ("gpt2", "gpt4")}
    assert table["vocabSize"] == {"ours": 400}
    assert table["texts"] == [{"name": "a", "bytes": 6, "tokens": {"ours": len(tokenizer.encode("abc é"))}}]


def test_peers_of_the_mirror(tokenizer: Tokenizer, mirror: Path, tmp_path: Path) -> None:
    table = compression_table(tokenizer, SAMPLES, encodings=mirror / "encodings")
    assert table["vocabSize"] == {"ours": 400, "gpt2": 50_256, "gpt4": 100_256}
    assert table["missing"] == {}
    assert [row["name"] for row in table["texts"]] == list(SAMPLES)
    for row in table["texts"]:
        assert set(row["tokens"]) == {"ours", "gpt2", "gpt4"}
        assert all(0 < count <= row["bytes"] for count in row["tokens"].values())
    shutil.copy(mirror / "encodings/r50k_base.tiktoken", tmp_path)
    assert list(compression_table(tokenizer, SAMPLES, encodings=tmp_path)["missing"]) == ["gpt4"]


def test_peers_encode_as_published(mirror: Path) -> None:
    known = {"gpt2": [15496, 995], "gpt4": [9906, 1917]}  # "Hello world"
    for peer in PEERS:
        ranks = read_ranks(mirror / "encodings" / peer.file)
        encoding = tiktoken.Encoding(peer.name, pat_str=peer.pattern, mergeable_ranks=ranks, special_tokens={})
        assert encoding.encode_ordinary("Hello world") == known[peer.name]


@pytest.mark.parametrize("content", [b"<html>no</html>", b"", b"IQ== 0\nIg== 1\n"])
def test_a_file_that_is_no_vocabulary(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "r50k_base.tiktoken").write_bytes(content)
    with pytest.raises(ValueError):
        read_ranks(tmp_path / "r50k_base.tiktoken")
