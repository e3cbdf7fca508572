"""A stand-in for a model in an engine of one slot: what it says follows from what it has heard.

class Parrot(TalkingModel):
    def answer(self, heard): ...      # the answer's tokens

engine = Engine(Parrot(tokenizer, context=512), tokenizer, slots=1)
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

import torch
from torch import Tensor

from nanochat.model.cache import KVCache
from nanochat.model.sizes import ModelConfig
from nanochat.model.transformer import Transformer
from nanochat.tokenizer import Tokenizer


class TalkingModel(ABC):
    """All that the engine asks of a model."""

    def __init__(self, tokenizer: Tokenizer, *, context: int) -> None:
        self.config = ModelConfig(
            depth=1, width=8, heads=1, kv_heads=1, sequence_length=context, vocab_size=tokenizer.vocab_size
        )
        self.device = torch.device("cpu")
        self.compute_dtype = torch.float32
        self.native = self.graphs = None
        self.tokenizer = tokenizer
        self._heard: list[int] = []  # the tokens of the engine's only slot

    @abstractmethod
    def answer(self, heard: list[int]) -> list[int]:
        """The tokens that are said after these, which end before the assistant's turn."""

    def logits(self, hidden: Tensor) -> Tensor:
        return hidden

    decode = Transformer.decode

    def extend(
        self, ids: Tensor, *, start: Tensor, slots: Sequence[int], cache: KVCache, lengths: Tensor | None = None
    ) -> Tensor:
        """What `logits` returns as it is."""
        self._heard[int(start[0]) :] = ids[0].tolist()
        logits = torch.zeros(*ids.shape, self.config.vocab_size)
        logits[0, -1, self._next()] = 1000.0
        return logits

    def _next(self) -> int:
        special, heard = self.tokenizer.special, self._heard
        if special["assistant_start"] not in heard:  # a long prompt comes in chunks
            return special["assistant_end"]
        begin = len(heard) - 1 - heard[::-1].index(special["assistant_start"])
        script, said = self.answer(heard[:begin]), len(heard) - begin - 1
        return script[said] if said < len(script) else special["assistant_end"]

    def calculation(self) -> list[int]:
        """An answer that calls the tool."""
        encode, special = self.tokenizer.encode, self.tokenizer.special
        call = [special["python_start"], *encode("6*7"), special["python_end"]]
        output = [special["output_start"], *encode("42"), special["output_end"]]
        return [*encode("It is "), *call, *output, *encode("42.")]
