"""The demo's sums: two numbers up to 99 are added with the tool."""

from __future__ import annotations

from random import Random

from tasks.task import Example
from tasks.world_exchanges import Exchange, addition, says_number
from tasks.world_task import WorldTask


class WorldSums(WorldTask):
    name = "world-sums"

    def exchange(self, random: Random) -> Exchange:
        return addition(random, tested=self.split == "test")

    def grade(self, example: Example, completion: str) -> bool:
        return says_number(completion, example.reference)
