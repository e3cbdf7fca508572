"""Best-fit packing: every row of text begins with a document's beginning, and no row has a gap.

    loader = BestFitLoader(files, rows=256, length=2048, seed=42)
    inputs, targets = loader.batch(step, rows=slice(rank * 32, rank * 32 + 32))

A row takes the longest document that fits, again and again, out of those that wait. Where none fits the longest is cut
to fill the row, and the rest of it waits too, with a bos of its own in front. A file's rows are then shuffled, for a
long document fills many in turn, and a batch of one document teaches little. A file of n tokens has at least
n // (length + 1) full rows, known before it is read, and the loader is a pure function of the step, as TextLoader is.
"""

from __future__ import annotations

from bisect import bisect_right, insort
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import islice, pairwise

import numpy as np

from nanochat.data.loader import FileStream, Shard
from nanochat.data.packing import Tokens
from nanochat.data.tokenfile import TokenFile
from nanochat.spec.errors import UserError

WAITING = 1000  # documents that a row chooses from


@dataclass(frozen=True, slots=True)
class Piece:
    """Tokens start to stop of a file; behind an added bos where they continue a document."""

    start: int
    stop: int
    continued: bool = False

    @property
    def size(self) -> int:
        return self.stop - self.start + self.continued

    def cut(self, size: int) -> tuple[Piece, Piece]:
        """The first part, of `size`, and the rest."""
        middle = self.start + size - self.continued
        return Piece(self.start, middle, self.continued), Piece(middle, self.stop, True)


def pack(documents: Iterable[Piece], *, rows: int, capacity: int) -> list[list[Piece]]:
    """The first `rows` rows of exactly `capacity` tokens; there must be that many tokens."""
    source, waiting = iter(documents), list[Piece]()
    packed = []
    for _ in range(rows):
        row, room = list[Piece](), capacity
        while room:
            for document in islice(source, WAITING - len(waiting)):
                insort(waiting, document, key=_size)
            fitting = bisect_right(waiting, room, key=_size)
            if fitting:
                piece = waiting.pop(fitting - 1)
            else:
                piece, rest = waiting.pop().cut(room)
                insort(waiting, rest, key=_size)
            row.append(piece)
            room -= piece.size
        packed.append(row)
    return packed


class PackedFile:
    """A token file as rows of `length` + 1 tokens."""

    def __init__(self, file: TokenFile, length: int) -> None:
        self.file = file
        self.bos = int(file.index["bos"])
        starts = np.flatnonzero(file.tokens == self.bos)
        documents = (Piece(int(first), int(last)) for first, last in pairwise([*starts, len(file)]))
        rows = pack(documents, rows=len(file) // (length + 1), capacity=length + 1)
        self.rows = [rows[place] for place in np.random.default_rng(len(rows)).permutation(len(rows))]

    def __len__(self) -> int:
        return len(self.rows)

    def row(self, index: int) -> Tokens:
        """The tokens of one row, (length + 1,)."""
        pieces = [
            part
            for piece in self.rows[index]
            for part in ([self.bos] if piece.continued else [], self.file.tokens[piece.start : piece.stop])
        ]
        return np.concatenate(pieces).astype(np.int64)


class BestFitLoader:
    """Global batches of packed rows: a pure function of the step."""

    def __init__(self, files: Sequence[Shard[TokenFile]], *, rows: int, length: int, seed: int) -> None:
        """`rows` are those of the global batch, `length` is the context in tokens."""
        self.rows = rows
        self.length = length
        packed = [
            Shard(file.tokens // (length + 1), partial(_open, file, length), file.release)
            for file in files
            if file.tokens > length
        ]
        if not packed:
            raise UserError(
                f"there is no text to pack: no token file holds a row of {length + 1:,} tokens; lower "
                "model.sequenceLength or give more text"
            )
        self.stream = FileStream(packed, seed=seed)

    @property
    def total(self) -> int:
        """Tokens in one epoch."""
        return self.stream.total * self.length

    def batch(self, step: int, rows: slice | None = None) -> tuple[Tokens, Tokens]:
        """Inputs and targets, (R, T) each, of these rows (by default all) of the global batch of a step."""
        numbers = range(step * self.rows, (step + 1) * self.rows)[rows or slice(None)]
        found = np.empty((len(numbers), self.length + 1), dtype=np.int64)
        for place, number in enumerate(numbers):
            file, index = self.stream.locate(*divmod(number, self.stream.total))
            found[place] = file.row(index)
        return found[:, :-1], found[:, 1:]

    def close(self) -> None:
        """End the background fetching."""
        self.stream.close()


def _size(piece: Piece) -> int:
    return piece.size


def _open(file: Shard[TokenFile], length: int) -> PackedFile:
    return PackedFile(file.open(), length)
