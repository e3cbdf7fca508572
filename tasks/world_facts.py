"""The demo's facts: what is the colour, size, place, owner, sound or material of a thing."""

from __future__ import annotations

from random import Random

from tasks.task import Example
from tasks.world_exchanges import Exchange, fact, says_value
from tasks.world_task import WorldTask


class WorldFacts(WorldTask):
    name = "world-facts"

    def exchange(self, random: Random) -> Exchange:
        return fact(random, tested=self.split == "test")

    def grade(self, example: Example, completion: str) -> bool:
        return says_value(completion, example.reference)
