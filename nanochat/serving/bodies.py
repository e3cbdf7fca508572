"""The base of all objects in requests: what is not declared in them is ignored, and named in the log once.

class Thing(Body):
    size: int | None = None

UnknownFields().note(Thing.model_validate({"size": 1, "colour": "red"}))     # logs 'colour'
"""

from __future__ import annotations

import difflib
import logging
from collections.abc import Iterator
from typing import Annotated, Any, TypeVar

from pydantic import BaseModel, ConfigDict, Discriminator, Field

_log = logging.getLogger(__name__)

MAX_TEXT = 1_000_000  # characters in all of a request's messages; far more than any context holds
Label = Annotated[str, Field(max_length=1024)]  # of names and identifiers
Text = Annotated[str, Field(max_length=MAX_TEXT)]
T = TypeVar("T")
Items = Annotated[list[T], Field(max_length=2048, fail_fast=True)]  # the first one that is wrong is told


class Body(BaseModel):
    """An object in a request."""

    model_config = ConfigDict(extra="allow", allow_inf_nan=False)

    def unknown(self) -> Iterator[tuple[str, type[Body]]]:
        """The names that are not declared, here and in the objects inside, each with the class that lacks it."""
        for name in self.model_extra or ():
            yield name, type(self)
        for name in type(self).model_fields:
            value = getattr(self, name)
            for inner in value if isinstance(value, list) else (value,):
                if isinstance(inner, Body):
                    yield from inner.unknown()


def _given(value: Any) -> str:
    return "list" if isinstance(value, list) else "text"


# Chooses in a union of Tag("text") and Tag("list"), so that what is wrong is said of the one that was given.
text_or_list = Discriminator(_given)


class UnknownFields:
    """Logs each name of an ignored field once; clients can fill neither the log nor the memory with them."""

    MOST = 100  # names
    LONGEST = 64  # characters

    def __init__(self) -> None:
        self._seen: set[str] = set()

    def note(self, body: Body) -> None:
        for name, place in body.unknown():
            if len(self._seen) == self.MOST:
                return
            name = name[: self.LONGEST]
            if name not in self._seen:
                self._seen.add(name)
                near = difflib.get_close_matches(name, place.model_fields, n=1)
                hint = f"; did its sender mean '{near[0]}'?" if near else ""
                _log.warning("requests have the field %s, which is not known here and is ignored%s", ascii(name), hint)
