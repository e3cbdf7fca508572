"""Bounds of values that are typed, on a command line or in a chat: a reader takes a text and returns a value.

    port = integer(0, 65535)
    port("8000")           # 8000
    port("99999")          # OutOfBounds: 99999 is not from 0 to 65535

A reader is also an argparse type. Its `__name__` is its bounds or its kind, which help shows in place of a value.
"""

from __future__ import annotations

import argparse
import math
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

from nanochat.parse import Malformed
from nanochat.parse.address import SERVER, resolve

T = TypeVar("T")
Reader = Callable[[str], T]

SHOWN = 40  # characters of a wrong value that its error repeats
NAME, PATH, SENTENCE, TEXT = 253, 4096, 2000, 100_000  # characters at most
_WHOLE = re.compile(r"[+-]?[0-9]{1,20}")
_UNPRINTABLE = re.compile(r"[\x00-\x08\x0b-\x1f\x7f\ud800-\udfff]")


class OutOfBounds(argparse.ArgumentTypeError, ValueError):
    """A value that is no number of the range, or no text that can be used."""


def integer(low: int, high: int) -> Reader[int]:
    """Reads whole numbers from `low` to `high`."""

    def read(text: str) -> int:
        word = str(text).strip()
        if not _WHOLE.fullmatch(word):
            raise OutOfBounds(f"{shown(word)} is not a whole number from {low:,} to {high:,}")
        return _within(int(word), low, high)

    return _named(read, f"{low}..{high}")


def real(low: float, high: float) -> Reader[float]:
    """Reads numbers from `low` to `high`."""

    def read(text: str) -> float:
        try:
            value = float(text)
        except ValueError:
            value = math.nan
        if not math.isfinite(value):
            raise OutOfBounds(f"{shown(str(text))} is not a number from {low:g} to {high:g}")
        return _within(value, low, high)

    return _named(read, f"{low:g}..{high:g}")


def text(most: int, kind: str = "text", *, lines: bool = False) -> Reader[str]:
    """Reads texts of 1 to `most` characters, of several lines where `lines` says so."""

    def read(given: str) -> str:
        word = str(given)
        if not word.strip():
            raise OutOfBounds("it is empty")
        if len(word) > most:
            raise OutOfBounds(f"it has {len(word):,} characters, and {most:,} are the most")
        if _UNPRINTABLE.search(word) or (not lines and ("\n" in word or "\t" in word)):
            raise OutOfBounds(f"{shown(word)} has characters that are no text")
        return word

    return _named(read, kind)


def one_of(words: Sequence[str]) -> Reader[str]:
    """Reads one of a few words."""

    def read(given: str) -> str:
        if given not in words:
            raise OutOfBounds(f"{shown(str(given))} is none of {', '.join(words)}")
        return given

    return _named(read, "|".join(words))


def path(given: str) -> Path:
    """Reads the path of a file."""
    return Path(text(PATH)(given))


def address(given: str) -> str:
    """Reads the address of a server: http:// or https://, without a password, which would be seen by everyone."""
    try:
        return resolve(given, SERVER).text
    except Malformed as error:
        raise OutOfBounds(f"this is not an address like http://127.0.0.1:8000: {error}") from None


def shown(word: str) -> str:
    """A wrong value as an error repeats it: quoted, short, and printable everywhere."""
    return ascii(word if len(word) <= SHOWN else f"{word[:SHOWN]}...")


def _within(value: T, low: float, high: float) -> T:
    if not low <= value <= high:  # type: ignore[operator]
        raise OutOfBounds(f"{value} is not a number from {low:,} to {high:,}")
    return value


def _named(read: Reader[T], kind: str) -> Reader[T]:
    read.__name__ = kind
    return read
