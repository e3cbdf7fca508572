"""The demo's spellings: a word, letter by letter."""

from __future__ import annotations

from random import Random

from tasks.task import Example
from tasks.world_exchanges import Exchange, says_spelling, spelling
from tasks.world_task import WorldTask


class WorldSpelling(WorldTask):
    name = "world-spelling"

    def exchange(self, random: Random) -> Exchange:
        return spelling(random, tested=self.split == "test")

    def grade(self, example: Example, completion: str) -> bool:
        return says_spelling(completion, example.reference)
