"""The demo's conversations: two to four questions of all kinds, one after the other."""

from __future__ import annotations

from random import Random
from types import MappingProxyType

from tasks.task import Example, Message, Task
from tasks.world_exchanges import KINDS, small_talk


class WorldTalk(Task):
    name = "world-talk"
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
