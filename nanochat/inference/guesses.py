"""Speculative decoding by look-up: what followed the same tokens before is computed ahead, and kept where it was right.

    guesses = Guesses(prompt, most=8)
    logits = guesses.after(token)         # those of the next token, where this one was guessed; else None
    tokens = guesses.next(room)           # what is likely to follow; compute them with the newest token in one pass
    guesses.computed(tokens, logits)      # (n, V): those after each of them

It pays where an answer repeats what was said: spelling, quoting. Which token comes next is chosen as ever, one at a
time and by the model's own logits, so nothing but the time depends on the guesses.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence

from torch import Tensor

SIZES = (3, 2)  # tokens that have to be the same as before, the first that were seen before count


class Guesses:
    """The guesses for one request, `most` at a time."""

    def __init__(self, prompt: Sequence[int], most: int) -> None:
        self._most = most
        self._said: list[int] = []
        self._followed: dict[tuple[int, ...], int] = {}  # where what followed such tokens the last time stands
        self._ahead: deque[tuple[int, Tensor]] = deque()
        for token in prompt:
            self._add(token)

    def after(self, token: int) -> Tensor | None:
        """The logits (V,) after `token`, which was chosen now, where it was guessed; else all guesses are void."""
        self._add(token)
        if self._ahead:
            guessed, logits = self._ahead.popleft()
            if guessed == token:
                return logits
            self._ahead.clear()
        return None

    def next(self, room: int) -> list[int]:
        """Tokens that may follow, at most so many; none where there is nothing to go by."""
        for size in SIZES:
            at = self._followed.get(tuple(self._said[-size:]))
            if at is not None:
                again = self._said[at:]  # which goes round where it is shorter than what is wanted
                return [again[index % len(again)] for index in range(min(room, self._most))]
        return []

    def computed(self, tokens: Sequence[int], logits: Tensor) -> None:
        """Keep the logits (n, V) after each of the guessed tokens (n,)."""
        self._ahead = deque(zip(tokens, logits, strict=True))

    def _add(self, token: int) -> None:
        at = len(self._said)
        for size in SIZES:
            if at >= size:
                self._followed[tuple(self._said[-size:])] = at
        self._said.append(token)
