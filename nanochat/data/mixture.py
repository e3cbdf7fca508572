"""Mixtures of conversations, and the loaders over them: pure functions of (files, seed, step).

    mixture = Mixture([Part(ConversationFile(folder), rows=1000, epochs=2)], seed=42)
    PackedLoader(mixture, rows=32, length=2048)     # mid: one flat stream, every token is trained
    RowLoader(mixture, rows=32, length=2048)        # sft: one conversation a row, only the assistant is trained

All (part, row) pairs are shuffled together, anew in each epoch.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from nanochat.data.packing import FlatLoader, Tokens, cut_conversation
from nanochat.data.tokenfile import ConversationFile
from nanochat.spec.errors import UserError


@dataclass(frozen=True, slots=True)
class Part:
    """Conversations of one file: the first `rows` of them (None is all), each `epochs` times in the mixture."""

    file: ConversationFile
    rows: int | None = None
    epochs: int = 1


@dataclass(frozen=True, slots=True)
class Cut:
    """Losses of one epoch of a mixture to the length of the context."""

    rows: int  # conversations that were cut
    messages: int  # messages that are not whole
    untrained: int  # conversations without a trained token


class Mixture:
    """Conversations of several files in a shuffled order."""

    def __init__(self, parts: Sequence[Part], *, seed: int) -> None:
        self.parts = tuple(parts)
        self._seed = seed
        counts = [len(p.file) if p.rows is None else min(p.rows, len(p.file)) for p in self.parts]
        # (N, 2): the part and the row of each conversation of an epoch, before shuffling
        self._pairs = np.concatenate(
            [np.empty((0, 2), dtype=np.int64)]
            + [
                np.stack([np.full(n * p.epochs, i), np.tile(np.arange(n), p.epochs)], axis=1)
                for i, (p, n) in enumerate(zip(self.parts, counts, strict=True))
            ]
        )
        if not len(self._pairs):
            raise UserError("the mixture has no conversation: add a task or rows to it")
        self._cached: tuple[int, np.ndarray] = (-1, self._pairs)

    def __len__(self) -> int:
        """Conversations in one epoch."""
        return len(self._pairs)

    @property
    def special(self) -> dict[str, int]:
        """Ids of the special tokens."""
        return self.parts[0].file.special

    def order(self, epoch: int) -> np.ndarray:
        """(N, 2): the part and the row of each conversation in an epoch."""
        if self._cached[0] != epoch:
            shuffled = np.random.default_rng([self._seed, epoch]).permutation(len(self._pairs))
            self._cached = (epoch, self._pairs[shuffled])
        return self._cached[1]

    def at(self, position: int) -> tuple[np.ndarray, np.ndarray]:
        """Ids and mask of the conversation at a position of the endless sequence of epochs."""
        epoch, index = divmod(position, len(self))
        part, row = self.order(epoch)[index]
        return self.parts[part].file.row(row)

    def lengths(self, epoch: int) -> np.ndarray:
        """Tokens of each conversation of an epoch, (N,)."""
        order = self.order(epoch)
        out = np.empty(len(order), dtype=np.int64)
        for i, part in enumerate(self.parts):
            mine = order[:, 0] == i
            rows = order[mine, 1]
            out[mine] = part.file.offsets[rows + 1] - part.file.offsets[rows]
        return out


class PackedLoader(FlatLoader):
    """Conversations one after the other; see FlatLoader for `batch`, `epoch`, `total` and `steps_per_epoch`."""

    def __init__(self, mixture: Mixture, *, rows: int, length: int) -> None:
        super().__init__(ConversationStream(mixture), rows=rows, length=length)
        self.mixture = mixture


class ConversationStream:
    """A mixture as one endless stream of tokens."""

    def __init__(self, mixture: Mixture) -> None:
        self._mixture = mixture
        self.total = int(mixture.lengths(0).sum())
        if not self.total:
            raise UserError("the mixture has no token: its conversations are empty")
        self._cached: tuple[int, np.ndarray] = (-1, np.empty(0))

    def piece(self, epoch: int, offset: int) -> np.ndarray:
        """Tokens from `offset` of an epoch to the end of the conversation that it lies in."""
        if self._cached[0] != epoch:
            self._cached = (epoch, np.cumsum(self._mixture.lengths(epoch)))
        ends = self._cached[1]
        index = int(np.searchsorted(ends, offset, side="right"))
        ids, _ = self._mixture.at(epoch * len(self._mixture) + index)
        return ids[len(ids) - (int(ends[index]) - offset) :]


class RowLoader:
    """One conversation a row, cut after the last answer that fits; targets that are not trained are -1."""

    def __init__(self, mixture: Mixture, *, rows: int, length: int, multiple: int = 64) -> None:
        """Rows are as wide as the step's longest conversation, rounded up to a `multiple`, and at most `length`."""
        self.mixture = mixture
        self.rows = rows
        self.length = length
        self.multiple = multiple

    @property
    def steps_per_epoch(self) -> int:
        """Steps after which every conversation was seen; the last of them reaches into the next epoch."""
        return -(-len(self.mixture) // self.rows)

    def epoch(self, step: int) -> int:
        """The epoch in which a step begins."""
        return step * self.rows // len(self.mixture)

    def batch(self, step: int, rows: slice | None = None) -> tuple[Tokens, Tokens]:
        """Inputs and targets, (R, W) each, of these rows (by default all) of the global batch of a step.

        The width W is the same for all rows of a step, whichever are asked for.
        """
        first, last, _ = (rows or slice(None)).indices(self.rows)
        width = self._width(step)
        inputs = np.full((last - first, width), self.mixture.special["bos"], dtype=np.int64)
        targets = np.full((last - first, width), -1, dtype=np.int64)
        for r in range(first, last):
            ids, mask, _ = self._row(*self.mixture.at(step * self.rows + r))
            n = len(ids) - 1
            inputs[r - first, :n] = ids[:-1]
            targets[r - first, :n] = np.where(mask[1:] == 1, ids[1:].astype(np.int64), -1)
        return inputs, targets

    def cut(self) -> Cut:
        """Count the losses of one epoch."""
        rows = messages = untrained = 0
        for ids, mask in self._epoch():
            _, kept, cut = self._row(ids, mask)
            rows += cut > 0
            messages += cut
            untrained += not kept[1:].any()
        return Cut(rows=rows, messages=messages, untrained=untrained)

    def _epoch(self) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        return (self.mixture.at(i) for i in range(len(self.mixture)))

    def _row(self, ids: np.ndarray, mask: np.ndarray) -> tuple[np.ndarray, np.ndarray, int]:
        """A conversation cut to length + 1 tokens (inputs and targets overlap), and the messages that it lost."""
        special = self.mixture.special
        kept, cut = cut_conversation(
            ids, self.length + 1, assistant_end=special["assistant_end"], user_end=special["user_end"]
        )
        return ids[:kept], mask[:kept], cut

    def _width(self, step: int) -> int:
        longest = 1
        for r in range(self.rows):
            ids, mask = self.mixture.at(step * self.rows + r)
            longest = max(longest, len(self._row(ids, mask)[0]) - 1)
        return min(self.length, -(-longest // self.multiple) * self.multiple)
