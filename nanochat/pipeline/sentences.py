"""Sentences that people meet in a status, an Event or an outcome: each is written once, with a reason for programs.

class Wait(Sentence):
    NODE = "Unschedulable", "cannot be scheduled: {why}"

said = Wait.NODE.of(why="0/3 nodes are available")      # said.reason, said.message
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

LONGEST = 500  # characters of a value in a sentence


@dataclass(frozen=True, slots=True)
class Said:
    """A sentence about one case, and its reason: a CamelCase word that never changes."""

    reason: str
    message: str


class Sentence(Enum):
    """A table of sentences, an enumeration of (reason, text); the text has places in braces for what is known."""

    reason: str
    text: str

    def __init__(self, reason: str, text: str) -> None:
        self.reason, self.text = reason, text

    def of(self, **values: object) -> Said:
        """The sentence with these values in its places."""
        return Said(self.reason, self.text.format(**{name: str(value)[:LONGEST] for name, value in values.items()}))
