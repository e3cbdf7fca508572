"""Example questions of a model, for its card and the chat page: short ones that it was trained to answer.

questions = example_questions(mixture, tokenizer.decode)     # ["What is your name?", ...]
questions = read_questions(config)                           # of an artifact's config.json, within bounds
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from itertools import chain, zip_longest
from typing import Any

from nanochat.data.mixture import Mixture, Part

FIELD = "questions"  # of config.json, and of the manifest's metadata
MOST = 6
LONGEST = 80  # characters
TRIED = 100  # conversations of each part of a mixture


def example_questions(mixture: Mixture, decode: Callable[[list[int]], str]) -> list[str]:
    """The first questions of the first conversations, one of each part in turn: the same for the same mixture."""
    columns = [_questions(part, decode) for part in mixture.parts]
    rows = chain.from_iterable(zip_longest(*columns))
    return list(dict.fromkeys(question for question in rows if question))[:MOST]


def read_questions(values: Mapping[str, Any]) -> tuple[str, ...]:
    """The questions that a document has; what is no short text is left out."""
    found = values.get(FIELD)
    return tuple(each for each in found[:MOST] if _is_short(each)) if isinstance(found, list) else ()


def _questions(part: Part, decode: Callable[[list[int]], str]) -> Iterator[str]:
    special = part.file.special
    for row in range(min(TRIED, len(part.file), part.rows or TRIED)):
        ids = part.file.row(row)[0][: LONGEST + 3].tolist()  # what has more tokens than that is seldom short
        if ids[1:2] == [special["user_start"]] and special["user_end"] in ids:
            question = decode(ids[2 : ids.index(special["user_end"])])
            if _is_short(question):
                yield question


def _is_short(question: object) -> bool:
    """Whether it is a text of one line, as short as a button's."""
    return isinstance(question, str) and 0 < len(question.strip()) <= LONGEST and question.isprintable()
