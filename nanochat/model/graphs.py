"""Steps of one token for each row as CUDA graphs: one launch instead of some 25 for each layer.

    model.graphs = Graphs(model)        # of a model whose weights stay where they are; `nanochat.model.speed`
    logits = model.decode(ids, start=start, slots=slots, cache=cache)    # goes by them

A step has a shape: its slots, and how many of the cache's positions are attended to, a multiple of CHUNK. The first
step of a shape is computed as it is, kernel by kernel; the second is recorded, and it and those that follow are
replayed, by the same kernels on the same memory. Only tokens and positions are copied in between. Where a step can't be
recorded, it is said, and all are computed kernel by kernel from then on.
"""

from __future__ import annotations

import logging
from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from nanochat.model.cache import CHUNK, KVCache
from nanochat.model.transformer import Transformer

log = logging.getLogger(__name__)

KEPT = 64  # shapes of a cache that are remembered, the most recently used ones

Replay = Callable[[], Tensor]


class Step:
    """The step of one shape; `given` (2, B) are tokens and positions of the rows."""

    def __init__(self, model: Transformer, slots: Sequence[int], attended: int) -> None:
        self._model, self._slots, self._attended = model, slots, attended
        self._rows = torch.tensor(slots, device=model.device)
        self._given = torch.zeros(2, len(slots), dtype=torch.int64, device=model.device)
        self.used = False
        self.replay: Replay | None = None

    def give(self, ids: Sequence[int], start: Sequence[int]) -> None:
        """Set tokens and positions of the next step."""
        self._given.copy_(torch.tensor((ids, start)))

    def compute(self, cache: KVCache) -> Tensor:
        """The logits (B, V), by work for the device alone. The cache is not kept: it must end when its engine does."""
        ids, start = self._given
        return self._model.decode_fixed(
            ids, start=start, rows=self._rows, slots=self._slots, attended=self._attended, cache=cache
        )


def record(compute: Replay, pool: Any) -> Replay:
    """Record what is computed, with memory of this pool -> what computes it again, into the same tensor."""
    graph = torch.cuda.CUDAGraph()
    # Other threads may go on to use the GPU.
    with torch.cuda.graph(graph, pool=pool, capture_error_mode="thread_local"):
        found = compute()

    def replay() -> Tensor:
        graph.replay()
        return found

    return replay


class Graphs:
    """The steps of one model, by cache and shape. They share memory, so a step's logits last until the next step."""

    def __init__(self, model: Transformer) -> None:
        self._model = model
        self._pool = torch.cuda.graph_pool_handle()
        self._steps: WeakKeyDictionary[KVCache, OrderedDict[tuple[tuple[int, ...], int], Step]] = WeakKeyDictionary()

    def decode(self, ids: Sequence[int], start: Sequence[int], slots: Sequence[int], cache: KVCache) -> Tensor:
        """As `Transformer.decode`, whose bounds were checked."""
        step = self._step(tuple(slots), min(cache.length, -(-(max(start) + 1) // CHUNK) * CHUNK), cache)
        step.give(ids, start)
        if step.used and step.replay is None:
            try:
                step.replay = record(lambda: step.compute(cache), self._pool)
            except RuntimeError as error:
                self._model.graphs = None
                log.warning("tokens are computed kernel by kernel from now on, which is slower: %s", error)
        step.used = True
        return step.replay() if step.replay else step.compute(cache)

    def _step(self, slots: tuple[int, ...], attended: int, cache: KVCache) -> Step:
        steps = self._steps.setdefault(cache, OrderedDict())
        step = steps.pop((slots, attended), None) or Step(self._model, slots, attended)
        steps[slots, attended] = step
        if len(steps) > KEPT:
            steps.popitem(last=False)
        return step
