"""JSON from outside, of bounded size and depth.

    read_json(path.read_bytes(), limit=1 << 20)        # Malformed where it is anything else than JSON of that size

Python's own reader takes NaN and halves of surrogate pairs, and ends a deep text with RecursionError; jiter, pydantic's
reader, refuses them.
"""

from __future__ import annotations

import json
import re
from typing import Any

from pydantic_core import from_json

from nanochat.parse import Malformed

_PLACE = re.compile(r"(.*) at (line \d+ column \d+)")
_DEEP = "recursion limit exceeded"  # of jiter: 200 levels
_LARGE_NUMBER = re.compile(rb"[eE]\+?[0-9]{3}|(?<![0-9])[0-9]{309}")  # without one of these no number is infinite


def read_json(data: bytes | str, *, limit: int) -> Any:
    """The value of a JSON text of at most `limit` bytes, nested at most 200 deep, all its numbers finite."""
    try:
        raw = data.encode() if isinstance(data, str) else data
    except UnicodeEncodeError:
        raise Malformed("not JSON: a text holds half a surrogate pair") from None
    if len(raw) > limit:
        raise Malformed(f"more than {limit:,} bytes")
    try:
        value = from_json(raw, allow_inf_nan=False)
    except ValueError as error:
        found = _PLACE.fullmatch(str(error))
        problem, place = found.groups() if found else (str(error), "")
        place = place.removeprefix("line 1 ")  # often the line is one of many, and the caller names it
        if "surrogate" in problem or "hex escape" in problem:
            problem += ", perhaps half a surrogate pair"
        problem = "nested more than 200 deep" if problem == _DEEP else f"not JSON: {problem}"
        raise Malformed(f"{problem}{place and f' at {place}'}") from None
    if _LARGE_NUMBER.search(raw):
        try:
            json.dumps(value, allow_nan=False)
        except ValueError:
            raise Malformed("a number that is too large") from None
    return value
