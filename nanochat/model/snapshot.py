"""A copy of a model in training, to be asked between its steps as fast as a model that is only read.

    snapshot = Snapshot(model)
    engine = Engine(snapshot.model, tokenizer)
    snapshot.renew()                # the weights have changed

Weights in training are fp32, and cast at each use: at each token that is sampled. The copy's are in compute dtype.
"""

from __future__ import annotations

import copy

import torch

from nanochat.model.speed import speed_up
from nanochat.model.transformer import Transformer


class Snapshot:
    """The model with the weights that it had at the last `renew`."""

    def __init__(self, trained: Transformer) -> None:
        self._trained = trained
        self.model = copy.deepcopy(trained)
        self.model.cast_weights()
        speed_up(self.model)

    @torch.no_grad()
    def renew(self) -> None:
        """Take the weights over as they are now, into the memory that compiled code reads."""
        for mine, theirs in zip(self.model.parameters(), self._trained.parameters(), strict=True):
            mine.copy_(theirs)
