"""Exchanges of one question and one answer about the small world, and what a right answer has to say.

Each function makes one from a random stream. With `tested` its wording, numbers and words are such as
training never has.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from random import Random
from types import MappingProxyType

from tasks import parts
from tasks.task import Message
from tasks.world import things
from tasks.world.wordings import COUNT, FACTS, NAME, SPELLING, SUM, ask, quoted


@dataclass(frozen=True, slots=True)
class Exchange:
    """A question, the answer that is trained on, and the name, value, number or letters in it."""

    question: str
    answer: str | list[parts.Part]
    reference: str

    @property
    def messages(self) -> list[Message]:
        return [{"role": "user", "content": self.question}, {"role": "assistant", "content": self.answer}]


def name(random: Random, *, tested: bool) -> Exchange:
    return Exchange(ask(random, NAME, tested=tested), f"My name is {things.NAME}.", things.NAME)


SMALL_TALK: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        f"Hello! I am {things.NAME}.": ("Hello!", "Hi!", "Hello there.", f"Hello {things.NAME}!", "Good day!"),
        f"I am {things.NAME}, a small chat model that was made on a computer with nanochat.": (
            "What are you?", "Who made you?", "Where do you come from?", "Tell me about you.",
        ),
        "I can tell you about my small world, add numbers, count letters and spell words.": (
            "What can you do?", "What do you know?", "Can you help me?", "What can I ask you?",
        ),
        "You are welcome.": ("Thank you.", "Thanks!", "Thank you!", "Well done!"),
        "Goodbye!": ("Goodbye!", "Bye!", "See you!", "Good night!"),
    }
)  # fmt: skip


def small_talk(random: Random) -> Exchange:
    answer = random.choice(tuple(SMALL_TALK))
    return Exchange(random.choice(SMALL_TALK[answer]), answer, answer)


def fact(random: Random, *, tested: bool) -> Exchange:
    chosen = random.choice(things.facts())
    question = ask(random, FACTS[chosen.kind], tested=tested, thing=chosen.thing)
    return Exchange(question, chosen.statement, chosen.value)


IN_THE_HEAD = 0.6  # of the sums that are asked in words


def addition(random: Random, *, tested: bool) -> Exchange:
    """A sum. In training many that are asked in words are answered without the tool, as people add in their heads.

    Those answers are right; a small model that answers so is mostly wrong, and only rewards tell it that the tool pays.
    """
    a, b = things.any_pair(random, held_out=tested)
    question, said = ask(random, SUM, tested=tested, a=a, b=b), f"{a} plus {b} is {a + b}."
    if not tested and "+" not in question and random.random() < IN_THE_HEAD:
        return Exchange(question, said, str(a + b))
    return Exchange(question, [*parts.call(f"{a}+{b}", str(a + b)), parts.text(said)], str(a + b))


def letter_count(random: Random, *, tested: bool) -> Exchange:
    word = things.any_word(random, held_out=tested)
    letter = things.any_letter(random, word)
    count = word.count(letter)
    asked = {"word": quoted(random, word), "letter": f'"{letter}"' if random.random() < 0.6 else letter}
    sentence = f'The letter {letter} is in "{word}" {count} {"time" if count == 1 else "times"}.'
    answer = [*parts.call(f'"{word}".count("{letter}")', str(count)), parts.text(sentence)]
    return Exchange(ask(random, COUNT, tested=tested, **asked), answer, str(count))


def spelling(random: Random, *, tested: bool) -> Exchange:
    word = things.any_word(random, held_out=tested)
    question = ask(random, SPELLING, tested=tested, word=quoted(random, word))
    return Exchange(question, f'The word "{word}" is spelled {things.spelled(word)}.', things.spelled(word))


# The kinds of question, and how often each comes in a conversation: what is harder to learn, more often.
KINDS: Mapping[Callable[..., Exchange], int] = MappingProxyType(
    {name: 1, fact: 6, addition: 3, letter_count: 5, spelling: 6}
)


def says_name(completion: str, reference: str) -> bool:
    """Whether the completion has the name as a word."""
    return reference in re.findall(r"\w+", completion)


def says_value(completion: str, reference: str) -> bool:
    """Whether the completion has this value of a fact, and no other one of the same kind."""
    (values,) = (values for values in things.VALUES.values() if reference in values)
    words = set(re.findall(r"\w+", completion.lower()))
    return words & {each.lower() for each in values} == {reference.lower()}


def says_number(completion: str, reference: str) -> bool:
    """Whether the last number of the completion is this one."""
    return re.findall(r"\d+", completion)[-1:] == [reference]


def says_spelling(completion: str, reference: str) -> bool:
    """Whether the only spelling in the completion, letters joined by hyphens, is this one."""
    return re.findall(r"\b\w(?:-\w)+\b", completion) == [reference]
