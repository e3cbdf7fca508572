"""JSON from outside is a value, or one phrase that says what is wrong."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nanochat.parse import Malformed
from nanochat.parse.json_text import read_json

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
)


@given(VALUES)
def test_it_reads_what_json_writes(value: object) -> None:
    text = json.dumps(value)
    assert read_json(text, limit=len(text)) == value
    assert read_json(text.encode(), limit=len(text)) == value


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("[" * 20_000, "nested more than 200 deep"),
        ('{"a":' * 201 + "1" + "}" * 201, "nested more than 200 deep"),
        ("", "not JSON: EOF"),
        ("{'a': 1}", "not JSON: key must be a string at column 2"),
        ("[1] [2]", "trailing characters"),
        ("[1,\n2", "not JSON: EOF while parsing a list at line 2 column 1"),
        ('{"a": NaN}', "not JSON"),
        ("[-Infinity]", "not JSON"),
        ("1e400", "too large"),
        ("[-1E+0400]", "too large"),
        ("9" * 400 + ".0", "too large"),
        ("9" * 5000, "out of range"),
        ('"\\ud83d"', "half a surrogate pair"),
        ('"\\ud83d\\u0041"', "half a surrogate pair"),
        ('"\\udc00"', "half a surrogate pair"),
        ('"\ud83d"', "half a surrogate pair"),
        (b'"\xff"', "unicode"),
        ("\ufeff[]", "not JSON"),
        (f'"{"a" * (1 << 16)}"', "more than 65,536 bytes"),
    ],
)
def test_what_is_refused(text: str | bytes, problem: str) -> None:
    with pytest.raises(Malformed, match=problem):
        read_json(text, limit=1 << 16)


def test_200_levels_are_read() -> None:
    value: list[object] = []
    for _ in range(199):
        value = [value]
    assert read_json("[" * 200 + "]" * 200, limit=400) == value


def test_large_numbers_that_are_finite_are_read() -> None:
    assert read_json("[1e-400, 1.5e+100, 1.7e308]", limit=100) == [0.0, 1.5e100, 1.7e308]
    assert read_json('"e400"', limit=100) == "e400"
