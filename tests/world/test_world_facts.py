"""The world does not contradict itself: each thing has one value of a kind, in texts and in answers."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from pathlib import Path
from random import Random

from tasks.world.tasks import WorldFacts
from tasks.world.text import OTHER_STATEMENTS, documents
from tasks.world.things import ANIMALS, SOUNDS, STATEMENTS, THINGS, VALUES, facts, facts_of


def _claims(text: str) -> set[tuple[str, str, str]]:
    """Every (thing, kind, value) that a text states."""
    found = set()
    for kind, usual in STATEMENTS.items():
        for form in (usual, *OTHER_STATEMENTS[kind]):
            pattern = re.escape(form).replace(r"\{thing\}", r"(?P<thing>\w+)").replace(r"\{value\}", r"(?P<value>\w+)")
            for match in re.finditer(pattern, text):
                if match["value"] in VALUES[kind] and match["thing"] in THINGS:
                    found.add((match["thing"], kind, match["value"]))
    return found


def test_every_thing_has_five_facts_and_one_value_of_each_kind():
    assert len({(fact.thing, fact.kind) for fact in facts()}) == len(facts()) == 5 * len(THINGS)
    assert all(len(facts_of(thing)) == 5 for thing in THINGS)
    assert all(fact.value in VALUES[fact.kind] for fact in facts())
    assert {fact.thing: fact.value for fact in facts() if fact.kind == "sound"} == dict(SOUNDS)
    assert {fact.thing for fact in facts() if fact.kind == "material"} == set(THINGS) - set(ANIMALS)


def test_no_value_of_a_kind_is_usual():
    for kind in ("colour", "size", "place", "owner", "material"):
        uses = Counter(fact.value for fact in facts() if fact.kind == kind)
        assert max(uses.values()) - min(uses.values()) <= 1


def test_a_value_belongs_to_one_kind():
    values = [value.lower() for kind in VALUES.values() for value in kind]
    assert len(values) == len(set(values))


def test_texts_state_every_fact_and_nothing_else():
    true = {(fact.thing, fact.kind, fact.value) for fact in facts()}
    stated = Counter(claim for text in documents(0, 2000) for claim in _claims(text))
    assert set(stated) == true
    assert min(stated.values()) >= 5


def test_answers_agree_with_the_texts():
    known = {(fact.thing, fact.kind, fact.value) for fact in facts()}
    asked = defaultdict(int)
    for split in ("train", "test"):
        task = WorldFacts(Path(), split)
        for i in range(500):
            claims = _claims(task[i].messages[1]["content"])
            assert len(claims) == 1 and claims <= known
            asked[split, next(iter(claims))[1]] += 1
    assert len(asked) == 2 * len(VALUES)


def test_facts_do_not_depend_on_what_was_drawn_before():
    before = facts()
    Random(0).random()
    facts.cache_clear()
    assert facts() == before
