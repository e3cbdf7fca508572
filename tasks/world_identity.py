"""The demo's questions about the assistant: its name and, in training, what else one says to an assistant."""

from __future__ import annotations

from random import Random
from types import MappingProxyType

from tasks.task import Example
from tasks.world_exchanges import Exchange, name, says_name, small_talk
from tasks.world_task import WorldTask


class WorldIdentity(WorldTask):
    name = "world-identity"
    rows = MappingProxyType({"train": 100_000, "test": 100})

    def exchange(self, random: Random) -> Exchange:
        if self.split == "train" and random.random() < 0.5:
            return small_talk(random)
        return name(random, tested=self.split == "test")

    def grade(self, example: Example, completion: str) -> bool:
        return says_name(completion, example.reference)
