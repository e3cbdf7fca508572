"""A stage's batches, the next one made while this one trains.

    with Batches(objective, device) as batches:
        local = batches.get(17)     # at once, if it was prepared
        batches.prepare(18)         # by a thread, which also begins to copy it to a GPU
        ...                         # train on local

One thread alone makes them, one at a time, in the order of the calls: loaders need no locks. Batches that depend on the
weights are made when they are asked for, by whoever asks.
"""

from __future__ import annotations

from concurrent.futures import Future, ThreadPoolExecutor
from typing import Self

import torch

from nanochat.training.objective import LocalBatch, Objective


class Batches:
    """This rank's parts of data steps, on its device; one is ahead at most."""

    def __init__(self, objective: Objective, device: torch.device) -> None:
        self._objective, self._device = objective, device
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None  # what is copied beside training
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="next-batch")
        self._made: tuple[int, Future[LocalBatch]] | None = None  # the newest that was asked for

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        """End the thread; after an error what it does is not waited for, which may be a store that does not answer."""
        self._pool.shutdown(wait=kind is None, cancel_futures=True)

    def get(self, step: int) -> LocalBatch:
        """The part of a step; what its loader raises is raised here, and asking again tries again."""
        if not self._objective.reads_ahead:
            return self._objective.local_batch(step).to(self._device)
        self.prepare(step)
        assert self._made is not None
        try:
            local = self._made[1].result()
        except BaseException:
            self._made = None
            raise
        if self._stream is not None:
            current = torch.cuda.current_stream(self._device)
            current.wait_stream(self._stream)
            for batch in local.batches:
                for tensor in batch.tensors:
                    tensor.record_stream(current)  # whose memory is not used again before this stream has read it
        return local

    def prepare(self, step: int) -> None:
        """Have the part of a step made, unless it is the newest."""
        if self._objective.reads_ahead and (self._made is None or self._made[0] != step):
            self._made = step, self._pool.submit(self._make, step)

    def _make(self, step: int) -> LocalBatch:
        local = self._objective.local_batch(step)
        if self._stream is None:
            return local.to(self._device)
        with torch.cuda.stream(self._stream):
            return local.to(self._device)
