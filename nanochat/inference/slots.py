"""The slots of the key-value cache: who sits where, and which prompts can be shared.

A slot remembers the prompt whose keys and values it holds, also after its request is gone. A new request
takes them over: all of them where the prompts are equal (several samples of one prompt), else the common
beginning in whole chunks. Because a prompt is always computed in the same chunks, what is taken over is bit
for bit what would have been computed. Where layers have short windows a slot forgets: it serves a beginning only until
it has gone on by `reach` tokens.
"""

from __future__ import annotations

from dataclasses import dataclass

from nanochat.inference.request import Request
from nanochat.model.cache import CHUNK  # tokens of a prompt that are computed between two decode steps


@dataclass(slots=True)
class Slot:
    """One row of the cache and of the decode step."""

    index: int
    request: Request | None = None
    prompt: tuple[int, ...] = ()  # what the cache holds, or is going to hold, from position 0
    filled: int = 0  # how many of its tokens are there
    written: int = 0  # positions that were computed, the reply's included
    released: int = 0  # when its last request went; the longest free is taken first

    @property
    def ready(self) -> bool:
        """Whether the whole prompt is there, so that the next token can be chosen."""
        return self.filled == len(self.prompt)


def shared(slot: Slot, prompt: tuple[int, ...], reach: float) -> int:
    """How many tokens of `prompt` the slot's keys and values can serve."""
    if slot.ready and slot.prompt == prompt and slot.written - len(prompt) <= reach:
        return len(prompt)
    # The last token is always computed: its logits choose the first token of the reply.
    most = min(slot.filled, len(prompt) - 1) // CHUNK * CHUNK
    while most and slot.prompt[:most] != prompt[:most]:
        most -= CHUNK
    return most if slot.written - most <= reach else 0


def choose(slots: list[Slot], prompt: tuple[int, ...], reach: float) -> tuple[Slot, Slot, int] | None:
    """(the free slot to take, the slot to copy from, how many tokens), or None where no slot is free."""
    free = [slot for slot in slots if slot.request is None]
    if not free:
        return None
    source = max(slots, key=lambda slot: (shared(slot, prompt, reach), slot.request is None))
    length = shared(source, prompt, reach)
    if length and source.request is None:
        return source, source, length
    return min(free, key=lambda slot: slot.released), source, length
