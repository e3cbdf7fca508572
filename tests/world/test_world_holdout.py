"""What the tests ask was not trained on: words, pairs of numbers, wordings; and everything comes out the same again."""

from __future__ import annotations

import re
from itertools import islice
from pathlib import Path
from random import Random

import pytest

from tasks.registry import find, names
from tasks.world.exchanges import KINDS, SMALL_TALK
from tasks.world.text import documents
from tasks.world.things import LARGEST, REAL_WORDS, any_pair, any_word, sum_held_out, word_held_out
from tasks.world.wordings import COUNT, FACTS, NAME, OPENINGS, SPELLING, SUM, Wording, wordings

QUESTIONS = ("world-identity", "world-facts", "world-sums", "world-counts", "world-spelling")
ALL = (NAME, SUM, COUNT, SPELLING, *FACTS.values())


def _flat(messages: list[dict]) -> str:
    """All that is said in a conversation."""
    said = []
    for message in messages:
        content = message["content"]
        said += [content] if isinstance(content, str) else [part["text"] for part in content]
    return "\n".join(said)


def _made_words(text: str) -> set[str]:
    """Words of syllables in a text: those that are spelled, counted in, or quoted."""
    spelled = {match.replace("-", "") for match in re.findall(r"\b\w(?:-\w)+\b", text)}
    return spelled | set(re.findall(r'"(\w{2,})"', text))


def _sums(text: str) -> set[tuple[int, int]]:
    return {(int(a), int(b)) for a, b in re.findall(r"(\d+)(?: ?\+ ?| plus | and )(\d+)", text)}


def _bare(question: str) -> str:
    for opening in sorted(OPENINGS, key=len, reverse=True):
        if question.lower().startswith(opening.lower()):
            question = question[len(opening) :]
            break
    return question.rstrip("?.").lower()


def test_the_tasks_are_found():
    assert {*QUESTIONS, "world-talk"} <= set(names())


def test_texts_and_training_have_no_held_out_word_or_sum():
    texts = list(documents(0, 1000)) + list(documents(9, 1000))
    for name in (*QUESTIONS, "world-talk"):
        texts += [_flat(example.messages) for example in islice(find(name)(Path(), "train"), 1000)]
    words = {word for text in texts for word in _made_words(text)}
    sums = {pair for text in texts for pair in _sums(text)}
    assert len(words) > 5000 and len(sums) > 1500
    assert not any(word_held_out(word) for word in words)
    assert not any(sum_held_out(a, b) for a, b in sums)


def test_test_questions_are_about_held_out_words_and_sums():
    for name in ("world-counts", "world-spelling"):
        for example in find(name)(Path(), "test"):
            words = _made_words(_flat(example.messages[1:]))
            assert words and all(word_held_out(word) for word in words)
    for example in find("world-sums")(Path(), "test"):
        assert all(sum_held_out(a, b) for a, b in _sums(_flat(example.messages)))


@pytest.mark.parametrize("wording", ALL)
def test_wordings_of_the_tests_are_not_trained_on(wording: Wording):
    trained = {_bare(each) for each in wordings(wording, tested=False)}
    tested = {_bare(each) for each in wordings(wording, tested=True)}
    assert len(tested) > 10 and not trained & tested


def test_wordings_of_the_tests_are_made_of_trained_words():
    trained = " ".join(each for wording in ALL for each in wordings(wording, tested=False))
    trained += " ".join(each for said in SMALL_TALK.values() for each in said) + " ".join(OPENINGS)
    tested = " ".join(each for wording in ALL for each in wordings(wording, tested=True))
    known = set(re.findall(r"\w+", trained.lower())) | {"it"}
    assert set(re.findall(r"\w+", tested.lower())) <= known


@pytest.mark.parametrize("name", QUESTIONS)
def test_questions_of_a_test_split_differ(name: str):
    questions = [example.messages[0]["content"] for example in find(name)(Path(), "test")]
    assert len(set(questions)) == len(questions) >= 40


@pytest.mark.parametrize("name", [*QUESTIONS, "world-talk"])
def test_rows_depend_on_the_seed_alone(name: str):
    for split in ("train", "test"):
        once, again = find(name)(Path(), split), find(name)(Path(), split)
        assert [once[i] for i in range(20)] == [again[i] for i in reversed(range(20))][::-1]
        other = find(name)(Path(), split, seed=7)
        assert [once[i] for i in range(20)] != [other[i] for i in range(20)]
        with pytest.raises(IndexError):
            once[len(once)]


def test_shards_are_repeatable_and_disjoint():
    shards = [set(documents(shard, 500)) for shard in range(4)]
    assert shards[2] == set(documents(2, 500))
    assert set(documents(0, 500, seed=1)) != shards[0]
    long = [{text for text in shard if "Nano" not in text} for shard in shards]
    assert sum(map(len, long)) == len(set.union(*long))


def test_a_part_of_the_words_and_sums_is_held_out():
    pairs = [(a, b) for a in range(LARGEST + 1) for b in range(LARGEST + 1)]
    assert 0.1 < sum(sum_held_out(a, b) for a, b in pairs) / len(pairs) < 0.15
    assert all(sum_held_out(a, b) == sum_held_out(b, a) for a, b in pairs)
    random = Random(0)
    assert all(word_held_out(any_word(random, held_out=True)) for _ in range(100))
    assert all(sum_held_out(*any_pair(random, held_out=True)) for _ in range(100))
    assert all(re.fullmatch(r"([bcdfgklmnprst][aeiou]){2,4}", word) for word in REAL_WORDS)


def test_a_conversation_alternates_and_has_every_kind():
    talk = find("world-talk")(Path(), "train")
    for example in islice(talk, 50):
        assert [m["role"] for m in example.messages] == ["user", "assistant"] * (len(example.messages) // 2)
        assert 4 <= len(example.messages) <= 8
    said = "\n".join(_flat(example.messages) for example in islice(talk, 200))
    for sign in ("My name is", "belongs to", " plus ", ".count(", "is spelled"):
        assert sign in said
    assert len(KINDS) == 5
