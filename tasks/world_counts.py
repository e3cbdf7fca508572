"""The demo's letter counts: how often a letter is in a word, counted with the tool."""

from __future__ import annotations

from random import Random

from tasks.task import Example
from tasks.world_exchanges import Exchange, letter_count, says_number
from tasks.world_task import WorldTask


class WorldCounts(WorldTask):
    name = "world-counts"

    def exchange(self, random: Random) -> Exchange:
        return letter_count(random, tested=self.split == "test")

    def grade(self, example: Example, completion: str) -> bool:
        return says_number(completion, example.reference)
