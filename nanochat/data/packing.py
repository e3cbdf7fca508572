"""Packing: one endless stream of tokens cut into rows, and conversations cut to fit a row.

Row r of step s begins at token (s x rows + r) x length of the stream and has length + 1 tokens: inputs are all but the
last, targets all but the first. Each token of the stream is so the input of exactly one place of one step, and what a
step holds depends on nothing but the step.
"""

from __future__ import annotations

from typing import Protocol

import numpy as np
from numpy.typing import NDArray

Tokens = NDArray[np.int64]


class Stream(Protocol):
    """An endless stream of tokens: epoch after epoch of the same pieces, each epoch in its own order."""

    @property
    def total(self) -> int:
        """Tokens in one epoch."""
        ...

    def piece(self, epoch: int, offset: int) -> np.ndarray:
        """Tokens from `offset` of an epoch up to the end of the piece that `offset` lies in; at least one."""
        ...


def read_stream(stream: Stream, start: int, count: int) -> Tokens:
    """`count` tokens of the stream from token `start` on, across pieces and epochs."""
    out = np.empty(count, dtype=np.int64)
    done = 0
    while done < count:
        epoch, offset = divmod(start + done, stream.total)
        piece = stream.piece(epoch, offset)[: count - done]
        out[done : done + len(piece)] = piece
        done += len(piece)
    return out


class FlatLoader:
    """Global batches of a stream: a pure function of the step."""

    def __init__(self, stream: Stream, *, rows: int, length: int) -> None:
        """`rows` are those of the global batch, `length` is the context in tokens."""
        self.stream = stream
        self.rows = rows
        self.length = length

    @property
    def total(self) -> int:
        """Tokens in one epoch."""
        return self.stream.total

    @property
    def steps_per_epoch(self) -> int:
        """Steps after which every token has been an input; the last of them reaches into the next epoch."""
        return -(-self.total // (self.rows * self.length))

    def epoch(self, step: int) -> int:
        """The epoch in which a step begins."""
        return step * self.rows * self.length // self.total

    def batch(self, step: int, rows: slice | None = None) -> tuple[Tokens, Tokens]:
        """Inputs and targets, (R, T) each, of these rows (by default all) of the global batch of a step."""
        first, last, _ = (rows or slice(None)).indices(self.rows)
        start = (step * self.rows + first) * self.length
        tokens = read_stream(self.stream, start, (last - first) * self.length + 1)  # (R * T + 1,)
        shape = (last - first, self.length)
        return tokens[:-1].reshape(shape), tokens[1:].reshape(shape)


def cut_conversation(ids: np.ndarray, length: int, *, assistant_end: int, user_end: int) -> tuple[int, int]:
    """How many tokens of a conversation are kept, at most `length`, and how many messages are then not whole.

    It is cut after an answer. Where the first exchange alone is longer, its end is cut off.
    """
    if len(ids) <= length:
        return len(ids), 0
    answers = np.flatnonzero(ids[:length] == assistant_end)
    kept = int(answers[-1]) + 1 if len(answers) else length
    ends = (ids == assistant_end) | (ids == user_end)
    return kept, int(ends[kept:].sum())
