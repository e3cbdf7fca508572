"""Made-up tokens, lengths and texts, the same each time. Few tokens are frequent and most are rare, as in language."""

from __future__ import annotations

import math

import numpy as np

SEED = 42
WORDS = 5000  # that texts are made of
DOCUMENTS, DOCUMENT_WORDS = 2000, 300
LETTERS = "eeeeaaaoooiiuutttnnnsssrrrhhlldcmpbgfwyvk"


def zipf(count: int, size: int, seed: int, *, first: int = 0) -> np.ndarray:
    """(count,) numbers from `first` to `size - 1` by Zipf's law."""
    weights = np.cumsum(1 / np.arange(1, size - first + 1))
    return first + np.searchsorted(weights, np.random.default_rng(seed).random(count) * weights[-1])


def lengths(count: int, longest: int) -> list[int]:
    """So many lengths up to the longest, short ones as often as long ones on a scale of doublings."""
    least = max(4, longest // 16)
    return np.exp(np.random.default_rng(SEED).uniform(math.log(least), math.log(longest), count)).astype(int).tolist()


def texts() -> list[str]:
    """Documents of words."""
    draw = np.random.default_rng(SEED)
    letters = list(LETTERS)
    words = np.array(["".join(draw.choice(letters, length)) for length in draw.integers(2, 10, WORDS)])
    return [" ".join(words[zipf(DOCUMENT_WORDS, WORDS, number)]) for number in range(DOCUMENTS)]
