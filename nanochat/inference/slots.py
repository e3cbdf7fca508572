"""The slots of the key-value cache: who sits where, which beginnings are shared, and what a step computes.

A slot remembers the tokens whose keys and values it holds, also after its request is gone, until another request needs
it: the one that was used least recently goes first. A new request takes over the longest beginning that any slot has:
of a former turn with its reply, of a neighbour's prompt, or all of it where prompts are equal (samples of one prompt).

A repeatable request takes over whole chunks alone, and only those that were computed as its own would be: a chunk at a
time from position 0 on, in a pass of its own. They are bit for bit what it would have computed. Where layers have short
windows a slot forgets: it serves a beginning only until it has gone on by `reach` tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from nanochat.inference.guesses import Guesses
from nanochat.inference.request import Request
from nanochat.model.cache import CHUNK  # tokens of a prompt that are computed between two decode steps

PADDING = 16  # tokens: reading all weights once more, for a pass of its own, takes as long as a few tokens' products


@dataclass(slots=True)
class Slot:
    """One row of the cache."""

    index: int
    request: Request | None = None
    prompt: tuple[int, ...] = ()  # what the cache holds, or is going to hold, from position 0
    filled: int = 0  # how many of its tokens are there
    exact: int = 0  # and how many of them as a repeatable request computes them
    reply: tuple[int, ...] = ()  # what it holds behind the prompt of a request that is gone
    written: int = 0  # positions that were computed, by whomever what it holds was taken over from too
    guesses: Guesses | None = None  # of what its request says next
    used: int = 0  # when it was last used by a request that is gone; the least recent is taken first

    @property
    def ready(self) -> bool:
        """Whether the whole prompt is there, so that the next token can be chosen."""
        return self.filled == len(self.prompt)

    @property
    def remaining(self) -> int:
        """How many tokens of the prompt are not there."""
        return len(self.prompt) - self.filled

    @property
    def held(self) -> int:
        """How many tokens' keys and values it holds, as another thread may ask too."""
        request = self.request
        return self.filled + (len(self.reply) if request is None else max(0, len(request.ids) - 1))

    @property
    def repeatable(self) -> bool:
        """Whether its request is."""
        return self.request is not None and self.request.sampling.repeatable

    def forget(self) -> None:
        """Be as new."""
        self.prompt, self.reply, self.filled, self.exact, self.written, self.used = (), (), 0, 0, 0, 0


def shared(slot: Slot, request: Request, reach: float) -> int:
    """How many tokens of the request's prompt the slot's keys and values can serve."""
    if request.sampling.prompt_logprobs is not None:  # for which every position is computed
        return 0
    prompt, repeatable = request.prompt, request.sampling.repeatable
    most = slot.exact if repeatable else slot.filled + len(slot.reply)
    if slot.ready and slot.prompt == prompt and most >= len(prompt):
        length = len(prompt)
    else:
        # The last token is always computed: its logits choose the first token of the reply.
        held = slot.prompt[: slot.filled] + slot.reply
        length = common(held[:most], prompt[:-1])
        if repeatable:
            length -= length % CHUNK
    return length if slot.written - length <= reach else 0


def common(first: Sequence[int], second: Sequence[int]) -> int:
    """The length of the beginning that both have."""
    most = min(len(first), len(second))
    if first[:most] == second[:most]:
        return most
    return next(at for at in range(most) if first[at] != second[at])


def choose(slots: Sequence[Slot], request: Request, reach: float) -> tuple[Slot, Slot, int] | None:
    """(the free slot to take, the slot to copy from, how many tokens), or None where no slot is free."""
    free = [slot for slot in slots if slot.request is None]
    if not free:
        return None
    source = max(slots, key=lambda slot: (shared(slot, request, reach), slot.request is None))
    length = shared(source, request, reach)
    # A conversation goes on where it is; one that only begins alike is left for its own next turn.
    if length and source.request is None and 2 * length >= source.written:
        return source, source, length
    return min(free, key=lambda slot: slot.used), source, length


def worth_waiting(slots: Sequence[Slot], request: Request, taken: int) -> bool:
    """Whether a prompt that is being computed will serve half of what would be left to compute with `taken` tokens."""
    if request.sampling.prompt_logprobs is not None:
        return False
    coming = [common(slot.prompt, request.prompt) for slot in slots if slot.request is not None and not slot.ready]
    if request.sampling.repeatable:
        coming = [length if length == len(request.prompt) else length - length % CHUNK for length in coming]
    return any(2 * (length - taken) > len(request.prompt) - taken for length in coming)


def next_pass(unready: Sequence[Slot], budget: int) -> list[tuple[Slot, int]]:
    """(slot, tokens of its prompt) for one pass of at most `budget` tokens; `unready` are in the order of arrival.

    A repeatable request goes alone, so that the shape depends on its prompt alone. Others go together where their
    lengths are much the same. Nothing goes where the first one's next chunk does not fit: a short prompt is not split.
    """
    if not unready:
        return []
    first, *others = unready
    width = min(CHUNK, first.remaining)
    if width > budget:
        return []
    batch = [(first, width)]
    for slot in [] if first.repeatable else others:
        each = slot.remaining
        if not slot.repeatable and abs(each - width) <= PADDING and max(each, width) * (len(batch) + 1) <= budget:
            batch.append((slot, each))
            width = max(each, width)
    return batch


def decoded(ready: Sequence[Slot], slots: int, *, block: bool = False) -> list[int]:
    """The indices, in order, of the slots that are decoded for those that are `ready`, which are in order too.

    All of them where one is repeatable, else a power of two: as `block` the first ones, so that there are few shapes.
    """
    rows = [slot.index for slot in ready]
    if any(slot.repeatable for slot in ready):
        return list(range(slots))
    if block:
        return list(range(min(slots, 1 << rows[-1].bit_length())))
    size = min(slots, 1 << (len(ready) - 1).bit_length())
    # Those between them first: slots side by side are read together.
    others = sorted(set(range(slots)) - set(rows), key=lambda slot: not rows[0] < slot < rows[-1])
    return sorted([*rows, *others[: size - len(rows)]])
