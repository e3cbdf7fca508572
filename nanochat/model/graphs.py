"""Steps of one token for each row as CUDA graphs: one launch instead of some 25 for each layer.

    model.graphs = Graphs(model)        # of a model whose weights stay where they are; `nanochat.model.speed`
    logits = model.decode(ids, start=start, slots=slots, cache=cache)    # goes by them

A step has a shape: its slots, and how many of the cache's positions are attended to. The first step of a shape is
computed as it is, kernel by kernel; the second is recorded, and it and those that follow are replayed, by the same
kernels on the same memory. Only tokens and positions are copied in between. Where a step can't be recorded, it is said,
and all are computed kernel by kernel from then on.
"""

from __future__ import annotations

import logging
from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from nanochat.model.cache import KVCache
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


class Steps:
    """The steps of one cache, by slots and positions. They share memory: a step's logits last until the next step."""

    def __init__(self) -> None:
        self.pool = torch.cuda.graph_pool_handle()
        self.kept: OrderedDict[tuple[tuple[int, ...], int], Step] = OrderedDict()
        self.newest: Replay | None = None  # is never dropped: CUDA takes no pool again whose graphs are all gone

    def get(self, model: Transformer, slots: tuple[int, ...], attended: int) -> Step:
        """The step of a shape, old or new; the one that was not used for longest is dropped."""
        step = self.kept.pop((slots, attended), None) or Step(model, slots, attended)
        self.kept[slots, attended] = step
        if len(self.kept) > KEPT:
            self.kept.popitem(last=False)
        return step


class Graphs:
    """The steps of one model, by cache."""

    def __init__(self, model: Transformer) -> None:
        self._model = model
        self._steps: WeakKeyDictionary[KVCache, Steps] = WeakKeyDictionary()

    def decode(
        self, ids: Sequence[int], start: Sequence[int], slots: Sequence[int], attended: int, cache: KVCache
    ) -> Tensor:
        """As `Transformer.decode_fixed`, of plain numbers."""
        steps = self._steps.get(cache) or self._steps.setdefault(cache, Steps())
        step = steps.get(self._model, tuple(slots), attended)
        step.give(ids, start)
        if step.used and step.replay is None:
            try:
                step.replay = steps.newest = record(lambda: step.compute(cache), steps.pool)
            except RuntimeError as error:
                self._model.graphs = None
                log.warning("tokens are computed kernel by kernel from now on, which is slower: %s", error)
        step.used = True
        return step.replay() if step.replay else step.compute(cache)
