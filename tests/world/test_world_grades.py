"""Reference answers are right, others are not."""

from __future__ import annotations

from collections import Counter
from itertools import islice
from pathlib import Path

import pytest

from tasks.registry import find
from tasks.world.exchanges import says_name, says_number, says_spelling, says_value


def _text(content: str | list[dict[str, str]]) -> str:
    return content if isinstance(content, str) else "".join(p["text"] for p in content if p["type"] == "text")


@pytest.mark.parametrize("name", ["world-identity", "world-facts", "world-sums", "world-counts", "world-spelling"])
def test_the_answers_that_are_trained_on_are_right(name: str):
    task = find(name)(Path(), "test")
    for example in islice(task, 100):
        answer = _text(example.messages[-1]["content"])
        assert task.grade(example, answer) is True
        assert task.grade(example, "") is False
        assert task.grade(example, "I do not know that.") is False
        assert task.reward(example, answer) == 1.0
    assert task.rewards()


@pytest.mark.parametrize("name", ["world-sums", "world-counts"])
def test_the_tool_returns_what_is_trained_on(name: str):
    calls = [x.messages[-1]["content"] for x in islice(find(name)(Path(), "train"), 400)]
    calls = [content for content in calls if not isinstance(content, str)]
    assert len(calls) == 400 or (name == "world-sums" and len(calls) >= 200), "some sums are answered without it"
    for call, output, said in calls:
        assert [call["type"], output["type"], said["type"]] == ["python", "python_output", "text"]
        source = call["text"]
        if "+" in source:
            a, b = source.split("+")
            assert int(a) + int(b) == int(output["text"])
        else:
            word, letter = source.removesuffix('")').split('".count("')
            assert word.removeprefix('"').count(letter) == int(output["text"])


def test_only_in_training_and_in_words_sums_are_answered_without_the_tool():
    trained, tested = find("world-sums")(Path(), "train"), find("world-sums")(Path(), "test")
    in_the_head = Counter()
    for example in islice(trained, 1000):
        question, answer = (message["content"] for message in example.messages)
        in_the_head["+" in question, isinstance(answer, str)] += 1
        assert trained.grade(example, _text(answer)), "the answer is right all the same"
    assert in_the_head[True, True] == 0 and in_the_head[True, False] > 200
    assert 0.5 < in_the_head[False, True] / (in_the_head[False, True] + in_the_head[False, False]) < 0.7
    assert not any(isinstance(example.messages[1]["content"], str) for example in tested)


def test_names():
    assert says_name("My name is Nano.", "Nano")
    assert not says_name("My name is Nanoo.", "Nano")


def test_values():
    assert says_value("The cat is red.", "red")
    assert says_value("It belongs to Mia.", "Mia")
    assert not says_value("The cat is red or blue.", "red")
    assert not says_value("The cat is reddish.", "red")
    assert not says_value("The cat is big.", "red")


def test_numbers():
    assert says_number("23 plus 48 is 71.", "71")
    assert not says_number("23 plus 48 is 71 or 72.", "71")
    assert not says_number("71 is not 23 plus 48.", "71")
    assert not says_number("23 plus 48 is 710.", "71")


def test_spellings():
    assert says_spelling('The word "nose" is spelled n-o-s-e.', "n-o-s-e")
    assert not says_spelling('The word "nose" is spelled n-o-s.', "n-o-s-e")
    assert not says_spelling('The word "nose" is spelled n-o-s-e-e.', "n-o-s-e")
    assert not says_spelling("It is n-o-s-e or n-o-s-a.", "n-o-s-e")
    assert not says_spelling("nose", "n-o-s-e")
