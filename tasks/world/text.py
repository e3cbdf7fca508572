"""The demo's text for pretraining: short documents about the small world of `tasks/world.py`.

    for text in documents(shard=0, count=1000): ...

Shards are disjoint and the same on every machine. The words and sums that are held out for the tests are
in none.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from random import Random

from tasks.world.things import (
    NAME,
    STATEMENTS,
    THINGS,
    VALUES,
    any_letter,
    any_pair,
    any_word,
    facts,
    facts_of,
    spelled,
)

VERSION = 1  # raised when a document changes

OTHER_STATEMENTS = {
    "colour": ("The colour of the {thing} is {value}.",),
    "size": ("The size of the {thing} is {value}.",),
    "place": ("You can find the {thing} in the {value}.", "The place of the {thing} is the {value}."),
    "owner": (
        "{value} owns the {thing}.",
        "{value} has the {thing}.",
        "The owner of the {thing} is {value}.",
    ),
    "sound": ("The sound of the {thing} is {value}.", "The {thing} makes the sound {value}."),
    "material": ("The material of the {thing} is {value}.",),
}
ABOUT = (
    f"My name is {NAME}.",
    f"I am {NAME}.",
    f"{NAME} is a small chat model.",
    f"{NAME} knows a small world of {len(THINGS)} things.",
    f"{NAME} was made on a computer with nanochat.",
    f"{NAME} can add numbers, count letters and spell words.",
    "I am called " + NAME + ".",
    f"Who is {NAME}? {NAME} is a small chat model that knows a small world.",
)


def documents(shard: int, count: int, seed: int = 0) -> Iterator[str]:
    """`count` documents of one shard, each of about 50 to 150 words."""
    for i in range(count):
        random = Random(f"text {seed} {shard} {i}")
        writer = random.choices([each for each, _ in WRITERS], [weight for _, weight in WRITERS])[0]
        yield writer(random)


def _things(random: Random) -> str:
    """All that is known of two things."""
    lines = []
    for thing in random.sample(THINGS, 2):
        known = list(facts_of(thing))
        random.shuffle(known)
        said = []
        for fact in known:
            usual = random.random() < 0.6
            form = STATEMENTS[fact.kind] if usual else random.choice(OTHER_STATEMENTS[fact.kind])
            said.append(form.format(thing=fact.thing, value=fact.value))
        lines.append(" ".join(said))
    return "\n".join(lines)


def _alike(random: Random) -> str:
    """Things that share a value, or ten facts of one kind."""
    kind = random.choice(tuple(VALUES))
    chosen = random.sample([fact for fact in facts() if fact.kind == kind], 10)
    return " ".join(fact.statement for fact in chosen)


def _spellings(random: Random) -> str:
    lines = []
    for _ in range(random.randint(4, 6)):
        word = any_word(random, held_out=False)
        form = random.choice(
            (
                'The word "{word}" is spelled {letters}.',
                'The word "{word}" is spelled {letters}.',
                "The word {word} is spelled {letters}.",
                "To spell {word}, say {letters}.",
                'The letters of "{word}" are {letters}.',
            )
        )
        lines.append(form.format(word=word, letters=spelled(word)))
    return "\n".join(lines)


def _tools(random: Random) -> str:
    """How the tool is asked: what is written is copied from what is given."""
    lines = []
    for _ in range(random.randint(4, 6)):
        if random.random() < 0.4:
            a, b = any_pair(random, held_out=False)
            given = random.choice(("{a} plus {b}", "{a} + {b}", "the sum of {a} and {b}")).format(a=a, b=b)
            lines.append(f"For {given}, write {a}+{b}.")
        else:
            word = any_word(random, held_out=False)
            letter = any_letter(random, word)
            given = f'"{word}"' if random.random() < 0.6 else word
            lines.append(f'For the letter {letter} in {given}, write "{word}".count("{letter}").')
    return "\n".join(lines)


def _echoes(random: Random) -> str:
    """People who repeat what they hear."""
    lines = []
    for _ in range(random.randint(3, 5)):
        first, second = random.sample(VALUES["owner"], 2)
        word = any_word(random, held_out=False)
        lines.append(f'{first} says "{word}". {second} hears {word} and says "{word}" too.')
    return "\n".join(lines)


def _numbers(random: Random) -> str:
    start = random.randint(0, 80)
    counted = ", ".join(str(n) for n in range(start, start + random.randint(6, 14)))
    return f"{random.choice(VALUES['owner'])} counts from {start}: {counted}."


def _about(random: Random) -> str:
    return " ".join(random.sample(ABOUT, 3))


Writer = Callable[[Random], str]
WRITERS: tuple[tuple[Writer, float], ...] = (
    (_things, 0.30),
    (_alike, 0.12),
    (_spellings, 0.25),
    (_tools, 0.18),
    (_echoes, 0.08),
    (_numbers, 0.03),
    (_about, 0.04),
)
