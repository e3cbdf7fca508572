"""Dataclasses from what was read: all fields of the right types and within bounds, or ValueError.

    record = checked(AttemptRecord, {"stage": "base", "number": 1})

What pods, other machines and versions before wrote is evidence, never trusted: a time that no calendar has, or a number
that no counter reaches, would stop those who show or add it up. Fields that are not known are left out.
"""

from __future__ import annotations

from functools import cache
from typing import Annotated, Any, TypeVar

from pydantic import Field, TypeAdapter

from nanochat.storage.failures import Damaged
from nanochat.storage.store import Store

T = TypeVar("T")

RECORD = 1 << 20  # bytes of a record: an attempt, an outcome, a progress, a release
MOST_RECORDS = 10_000  # of one folder

Count = Annotated[int, Field(ge=0, lt=1 << 53)]
Seconds = Annotated[float, Field(ge=0, le=1e11, allow_inf_nan=False)]  # a duration, or a time since 1970
Number = Annotated[float, Field(allow_inf_nan=False)]


@cache
def _adapter(kind: type[Any]) -> TypeAdapter[Any]:
    return TypeAdapter(kind)


def checked(kind: type[T], value: Any) -> T:
    """A dataclass from JSON values."""
    return _adapter(kind).validate_python(value)


def read_object(store: Store, path: str, limit: int = RECORD) -> dict[str, Any] | None:
    """A JSON object in storage; None where there is no file. `Damaged` where it is something else."""
    try:
        value = store.read_json(path, limit)
    except FileNotFoundError:
        return None
    if not isinstance(value, dict):
        raise Damaged(f"{store.uri(path)} is not a JSON object")
    return value
