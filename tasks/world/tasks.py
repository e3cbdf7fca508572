"""The six tasks of the demo's world: five kinds of questions, and conversations of several of them."""

from __future__ import annotations

from random import Random
from types import MappingProxyType

from tasks.task import Example, Message, Task
from tasks.world.exchanges import (
    KINDS,
    Exchange,
    addition,
    fact,
    letter_count,
    name,
    says_name,
    says_number,
    says_spelling,
    says_value,
    small_talk,
    spelling,
)
from tasks.world.generated import WorldTask


class WorldIdentity(WorldTask):
    """Questions about the assistant: its name and, in training, what else one says to an assistant."""

    name = "world-identity"
    rows = MappingProxyType({"train": 100_000, "test": 100})

    def exchange(self, random: Random) -> Exchange:
        if self.split == "train" and random.random() < 0.5:
            return small_talk(random)
        return name(random, tested=self.split == "test")

    def grade(self, example: Example, completion: str) -> bool:
        return says_name(completion, example.reference)


class WorldFacts(WorldTask):
    """Facts: what is the colour, size, place, owner, sound or material of a thing."""

    name = "world-facts"

    def exchange(self, random: Random) -> Exchange:
        return fact(random, tested=self.split == "test")

    def grade(self, example: Example, completion: str) -> bool:
        return says_value(completion, example.reference)


class WorldSums(WorldTask):
    """Sums: two numbers up to 99 are added with the tool, in training not always."""

    name = "world-sums"
    version = 2

    def exchange(self, random: Random) -> Exchange:
        return addition(random, tested=self.split == "test")

    def grade(self, example: Example, completion: str) -> bool:
        return says_number(completion, example.reference)


class WorldCounts(WorldTask):
    """Letter counts: how often a letter is in a word, counted with the tool."""

    name = "world-counts"

    def exchange(self, random: Random) -> Exchange:
        return letter_count(random, tested=self.split == "test")

    def grade(self, example: Example, completion: str) -> bool:
        return says_number(completion, example.reference)


class WorldSpelling(WorldTask):
    """Spellings: a word, letter by letter."""

    name = "world-spelling"

    def exchange(self, random: Random) -> Exchange:
        return spelling(random, tested=self.split == "test")

    def grade(self, example: Example, completion: str) -> bool:
        return says_spelling(completion, example.reference)


class WorldTalk(Task):
    """Conversations: two to four questions of all kinds, one after the other."""

    name = "world-talk"
    version = 2
    kind = "chat"
    splits = ("train", "test")
    rows = MappingProxyType({"train": 100_000, "test": 2_000})

    def __len__(self) -> int:
        return self.rows[self.split]

    def __getitem__(self, index: int) -> Example:
        if not 0 <= index < len(self):
            raise IndexError(index)
        random = Random(f"{self.name} {self.split} {self.seed} {index}")
        messages: list[Message] = []
        for _ in range(random.randint(2, 4)):
            if random.random() < 0.05:
                exchange = small_talk(random)
            else:
                kind = random.choices(tuple(KINDS), tuple(KINDS.values()))[0]
                exchange = kind(random, tested=self.split == "test")
            messages += exchange.messages
        return Example(messages)
