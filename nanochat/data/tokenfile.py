"""Token files: raw little-endian arrays beside an index, mapped into memory.

    write_text(folder, documents, bos=..., vocab_size=...)        # documents: arrays of ids without bos
    TokenFile(folder).tokens                                       # (N,) uint16 or uint32
    write_conversations(folder, rows, special=..., vocab_size=...) # rows: (ids, mask)
    ConversationFile(folder).row(3)                                # ids, mask

Text: tokens.bin (each document with bos in front, one after the other) and index.json. Conversations: ids.bin,
mask.bin (uint8, 1 = trained on), offsets.bin (int64, one more than there are rows) and index.json.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from nanochat.spec.errors import StorageError

INDEX = "index.json"


def token_dtype(vocab_size: int) -> np.dtype:
    """uint16 for up to 65,536 ids, else uint32."""
    return np.dtype("<u2") if vocab_size <= 65_536 else np.dtype("<u4")


def write_text(folder: Path, documents: Iterable[Sequence[int]], *, bos: int, vocab_size: int) -> dict[str, Any]:
    """Write tokens.bin and index.json; returns the index."""
    dtype, tokens, count = token_dtype(vocab_size), 0, 0
    with open(folder / "tokens.bin", "wb") as file:
        for ids in documents:
            file.write(np.asarray([bos, *ids], dtype=dtype).tobytes())
            tokens += len(ids) + 1
            count += 1
    return _write_index(folder, {"dtype": dtype.name, "tokens": tokens, "documents": count, "bos": bos})


def write_conversations(
    folder: Path,
    rows: Iterable[tuple[ArrayLike, ArrayLike]],
    *,
    special: Mapping[str, int],
    vocab_size: int,
) -> dict[str, Any]:
    """Write ids.bin, mask.bin, offsets.bin and index.json; returns the index. `rows` are (ids, mask)."""
    dtype, offsets, trained = token_dtype(vocab_size), [0], 0
    with open(folder / "ids.bin", "wb") as ids_file, open(folder / "mask.bin", "wb") as mask_file:
        for ids, mask in rows:
            tokens, trains = np.asarray(ids, dtype=dtype), np.asarray(mask, dtype=np.uint8)  # (n,) each
            ids_file.write(tokens.tobytes())
            mask_file.write(trains.tobytes())
            offsets.append(offsets[-1] + len(tokens))
            trained += int(trains.sum())
    np.asarray(offsets, dtype="<i8").tofile(folder / "offsets.bin")
    index = {"dtype": dtype.name, "rows": len(offsets) - 1, "tokens": offsets[-1], "trained": trained}
    return _write_index(folder, index | {"special": dict(special)})


class TokenFile:
    """A file of text as tokens."""

    def __init__(self, folder: Path) -> None:
        self.index = _read_index(folder)
        self.tokens = _map(folder / "tokens.bin", np.dtype(self.index["dtype"]), self.index["tokens"])

    def __len__(self) -> int:
        return len(self.tokens)


class ConversationFile:
    """A file of conversations as tokens with loss masks."""

    def __init__(self, folder: Path) -> None:
        self.index = _read_index(folder)
        tokens = self.index["tokens"]
        self.offsets = _map(folder / "offsets.bin", np.dtype("<i8"), self.index["rows"] + 1)
        self.ids = _map(folder / "ids.bin", np.dtype(self.index["dtype"]), tokens)
        self.mask = _map(folder / "mask.bin", np.dtype("u1"), tokens)
        self.special: dict[str, int] = self.index["special"]

    def __len__(self) -> int:
        return int(self.index["rows"])

    def row(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        """Ids and mask of one conversation, (n,) each."""
        start, end = self.offsets[index], self.offsets[index + 1]
        return self.ids[start:end], self.mask[start:end]


def _write_index(folder: Path, index: dict[str, Any]) -> dict[str, Any]:
    (folder / INDEX).write_text(json.dumps(index, indent=2) + "\n")
    return index


def _read_index(folder: Path) -> dict[str, Any]:
    try:
        return json.loads((folder / INDEX).read_text())
    except (OSError, ValueError) as error:
        raise StorageError(f"{folder / INDEX} cannot be read: {error}") from None


def _map(path: Path, dtype: np.dtype, count: int) -> np.ndarray:
    """The file's array, read on demand; StorageError unless it has exactly `count` items."""
    expected = count * dtype.itemsize
    size = path.stat().st_size if path.exists() else 0
    if size != expected:
        raise StorageError(f"{path} has {size} bytes and its index says {expected}: the token file is damaged")
    return np.memmap(path, dtype=dtype, mode="r") if count else np.empty(0, dtype=dtype)
