"""The text loader: (token files, seed, step) -> the global batch, whatever the number of processes.

    loader = TextLoader([Shard(tokens=n, open=lambda: TokenFile(fetch(name)))], rows=256, length=2048, seed=42)
    inputs, targets = loader.batch(step, rows=slice(rank * 32, rank * 32 + 32))

The stream is all files in their order, epoch after epoch; each epoch after the first has its own order of files. The
next file is opened (and so fetched) in the background while this one is read.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence, Sized
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, TypeVar

import numpy as np

from nanochat.data.packing import FlatLoader
from nanochat.data.tokenfile import TokenFile
from nanochat.spec.errors import UserError

F = TypeVar("F", bound=Sized)


@dataclass(frozen=True, slots=True)
class Shard(Generic[F]):
    """One token file: its length is known before it is fetched. `release` is called when it has been read."""

    tokens: int  # or what else its file counts, rows for example
    open: Callable[[], F]
    release: Callable[[], None] = lambda: None

    @classmethod
    def local(cls, folder: Path) -> Shard[TokenFile]:
        """A token file that is in a local folder."""
        file = TokenFile(folder)
        return Shard(tokens=len(file), open=lambda: file)


class TextLoader(FlatLoader):
    """Global batches of text; see FlatLoader for `batch`, `epoch`, `total` and `steps_per_epoch`."""

    stream: TextStream

    def __init__(self, files: Sequence[Shard[TokenFile]], *, rows: int, length: int, seed: int) -> None:
        super().__init__(TextStream(files, seed=seed), rows=rows, length=length)

    def close(self) -> None:
        """End the background fetching."""
        self.stream.close()


class FileStream(Generic[F]):
    """The files as one endless stream; two files at most are open."""

    def __init__(self, files: Sequence[Shard[F]], *, seed: int) -> None:
        self._files = [file for file in files if file.tokens]
        self._seed = seed
        self.total = sum(file.tokens for file in self._files)
        if not self.total:
            raise UserError("there is no text to read: the token files are empty")
        self._order: tuple[int, list[int], np.ndarray] = (-1, [], np.empty(0))  # of one epoch
        self._opened: dict[int, Future[F]] = {}
        self._pool = ThreadPoolExecutor(max_workers=1, thread_name_prefix="next-token-file")

    def locate(self, epoch: int, offset: int) -> tuple[F, int]:
        """The file that `offset` of an epoch lies in, and where in it."""
        order, starts = self._epoch(epoch)
        place = int(np.searchsorted(starts, offset, side="right")) - 1
        following = order[place + 1] if place + 1 < len(order) else file_order(len(order), self._seed, epoch + 1)[0]
        return self._open(order[place], following), offset - int(starts[place])

    def close(self) -> None:
        self._pool.shutdown(wait=False, cancel_futures=True)

    def _epoch(self, epoch: int) -> tuple[list[int], np.ndarray]:
        """The order of the files in an epoch and the token at which each begins."""
        if self._order[0] != epoch:
            order = file_order(len(self._files), self._seed, epoch)
            lengths = [self._files[i].tokens for i in order]
            self._order = (epoch, order, np.concatenate([[0], np.cumsum(lengths)[:-1]]))
        return self._order[1], self._order[2]

    def _open(self, index: int, following: int) -> F:
        for i in list(self._opened):
            if i not in (index, following):
                # In the one thread that also opens files: never before this one is there.
                self._pool.submit(self._files[i].release)
                del self._opened[i]
        for i in (index, following):
            if i not in self._opened:
                self._opened[i] = self._pool.submit(self._files[i].open)
        try:
            file = self._opened[index].result()
        except BaseException:
            del self._opened[index]  # so that asking again tries again
            raise
        if len(file) != self._files[index].tokens:
            raise UserError(f"a token file has {len(file)} tokens where {self._files[index].tokens} were announced")
        return file


class TextStream(FileStream[TokenFile]):
    """The files' tokens."""

    def piece(self, epoch: int, offset: int) -> np.ndarray:
        """Tokens from `offset` of an epoch to the end of the file that it lies in."""
        file, start = self.locate(epoch, offset)
        return file.tokens[start:]


def file_order(count: int, seed: int, epoch: int) -> list[int]:
    """The order of files in an epoch: as given in the first, shuffled by the seed in those after it."""
    if epoch == 0:
        return list(range(count))
    return [int(i) for i in np.random.default_rng([seed, epoch]).permutation(count)]
