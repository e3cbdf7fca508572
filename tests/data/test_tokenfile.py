"""Token files are what their index says, or an error."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from data_helpers import SPECIAL, conversation

from nanochat.data.tokenfile import ConversationFile, TokenFile, write_text
from nanochat.spec.errors import StorageError


def test_documents_begin_with_bos(text_file: Callable[[list[list[int]]], Path]) -> None:
    file = TokenFile(text_file([[1, 2], [], [3]]))
    assert file.tokens.tolist() == [100, 1, 2, 100, 100, 3]
    assert file.index == {"dtype": "uint16", "tokens": 6, "documents": 3, "bos": 100}


@pytest.mark.parametrize(("vocab_size", "dtype"), [(65_536, np.uint16), (65_537, np.uint32)])
def test_two_bytes_are_used_while_they_suffice(tmp_path: Path, vocab_size: int, dtype: type) -> None:
    write_text(tmp_path, [[vocab_size - 1]], bos=0, vocab_size=vocab_size)
    file = TokenFile(tmp_path)
    assert file.tokens.dtype == dtype
    assert file.tokens.tolist() == [0, vocab_size - 1]


def test_conversations(chat_file: Callable[..., ConversationFile]) -> None:
    rows = [conversation([(2, 3)]), conversation([(1, 1), (4, 2)], first=50)]
    file = chat_file(rows)
    assert len(file) == 2
    assert [(ids.tolist(), mask.tolist()) for ids, mask in (file.row(0), file.row(1))] == rows
    assert file.special == SPECIAL
    assert file.index["trained"] == sum(sum(mask) for _, mask in rows)


def test_empty_files(text_file: Callable[[list[list[int]]], Path], chat_file: Callable[..., ConversationFile]) -> None:
    assert len(TokenFile(text_file([]))) == 0
    assert len(chat_file([])) == 0


def test_a_file_that_was_cut_is_an_error(text_file: Callable[[list[list[int]]], Path]) -> None:
    folder = text_file([[1, 2, 3]])
    (folder / "tokens.bin").write_bytes((folder / "tokens.bin").read_bytes()[:-1])
    with pytest.raises(StorageError, match=r"tokens\.bin has 7 bytes and its index says 8"):
        TokenFile(folder)
    (folder / "index.json").unlink()
    with pytest.raises(StorageError, match=r"index\.json cannot be read"):
        TokenFile(folder)
