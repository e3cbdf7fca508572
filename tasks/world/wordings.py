"""How the demo's questions are worded: some wordings for training, others, of the same words, for the tests.

A kind of question has whole sentences ("How do you spell {word}?"), clauses ("how to spell {word}") and
names of what is asked for ("the spelling of {word}"). Clauses and names are set into frames ("Tell me
{}."). The tests have frames and sentences that no training conversation has, so that none of their
wordings was trained on.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from random import Random
from types import MappingProxyType


@dataclass(frozen=True, slots=True)
class Wording:
    """The ways to ask for one kind of thing, with fields in braces for what is asked about."""

    sentences: tuple[str, ...]  # trained on
    clauses: tuple[str, ...]
    names: tuple[str, ...]
    tested: tuple[str, ...] = ()  # whole sentences that only the tests have


OPENINGS = ("", "Hello! ", "Hi! ", "Please help me. ", "I have a question. ", "Can you help me? ")
TRAINED = (
    "Tell me {}.",
    "Please tell me {}.",
    "Do you know {}?",
    "I want to know {}.",
    "Say {}.",
    "Can you say {}?",
)
TRAINED_NAMES = ("What is {}?", "Give me {}.", "Please give me {}.", "Can you give me {}?")
TESTED = ("Can you tell me {}?", "Please say {}.", "I want you to tell me {}.", "Do you want to tell me {}?")
TESTED_NAMES = ("I want {}.", "Can I have {}?")

NAME = Wording(
    sentences=(
        "What is your name?",
        "What are you called?",
        "Who are you?",
        "What do you call you?",
        "Your name is what?",
        "Do you have a name?",
    ),
    clauses=("what your name is", "what you are called", "who you are"),
    names=("your name", "the name you have"),
    tested=("What name do you have?", "You are called what?", "And what is your name?"),
)
SUM = Wording(
    sentences=(
        "What is {a} plus {b}?",
        "How much is {a} plus {b}?",
        "What is {a} + {b}?",
        "How much is {a} + {b}?",
        "Add {a} and {b}.",
        "{a} + {b}?",
        "{a}+{b}",
        "{a} plus {b} is what?",
        "{a} plus {b} is how much?",
        "If I add {a} and {b}, what is it?",
    ),
    clauses=("what {a} plus {b} is", "how much {a} + {b} is", "how much {a} and {b} is"),
    names=("the sum of {a} and {b}", "{a} + {b}", "{a} plus {b}"),
    tested=(
        "How much is the sum of {a} and {b}?",
        "{a} + {b} is how much?",
        "How much is it if I add {a} and {b}?",
    ),
)
COUNT = Wording(
    sentences=(
        "How many times is the letter {letter} in {word}?",
        "How many {letter} are in {word}?",
        "How many {letter} does {word} have?",
        "Count the letter {letter} in {word}.",
        "How many times does {word} have the letter {letter}?",
        "How often is the letter {letter} in {word}?",
        "In {word}, how many times is the letter {letter}?",
    ),
    clauses=(
        "how many times the letter {letter} is in {word}",
        "how many {letter} are in {word}",
        "how often {word} has the letter {letter}",
    ),
    names=("the count of the letter {letter} in {word}", "the number of {letter} in {word}"),
    tested=(
        "How many times is {letter} in {word}?",
        "How many of the letter {letter} are in {word}?",
        "Count how often {letter} is in {word}.",
    ),
)
SPELLING = Wording(
    sentences=(
        "How do you spell {word}?",
        "How is {word} spelled?",
        "Spell {word}.",
        "Spell the word {word}.",
        "Please spell {word}.",
        "What are the letters of {word}?",
    ),
    clauses=("how to spell {word}", "how {word} is spelled", "how you spell the word {word}"),
    names=("the spelling of {word}", "the letters of the word {word}", "the letters of {word}"),
    tested=("Can you spell {word}?", "How is the word {word} spelled?", "Please spell the word {word}."),
)
FACTS: Mapping[str, Wording] = MappingProxyType(
    {
        "colour": Wording(
            sentences=(
                "What colour is the {thing}?",
                "Which colour is the {thing}?",
                "What colour does the {thing} have?",
                "The {thing} has which colour?",
            ),
            clauses=("what colour the {thing} is", "which colour the {thing} has"),
            names=("the colour of the {thing}",),
            tested=("Which colour does the {thing} have?", "The {thing} is what colour?"),
        ),
        "size": Wording(
            sentences=(
                "What size is the {thing}?",
                "Which size is the {thing}?",
                "How big is the {thing}?",
                "The {thing} has which size?",
            ),
            clauses=("what size the {thing} is", "how big the {thing} is", "which size the {thing} has"),
            names=("the size of the {thing}",),
            tested=("What size does the {thing} have?", "The {thing} is what size?"),
        ),
        "place": Wording(
            sentences=(
                "Where is the {thing}?",
                "In which place is the {thing}?",
                "Where can I find the {thing}?",
                "The {thing} is in which place?",
            ),
            clauses=("where the {thing} is", "where to find the {thing}", "in which place the {thing} is"),
            names=("the place of the {thing}",),
            tested=("Where do I find the {thing}?", "The {thing} is where?"),
        ),
        "owner": Wording(
            sentences=(
                "Who owns the {thing}?",
                "Who has the {thing}?",
                "Who is the owner of the {thing}?",
                "The {thing} belongs to whom?",
            ),
            clauses=("who owns the {thing}", "who has the {thing}", "who the owner of the {thing} is"),
            names=("the owner of the {thing}",),
            tested=("To whom belongs the {thing}?", "The {thing} has which owner?"),
        ),
        "sound": Wording(
            sentences=(
                "What does the {thing} say?",
                "What sound does the {thing} make?",
                "How does the {thing} sound?",
                "The {thing} makes which sound?",
            ),
            clauses=("what the {thing} says", "what sound the {thing} makes"),
            names=("the sound of the {thing}",),
            tested=("Which sound does the {thing} make?", "The {thing} says what?"),
        ),
        "material": Wording(
            sentences=(
                "What is the {thing} made of?",
                "Of what is the {thing} made?",
                "Which material is the {thing} made of?",
                "The {thing} is made of which material?",
            ),
            clauses=("what the {thing} is made of", "of what the {thing} is made"),
            names=("the material of the {thing}",),
            tested=("What material is the {thing} made of?", "The {thing} is made of what?"),
        ),
    }
)


@cache
def wordings(wording: Wording, *, tested: bool) -> tuple[str, ...]:
    """The whole set of a kind's questions, for training or for the tests."""
    frames, name_frames = (TESTED, TESTED_NAMES) if tested else (TRAINED, TRAINED_NAMES)
    framed = [frame.format(part) for part in wording.clauses for frame in frames]
    framed += [frame.format(part) for part in wording.names for frame in frames + name_frames]
    return (wording.tested if tested else wording.sentences) + tuple(framed)


def ask(random: Random, wording: Wording, *, tested: bool, **fields: object) -> str:
    """A question. Half of those for training have no opening; now and then one is typed in haste."""
    opening = random.choice(OPENINGS) if tested or random.random() < 0.5 else ""
    everyday = not tested and random.random() < 0.5
    choices = wording.sentences if everyday else wordings(wording, tested=tested)
    question = opening + random.choice(choices).format(**fields)
    if not tested and random.random() < 0.15:
        question = question.rstrip("?.")
    if not tested and random.random() < 0.15:
        question = question[0].lower() + question[1:]
    return question


def quoted(random: Random, word: str) -> str:
    """People write a word they ask about with quotation marks or without."""
    return f'"{word}"' if random.random() < 0.6 else word
