"""Base of the demo's tasks: generated rows, each from a random stream of its own."""

from __future__ import annotations

from abc import abstractmethod
from functools import cached_property
from itertools import count
from random import Random
from types import MappingProxyType
from typing import ClassVar

from tasks.task import Example, Task
from tasks.world.exchanges import Exchange


class WorldTask(Task):
    """One kind of question. The test split's wordings, numbers and words are such as training never has."""

    kind = "generative"
    splits = ("train", "test")
    rows: ClassVar[MappingProxyType[str, int]] = MappingProxyType({"train": 100_000, "test": 500})

    @abstractmethod
    def exchange(self, random: Random) -> Exchange:
        """A question and its answer, for this split."""

    def __len__(self) -> int:
        return self.rows[self.split]

    def __getitem__(self, index: int) -> Example:
        if not 0 <= index < len(self):
            raise IndexError(index)
        exchange = self._tests[index] if self.split == "test" else self._exchange(index)
        return Example(exchange.messages, reference=exchange.reference)

    def _exchange(self, index: int) -> Exchange:
        return self.exchange(Random(f"{self.name} {self.split} {self.seed} {index}"))

    @cached_property
    def _tests(self) -> list[Exchange]:
        """Questions that are all different."""
        found: dict[str, Exchange] = {}
        for index in count():
            if len(found) == len(self):
                break
            exchange = self._exchange(index)
            found.setdefault(exchange.question, exchange)
        return list(found.values())
