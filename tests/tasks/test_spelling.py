"""The spelling tasks: nothing of the test split is ever trained on, and answers are right."""

from __future__ import annotations

import random
from pathlib import Path
from string import ascii_lowercase

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import tasks
from nanochat.data.text import read_text
from nanochat.tokenizer import Tokenizer
from tasks import DataError
from tasks.spelling import count_answer, count_question, spelled
from tasks.spelling_words import COUNT_QUESTIONS, SPELL_QUESTIONS, is_test_word, split_words
from tasks.world.text import documents

NAMES = ("spelling-bee", "simple-spelling")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    draw = random.Random(0)
    words = ["".join(draw.choice("abcdefghij") for _ in range(draw.randint(2, 26))) for _ in range(3000)]
    path = tmp_path_factory.mktemp("words")
    (path / "words.txt").write_text("\r\n".join([*words, "Upper", "it's", "n1"]))
    return path


def test_no_word_is_in_both_splits(folder: Path) -> None:
    train, test = (set(split_words(folder / "words.txt", split)) for split in ("train", "test"))
    assert train and test and not train & test
    assert all(3 <= len(word) <= 24 and word.isalpha() and word.islower() for word in train | test)


@pytest.mark.parametrize("name", NAMES)
@given(first=st.integers(0, 79_999), second=st.integers(0, 1_999), seed=st.integers(0, 5))
@settings(max_examples=60)
def test_no_test_row_is_a_training_row(name: str, folder: Path, first: int, second: int, seed: int) -> None:
    kind = tasks.find(name)
    train, test = kind(folder, "train", seed=seed), kind(folder, "test", seed=seed)
    assert train[first].messages != test[second].messages
    words = [_spelled(example.messages[-1]["content"]) for example in (train[first], test[second])]
    assert [is_test_word(word) for word in words] == [False, True]


def _spelled(answer: str | list[dict]) -> str:
    text = answer if isinstance(answer, str) else answer[0]["text"].split("\n")[1]
    word, _, letters = text.partition(":")
    assert letters.replace(",", "") == word
    return word


@pytest.mark.parametrize("name", NAMES)
def test_rows_depend_on_seed_and_place_alone(name: str, folder: Path) -> None:
    kind = tasks.find(name)
    task = kind(folder, "train")
    assert task[17] == kind(folder, "train")[17]
    assert task[17] != kind(folder, "train", seed=1)[17]
    assert len({str(task[i].messages) for i in range(100)}) > 95
    with pytest.raises(IndexError):
        task[len(task)]


@given(st.text("abcz", min_size=3, max_size=12), st.sampled_from("abcxyz"))
def test_answers_count_right(word: str, letter: str) -> None:
    parts = count_answer(word, letter)
    assert [part["type"] for part in parts] == ["text", "python", "python_output", "text"]
    assert eval(parts[1]["text"]) == int(parts[2]["text"]) == word.count(letter)
    assert parts[3]["text"].endswith(f"#### {word.count(letter)}")
    assert parts[0]["text"].count("that makes") == word.count(letter)


def test_graders(folder: Path) -> None:
    bee, simple = (tasks.find(name)(folder, "test") for name in NAMES)
    example = bee[3]
    assert bee.grade(example, f"So\n#### {example.reference}")
    assert not bee.grade(example, f"#### {example.reference}1") and not bee.grade(example, example.reference)
    assert bee.lenient(example, f"####{example.reference}.0") and not bee.grade(example, f"####{example.reference}.0")
    assert simple.grade(simple[3], simple[3].reference + "\n") and not simple.grade(simple[3], "a,b")


def small_vocabulary() -> Tokenizer:
    """A vocabulary of English sentences, in which letters after a space are tokens of their own."""
    return Tokenizer.train(documents(0, 3000), vocab_size=1200)


def large_vocabulary(mirror: Path) -> Tokenizer:
    """32,768 tokens of web text."""
    shards = sorted((mirror / "datasets/karpathy/fineweb-edu-100b-shuffle").rglob("*.parquet"))[:2]
    return Tokenizer.train((text for path in shards for group in read_text(path) for text in group), vocab_size=32_768)


@pytest.mark.parametrize("size", ["small", "large"])
def test_a_letter_is_the_same_token_wherever_it_is_written(size: str, request: pytest.FixtureRequest) -> None:
    """In the list of a word's letters, at its beginning too, and where the letters are counted by hand."""
    mirror = request.getfixturevalue("mirror") if size == "large" else Path()
    tokenizer = large_vocabulary(mirror) if size == "large" else small_vocabulary()
    same = 0
    for letter in ascii_lowercase:
        (alone,) = tokenizer.encode(letter)
        lines = count_answer(letter * 3, "-")[0]["text"].splitlines()
        assert lines[1] == spelled(letter * 3) and [line.partition(":")[0] for line in lines[4:7]] == ["1", "2", "3"]
        in_list = tokenizer.encode(lines[1])[-5::2]
        counted = [tokenizer.encode(line)[-1] for line in lines[4:7]]
        same += in_list == counted == [alone] * 3
    assert same == 26


def test_wordings_hold_what_is_asked() -> None:
    assert all("{word}" in wording and "{letter}" in wording for wording in COUNT_QUESTIONS)
    assert all("{word}" in wording for wording in SPELL_QUESTIONS)
    assert len(set(COUNT_QUESTIONS)) == len(COUNT_QUESTIONS) >= 40
    assert all("strawberry" in count_question(random.Random(i), "strawberry", "r") for i in range(100))


def test_a_list_without_words_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "words.txt").write_text("A B\n12\n")
    with pytest.raises(DataError, match="needs more words"):
        tasks.find("spelling-bee")(tmp_path, "test")[0]
