"""One process's part of some parameters: gradients are reduced to their owners, updates gathered from them.

The parameters of a shard are seen as one tensor of units, (units, ...): the rows of a table, or matrices of one
shape. Each process owns an even run of units; the last processes own fewer, or none, where they don't divide.
One process is the case of one owner of everything. Training computes between the start of a transfer and its end.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import Tensor, nn

from nanochat.runtime.distributed import Transfer, World


class Shard(ABC):
    """Parameters whose optimizer state is divided among the processes, with the own part of it."""

    kinds: tuple[str, ...]  # names of the state tensors

    def __init__(self, parameters: Mapping[str, nn.Parameter], world: World) -> None:
        self.names = tuple(parameters)
        self.parameters: Sequence[nn.Parameter] = tuple(parameters.values())
        self.world = world
        self.units = len(self.join([p.detach() for p in self.parameters]))
        self.local_units = -(-self.units // world.size)
        begin = min(world.rank * self.local_units, self.units)
        self.own = slice(begin, min(begin + self.local_units, self.units))
        self.gradient = torch.empty(0)  # (own units, ...), after finish_reduce
        self.state: dict[str, Tensor] = {}
        self.reset()
        self._transfer = Transfer()
        self._buffer = torch.empty(0)

    @abstractmethod
    def join(self, tensors: Sequence[Tensor]) -> Tensor:
        """One tensor for each parameter, in its shape -> (units, ...)."""

    @abstractmethod
    def split(self, whole: Tensor) -> Sequence[Tensor]:
        """The inverse of join."""

    @abstractmethod
    def pieces(self, own: Tensor) -> Iterable[tuple[str, slice, Tensor]]:
        """Own units (own units, ...) -> by parameter that has some of them: its name, which of its rows, these rows."""

    @abstractmethod
    def update(self, weights: Tensor, *, step: int, lr_scale: float, muon_momentum: float, decay_scale: float) -> None:
        """Move the own weights (own units, ...), in place, by self.gradient."""

    def reset(self) -> None:
        """Forget the past: a state of zeros."""
        own = self.join([p.detach() for p in self.parameters])[self.own]
        self.state = {kind: torch.zeros_like(own) for kind in self.kinds}

    def start_reduce(self) -> None:
        """Begin to add up all processes' gradients at their owners; a missing one counts as zero."""
        whole = self.join([torch.zeros_like(p) if p.grad is None else p.grad for p in self.parameters])
        if self.world.size == 1:
            self.gradient = whole
            return
        self._buffer = self._pad(whole, self.local_units * self.world.size)
        self.gradient = torch.empty_like(self._buffer[: self.local_units])
        self._transfer = self.world.reduce_scatter(self.gradient, self._buffer)
        self.zero_grad()  # they are in the buffer

    def zero_grad(self) -> None:
        for parameter in self.parameters:
            parameter.grad = None

    def finish_reduce(self) -> None:
        """Return when the own part of the sum is there."""
        self._wait()
        self.gradient = self.gradient[: self.own.stop - self.own.start]

    def start_update(self, *, step: int, lr_scale: float, muon_momentum: float, decay_scale: float) -> None:
        """Update the own units and begin to send them to all."""
        own = self.join([p.detach() for p in self.parameters])[self.own]
        self.update(own, step=step, lr_scale=lr_scale, muon_momentum=muon_momentum, decay_scale=decay_scale)
        self._start_gather(own)

    def finish_update(self) -> None:
        """Return when the weights are all processes'."""
        self._wait()
        for parameter, value in zip(self.parameters, self.split(self._buffer[: self.units]), strict=True):
            parameter.copy_(value)
        self._buffer = self.gradient = torch.empty(0)

    def own_state(self) -> dict[str, Tensor]:
        """The own part of the state by parameter and kind: the tensors themselves, which the next step changes."""
        return {f"{name}.{kind}": piece for kind in self.kinds for name, _, piece in self.pieces(self.state[kind])}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Take the own part of a whole state."""
        for kind in self.kinds:
            for name, rows, piece in self.pieces(self.state[kind]):
                piece.copy_(state[f"{name}.{kind}"][rows])

    def _start_gather(self, own: Tensor) -> None:
        """Begin to put all processes' own units together in self._buffer, (units, ...) and padding."""
        if self.world.size == 1:
            self._buffer = own
            return
        self._buffer = own.new_empty(self.local_units * self.world.size, *own.shape[1:])
        mine = self._pad(own, self.local_units).contiguous()
        self._transfer = self.world.all_gather(self._buffer, mine)

    def _wait(self) -> None:
        self._transfer.wait()
        self._transfer = Transfer()

    @staticmethod
    def _pad(x: Tensor, units: int) -> Tensor:
        """x (n, ...) -> (units, ...), zeros behind."""
        missing = units - x.size(0)
        return torch.cat((x, x.new_zeros(missing, *x.shape[1:]))) if missing else x
