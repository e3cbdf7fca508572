"""The optimizer: Muon for the blocks' matrices, AdamW for embedding and head, spread over the processes.

    optimizer = build_optimizer(model, OptimSettings(), world=world)
    optimizer.reduce_in_backward()                    # before the last backward of a step, if there are several
    loss.backward()                                   # the local part of the global batch's loss
    optimizer.start_reduce()                          # in every process, though it had no batch
    norm = optimizer.step(lr_scale, momentum, clip)   # gradients are SUMmed over the processes
    optimizer.zero_grad()
    optimizer.wait(layer)                             # before that layer's weights are read, see `first_layer`

As ZeRO-2 (arXiv 1910.02054): every process holds all weights, and of gradients and state what it owns, which is
whole matrices for Muon and row blocks for AdamW. After a step the weights are alike in all processes. Gradients are
reduced while backward runs, updated weights gathered while the next forward begins; one process has neither to do.
"""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from nanochat.optim.adamw import adamw_update
from nanochat.optim.muon import muon_update
from nanochat.optim.reduction import Reduction
from nanochat.optim.shard import Shard
from nanochat.runtime.distributed import ALONE, World

TUNED_WIDTH = 768  # AdamW's rates are given for this width, and fall with the root of a larger one
STEP = "step"
BUCKET = 4 * 2**20  # bytes of matrices, at least, that several processes reduce together
LAST = 1 << 30  # a layer behind all others


@dataclass(frozen=True, slots=True)
class OptimSettings:
    """Learning rates and the rest; the defaults are the reference's."""

    embedding_lr: float = 0.2
    unembedding_lr: float = 0.004
    matrix_lr: float = 0.02
    weight_decay: float = 0.0  # AdamW's, decoupled
    betas: tuple[float, float] = (0.8, 0.95)
    epsilon: float = 1e-10
    orthogonalisation: str = "newton-schulz"  # of Muon, one of POLYNOMIALS
    matrix_decay: float = 0.0  # Muon's, cautious


# AdamW's groups of the modern recipe, by the end of a parameter's name: rate, betas, decay. A table's rate is given for
# TUNED_WIDTH, as those of embedding and head are.
MODERN: Mapping[str, tuple[float, tuple[float, float], float]] = {
    "value_embedding.table": (0.15, (0.8, 0.995), 0.01),
    "stream.stream_scale": (0.005, (0.8, 0.95), 0.05),
    "stream.input_scale": (0.5, (0.96, 0.95), 0.0),
    "stream.smear_gate": (0.2, (0.8, 0.95), 0.0),
    "stream.smear_scale": (0.2, (0.8, 0.95), 0.0),
    "stream.backout_scale": (0.2, (0.8, 0.95), 0.0),
}


class TableShard(Shard):
    """AdamW for row blocks of one table, or of one vector."""

    kinds = ("mean", "square")

    def __init__(
        self, parameters: Mapping[str, nn.Parameter], world: World, *, lr: float, settings: OptimSettings
    ) -> None:
        super().__init__(parameters, world)
        self.lr, self.settings = lr, settings

    def join(self, tensors: Sequence[Tensor]) -> Tensor:
        return tensors[0]  # (rows, cols): units are rows

    def split(self, whole: Tensor) -> Sequence[Tensor]:
        return (whole,)

    def pieces(self, own: Tensor) -> Iterable[tuple[str, slice, Tensor]]:
        return [(self.names[0], self.own, own)] if len(own) else []

    def update(self, weights: Tensor, *, step: int, lr_scale: float, muon_momentum: float, decay_scale: float) -> None:
        adamw_update(
            weights,
            self.gradient,
            self.state["mean"],
            self.state["square"],
            step=step,
            lr=self.lr * lr_scale,
            betas=self.settings.betas,
            epsilon=self.settings.epsilon,
            weight_decay=self.settings.weight_decay,
        )


class MatrixShard(Shard):
    """Muon for matrices of one shape."""

    kinds = ("momentum",)

    def __init__(
        self, parameters: Mapping[str, nn.Parameter], world: World, *, settings: OptimSettings, dtype: torch.dtype
    ) -> None:
        super().__init__(parameters, world)
        self.settings, self.dtype = settings, dtype

    def join(self, tensors: Sequence[Tensor]) -> Tensor:
        return torch.stack(list(tensors))  # (matrices, rows, cols): units are matrices

    def split(self, whole: Tensor) -> Sequence[Tensor]:
        return whole.unbind()

    def pieces(self, own: Tensor) -> Iterable[tuple[str, slice, Tensor]]:
        return [(name, slice(None), matrix) for name, matrix in zip(self.names[self.own], own, strict=True)]

    def update(self, weights: Tensor, *, step: int, lr_scale: float, muon_momentum: float, decay_scale: float) -> None:
        muon_update(
            weights,
            self.gradient,
            self.state["momentum"],
            lr=self.settings.matrix_lr * lr_scale,
            momentum=muon_momentum,
            dtype=self.dtype,
            method=self.settings.orthogonalisation,
            decay=self.settings.matrix_decay * decay_scale,
        )


def first_layer(name: str) -> int:
    """The first layer of the forward pass that reads a parameter of this name, from 1 on; 0 is read before them all,
    and LAST after."""
    if name.startswith("head."):
        return LAST
    block = re.match(r"blocks\.(\d+)\.", name)
    return int(block[1]) + 1 if block else 0


class ShardedOptimizer:
    """One step for all parameters. Its calls are collective: every process makes them, in the same order."""

    def __init__(self, shards: Iterable[Shard], world: World) -> None:
        self.shards = tuple(shards)
        self.world = world
        self.steps = 0
        read = sorted((min(map(first_layer, shard.names)), index) for index, shard in enumerate(self.shards))
        self._read = [(layer, self.shards[index]) for layer, index in read]  # by the layer that reads them first
        self._coming: deque[tuple[int, Shard]] = deque()  # of which the weights are under way
        self._reduction = Reduction([shard for _, shard in reversed(self._read)], early=world.size > 1)

    def reduce_in_backward(self) -> None:
        """Let the next backward pass, the last of this step, begin to reduce what it ends with."""
        self._reduction.begin_in_backward()

    @torch.no_grad()
    def start_reduce(self) -> None:
        """Begin to reduce what backward has not begun; in every process, before whatever may end the step."""
        self.wait()  # a process without a batch has read no weights
        self._reduction.begin()

    @torch.no_grad()
    def step(self, lr_scale: float, muon_momentum: float, clip: float | None, decay_scale: float = 1.0) -> Tensor:
        """Update all weights from the gradients' sum -> its norm over all parameters before clipping, () float64.

        Where clip is given, gradients are scaled down to this norm. `decay_scale` is of the matrices' decay. A GPU is
        not waited for. With several processes the weights are still under way afterwards: see `wait`.
        """
        self.start_reduce()
        self._reduction.finish()
        self.steps += 1
        norm = self._norm()
        if clip is not None and (norm.is_cuda or norm > clip):  # to look at a GPU's number is to wait for it
            scale = torch.clamp(clip / norm, max=1.0)
            for shard in self.shards:
                shard.gradient.mul_(scale)
        for _, shard in self._read:
            shard.start_update(step=self.steps, lr_scale=lr_scale, muon_momentum=muon_momentum, decay_scale=decay_scale)
        self._coming.extend(self._read)
        if self.world.size == 1:
            self.wait()
        return norm

    @torch.no_grad()
    def wait(self, layer: int = LAST) -> None:
        """Return when the weights are whole that this layer of the forward pass and those before it read: all, unless
        said."""
        while self._coming and self._coming[0][0] <= layer:
            self._coming.popleft()[1].finish_update()

    def zero_grad(self) -> None:
        """Forget the gradients, those that are being reduced, too."""
        self._reduction.finish()
        for shard in self.shards:
            shard.zero_grad()

    def reset(self) -> None:
        """Forget everything that earlier steps left."""
        self.steps = 0
        for shard in self.shards:
            shard.reset()

    def own_state(self) -> dict[str, Tensor]:
        """This process's part of the state, not copied; the first process's has the number of steps, too."""
        state = {STEP: torch.tensor(self.steps)} if self.world.first else {}
        for shard in self.shards:
            state |= shard.own_state()
        return state

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Take up the own part of a whole state, such as `StateFiles`."""
        expected = {STEP, *(f"{name}.{kind}" for s in self.shards for name in s.names for kind in s.kinds)}
        if expected != set(state):
            differ = sorted(expected ^ set(state))
            raise ValueError(f"the optimizer state is of another model: {differ[:4]} are not in both")
        self.steps = int(state[STEP])
        for shard in self.shards:
            shard.load_state_dict(state)

    def _norm(self) -> Tensor:
        squares = [torch.linalg.vector_norm(shard.gradient).double().square() for shard in self.shards]
        return self.world.all_reduce(torch.stack(squares).sum()).sqrt()


def build_optimizer(model: nn.Module, settings: OptimSettings, *, world: World = ALONE) -> ShardedOptimizer:
    """Group a Transformer's parameters: its `embedding`, `head.weight` and those of MODERN for AdamW, others for Muon.

    Orthogonalisation runs in the model's compute_dtype (in bf16 it takes a third of the time, on CPUs too). Every
    process has to call it, for tensors travel in a group of their own.
    """
    dtype: Any = model.compute_dtype
    parameters = dict(model.named_parameters())
    embedding, head = parameters.pop("embedding"), parameters.pop("head.weight")
    scale = (embedding.size(1) / TUNED_WIDTH) ** -0.5
    modern = {name: parameters.pop(name) for name in list(parameters) if name.endswith(tuple(MODERN))}
    by_shape: dict[torch.Size, dict[str, nn.Parameter]] = {}
    for name, parameter in parameters.items():
        by_shape.setdefault(parameter.shape, {})[name] = parameter
    tensors = world.for_tensors(embedding.device)
    shards: list[Shard] = [
        MatrixShard(bucket, tensors, settings=settings, dtype=dtype)
        for matrices in by_shape.values()
        for bucket in buckets(matrices, world.size)
    ]
    shards += [
        TableShard({"head.weight": head}, tensors, lr=settings.unembedding_lr * scale, settings=settings),
        TableShard({"embedding": embedding}, tensors, lr=settings.embedding_lr * scale, settings=settings),
    ]
    for name, parameter in modern.items():
        lr, betas, decay = next(group for end, group in MODERN.items() if name.endswith(end))
        lr *= scale if name.endswith(".table") else 1.0
        own = replace(settings, betas=betas, weight_decay=decay)
        shards.append(TableShard({name: parameter}, tensors, lr=lr, settings=own))
    return ShardedOptimizer(shards, world)


def buckets(matrices: Mapping[str, nn.Parameter], processes: int) -> Iterator[dict[str, nn.Parameter]]:
    """Matrices of one shape, in order of their layers -> those that are reduced together, the last layers' first.

    Each process owns as many of each bucket; only that of the first layers may be smaller. One process has one bucket.
    """
    names = list(matrices)
    least = -(-BUCKET // matrices[names[0]].nbytes)
    each = len(names) if processes == 1 else processes * -(-least // processes)
    for end in range(len(names), 0, -each):
        yield {name: matrices[name] for name in names[max(0, end - each) : end]}
