"""Reading what others wrote: JSON, YAML, addresses and expressions, each by one function with bounds.

What can't be read raises `Malformed`, whose text is a phrase for a sentence that names the file, field or option.
"""

from __future__ import annotations

from pydantic import ValidationError


class Malformed(ValueError):
    """A text that is not what it has to be; its message says why, and where in the text."""


def first_problem(error: ValidationError) -> str:
    """The first thing that a model finds wrong: 'gold: Input should be a valid integer'."""
    first = error.errors(include_url=False, include_input=False)[0]
    place = ".".join(map(str, first["loc"]))
    return f"{place}: {first['msg']}" if place else first["msg"]
