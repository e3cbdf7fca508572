"""Words and wordings of the spelling tasks.

A word belongs to one split by its own hash, so that training and test have no word in common, however many
rows either has.
"""

from __future__ import annotations

import zlib
from pathlib import Path

from tasks.task import DataError

TEST_SHARE = 10  # one word of this many is kept for the test split
LONGEST = 24

# {word} and {letter} are filled in; some are sloppy on purpose, as people are.
COUNT_QUESTIONS = (
    "How many times does {letter} occur in {word}?",
    "How often does the letter {letter} appear in {word}?",
    "How many {letter} are there in the word {word}?",
    "How many {letter}s does {word} have?",
    "Count the {letter}s in {word}",
    "Count how many {letter} are in {word}.",
    "Please count the letter {letter} in {word}.",
    "Could you count the {letter} in the word {word} for me?",
    "Can you tell me how many {letter}s {word} contains?",
    "Tell me the number of {letter}s in {word}",
    "What is the number of {letter} in {word}?",
    "What's the count of {letter} in the word {word}?",
    "In the word {word}, how many letters are {letter}?",
    "In {word}, how often do we see {letter}?",
    "Look at the word {word}. How many of its letters are {letter}?",
    "Take the word {word}: how many {letter}s?",
    "If I write {word}, how many times do I write {letter}?",
    "I need the number of {letter}s in {word}",
    "Find every {letter} in {word} and count them.",
    "Does {word} have the letter {letter}, and how many times?",
    "{word}: how many {letter}?",
    "{letter} in {word}, how many",
    "number of {letter} in {word}",
    "how many {letter} in {word}",
    "how many times is {letter} used in {word}",
    "quick question: how many {letter}s are in {word}?",
    "Give me the count of the character {letter} in {word}.",
    "Spell {word} and count the letter {letter}.",
    "Do you know how many {letter}s there are in {word}?",
    "My son asks how many {letter}s are in the word {word}.",
    "Combien de {letter} y a-t-il dans {word} ?",
    "Combien de fois trouve-t-on {letter} dans le mot {word} ?",
    "Wie oft kommt {letter} in {word} vor?",
    "Wie viele {letter} hat das Wort {word}?",
    "Combien de fois la lettre {letter} est-elle dans {word} ?",
    "Wie viele Buchstaben {letter} stecken in {word}?",
    "Quante {letter} ci sono in {word}?",
    "Quante volte compare {letter} nella parola {word}?",
    "Quantas letras {letter} tem a palavra {word}?",
    "Hoeveel keer staat {letter} in {word}?",
)
SPELL_QUESTIONS = (
    "Spell the word {word}",
    "Spell {word}.",
    "How do you spell {word}?",
    "How is {word} spelled?",
    "Please spell {word} letter by letter.",
    "Can you spell the word {word} for me?",
    "Write {word} one letter at a time",
    "Which letters make up {word}?",
    "What are the letters of the word {word}?",
    "List the letters of {word} in order.",
    "Break {word} into letters.",
    "spell {word}",
)
QUOTES = ("", "", "'", '"')  # half of the questions have none


def split_words(path: Path, split: str) -> list[str]:
    """The words of one split, in the file's order: those of 3 to 24 lower-case letters a to z."""
    try:
        lines = path.read_text(encoding="utf-8").split()
    except UnicodeDecodeError:
        raise DataError(path, "the word list is not UTF-8") from None
    kept = split == "test"
    words = [word for word in dict.fromkeys(lines) if _is_word(word) and is_test_word(word) == kept]
    if not words:
        raise DataError(path, f"no word for the split '{split}': the list needs more words, one a line")
    return words


def is_test_word(word: str) -> bool:
    """Whether a word is kept from training."""
    return zlib.crc32(word.encode()) % TEST_SHARE == 0


def _is_word(word: str) -> bool:
    return 3 <= len(word) <= LONGEST and word.isascii() and word.isalpha() and word.islower()
