"""Spelling: count a letter in a word (spelling-bee), and spell a word (simple-spelling).

Rows are generated from a list of words. The answer of spelling-bee spells the word out, counts by hand,
checks the count with the tool and ends with '#### n'. Splits differ in their words and in their random streams.
"""

from __future__ import annotations

from functools import cached_property
from random import Random
from types import MappingProxyType
from typing import ClassVar

from tasks import parts
from tasks.spelling_words import COUNT_QUESTIONS, QUOTES, SPELL_QUESTIONS, split_words
from tasks.task import Example, SourceFile, Task

_FILES = MappingProxyType({split: (SourceFile("words"),) for split in ("train", "test")})


class _Spelling(Task):
    splits = ("train", "test")
    files = _FILES
    rows: ClassVar[MappingProxyType[str, int]]

    def __len__(self) -> int:
        return self.rows[self.split]

    @cached_property
    def _words(self) -> list[str]:
        return split_words(self.paths()[0], self.split)

    def _random(self, index: int) -> Random:
        """The stream of one row; seeded by text, for integers seed by their absolute value."""
        if not 0 <= index < len(self):
            raise IndexError(index)
        return Random(f"{self.name} {self.split} {self.seed} {index}")


class SpellingBee(_Spelling):
    name = "spelling-bee"
    kind = "generative"
    version = 2
    rows = MappingProxyType({"train": 80_000, "test": 2_000})

    def __getitem__(self, index: int) -> Example:
        random = self._random(index)
        word = random.choice(self._words)
        # Mostly a letter of the word, now and then one that it may not have.
        letter = random.choice(word if random.random() < 0.9 else "abcdefghijklmnopqrstuvwxyz")
        messages = [
            {"role": "user", "content": count_question(random, word, letter)},
            {"role": "assistant", "content": count_answer(word, letter)},
        ]
        return Example(messages, reference=str(word.count(letter)))

    def grade(self, example: Example, completion: str) -> bool:
        return parts.final_number(completion) == example.reference

    def lenient(self, example: Example, completion: str) -> bool:
        return parts.same_number(completion, example.reference)


class SimpleSpelling(_Spelling):
    name = "simple-spelling"
    kind = "generative"
    version = 2
    rows = MappingProxyType({"train": 200_000, "test": 2_000})

    def __getitem__(self, index: int) -> Example:
        random = self._random(index)
        word = random.choice(self._words)
        quote = random.choice(QUOTES)
        question = random.choice(SPELL_QUESTIONS).format(word=f"{quote}{word}{quote}")
        answer = spelled(word)
        messages = [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
        return Example(messages, reference=answer)

    def grade(self, example: Example, completion: str) -> bool:
        return completion.strip() == example.reference


def spelled(word: str) -> str:
    """'word:w,o,r,d': the commas keep letters from merging into longer tokens.

    No space comes before a letter, here and where letters are counted: a letter with a space is another token.
    """
    return f"{word}:{','.join(word)}"


def count_question(random: Random, word: str, letter: str) -> str:
    """One of the wordings, with or without quotes, sometimes in lower case or without its final mark."""
    quote, letter_quote = random.choice(QUOTES), random.choice(QUOTES)
    wording = random.choice(COUNT_QUESTIONS)
    if random.random() < 0.3:
        wording = wording.lower()
    if random.random() < 0.3:
        wording = wording.rstrip("?. ")
    return wording.format(word=f"{quote}{word}{quote}", letter=f"{letter_quote}{letter}{letter_quote}")


def count_answer(word: str, letter: str) -> list[parts.Part]:
    """Spell, count by hand, check with the tool, and say the number."""
    lines = [f"Let me spell it first.\n{spelled(word)}\n\nNow I look for '{letter}'."]
    count = 0
    for position, each in enumerate(word, start=1):
        if each == letter:
            count += 1
            lines.append(f"{position}:{each} - that makes {count}")
        else:
            lines.append(f"{position}:{each}")
    by_hand = "\n".join(lines)
    return [
        parts.text(f"{by_hand}\n\nBy hand I count {count}. I check it with Python.\n\n"),
        *parts.call(f"'{word}'.count('{letter}')", str(count)),
        parts.text(f"\n\nPython says {count}, so that is the answer.\n\n#### {count}"),
    ]
