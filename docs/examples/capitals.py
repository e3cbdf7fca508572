"""Capitals: a task of one's own, for mixtures, RL and the chat evaluation. Its rows are made here, from no file."""

from __future__ import annotations

from random import Random

from tasks.task import Example, Task

CAPITALS = {"France": "Paris", "Japan": "Tokyo", "Kenya": "Nairobi", "Peru": "Lima", "Norway": "Oslo", "Egypt": "Cairo"}
TESTED = ("Norway", "Egypt")


class Capitals(Task):
    name = "capitals"
    kind = "generative"
    splits = ("train", "test")

    def __len__(self) -> int:
        return len(self._countries)

    def __getitem__(self, index: int) -> Example:
        country = self._countries[index]
        capital = CAPITALS[country]
        messages = [
            {"role": "user", "content": f"What is the capital of {country}?"},
            {"role": "assistant", "content": f"The capital of {country} is {capital}."},
        ]
        return Example(messages, reference=capital)

    def grade(self, example: Example, completion: str) -> bool:
        return str(example.reference) in completion

    @property
    def _countries(self) -> list[str]:
        """Those of this split, in an order that depends on the seed alone."""
        found = [country for country in CAPITALS if (country in TESTED) == (self.split == "test")]
        Random(self.seed).shuffle(found)
        return found
