"""YAML as kubectl reads it, of bounded size, depth and repetition.

    read_yaml(path.read_bytes())        # Malformed where kubectl refuses it, or a key is given twice

The syntax is libyaml's, of which kubectl's parser is a port. What a plain value is follows kubectl: 010 is 8, yes is
true, 1e-3 and 1_000 are numbers, 1:30 and dates are text (tests/parse/kubectl_values.json has what it was seen to
make of them), and whole numbers are integers, as in the JSON that it sends.
"""

from __future__ import annotations

import base64
import binascii
import copy
import math
import re
from collections.abc import Iterator
from typing import Any

import yaml
from yaml import AliasEvent, DocumentStartEvent, MappingEndEvent, MappingStartEvent, ScalarEvent, SequenceEndEvent
from yaml.reader import ReaderError

from nanochat.parse import Malformed

LARGEST = 1 << 20  # bytes; objects of Kubernetes are smaller
DEEPEST = 100  # lists and maps inside each other

_WORDS: dict[str, Any] = {
    **dict.fromkeys(("", "~", "null", "Null", "NULL")),
    **dict.fromkeys(("y", "Y", "yes", "Yes", "YES", "true", "True", "TRUE", "on", "On", "ON"), True),
    **dict.fromkeys(("n", "N", "no", "No", "NO", "false", "False", "FALSE", "off", "Off", "OFF"), False),
    **dict.fromkeys((".nan", ".NaN", ".NAN"), math.nan),
    **dict.fromkeys((".inf", ".Inf", ".INF", "+.inf", "+.Inf", "+.INF"), math.inf),
    **dict.fromkeys(("-.inf", "-.Inf", "-.INF"), -math.inf),
}
# Go's strconv with base 0, and go-yaml's numbers with a decimal point.
_INTEGER = re.compile(r"([-+]?)(?:0[xX]([0-9a-fA-F]+)|0[bB]([01]+)|0[oO]?([0-7]+)|(0|[1-9][0-9]*))")
_FLOAT = re.compile(r"[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?")
_POINT_FIRST = re.compile(r"\.[0-9]+(?:_[0-9]+)*(?:[eE][-+]?[0-9]+(?:_[0-9]+)*)?")  # here '_' stands between digits
_STANDARD = "tag:yaml.org,2002:"
_TYPES = {"null": (type(None),), "bool": (bool,), "int": (int,), "float": (int, float), "timestamp": (str,)}


def read_yaml(data: bytes | str) -> Any:
    """The value of a YAML text with one document at most; None where there is none."""
    try:
        raw = data.encode() if isinstance(data, str) else data
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = error.object[: error.start].count(b"\n") + 1
        raise Malformed(f"line {line} is not UTF-8: save the file in that encoding") from None
    except UnicodeEncodeError:
        raise Malformed("not UTF-8") from None
    if len(raw) > LARGEST:
        raise Malformed(f"more than {LARGEST:,} bytes")
    try:
        return _Document(text).read()
    except ReaderError as error:
        line = text.encode()[: error.position].count(b"\n") + 1
        raise Malformed(f"line {line} holds the control character {error.character:#04x}") from None
    except yaml.MarkedYAMLError as error:
        raise _problem(error, text) from None


def _problem(error: yaml.MarkedYAMLError, text: str) -> Malformed:
    mark = error.problem_mark or error.context_mark
    assert mark is not None  # libyaml's errors have a place
    rows = text.splitlines()
    row = rows[mark.line] if mark.line < len(rows) else ""
    if "\t" in row[: mark.column + 1] and not row[: mark.column].strip():
        return Malformed(f"line {mark.line + 1} is indented with a tab: use blanks")
    return Malformed(f"line {mark.line + 1} is not YAML: {error.problem or error.context}")


class _Document:
    """The events of one text, made into a value. Where in the value it is stays known, for messages."""

    def __init__(self, text: str) -> None:
        self._events: Iterator[Any] = yaml.parse(text, Loader=yaml.CSafeLoader)
        self._path: list[str] = []
        self._anchors: dict[str, tuple[Any, int] | None] = {}  # value and size; None while it is being read
        self._size = 0

    def read(self) -> Any:
        """The value of the one document that holds something."""
        found: list[Any] = []
        for event in self._events:
            if isinstance(event, DocumentStartEvent):
                self._anchors.clear()
                value = self._value(next(self._events))
                if value is not None:
                    found.append(value)
                if len(found) > 1:
                    raise Malformed(f"line {event.start_mark.line + 1} begins a second document: give one a file")
        return found[0] if found else None

    def _value(self, event: Any) -> Any:
        if isinstance(event, AliasEvent):
            return self._repeated(event)
        if event.anchor:
            self._anchors[event.anchor] = None
        before = self._size
        if isinstance(event, ScalarEvent):
            self._grow(event, 1 + len(event.value))
            value = self._scalar(event)
        else:
            self._grow(event, 1)
            if len(self._path) >= DEEPEST:
                raise self._refused(event, f"nested more than {DEEPEST} deep")
            value = self._mapping() if isinstance(event, MappingStartEvent) else self._sequence()
        if event.anchor:
            self._anchors[event.anchor] = value, self._size - before
        return value

    def _repeated(self, event: AliasEvent) -> Any:
        if event.anchor not in self._anchors:
            raise self._refused(event, f"the anchor of *{event.anchor} is not above it")
        anchored = self._anchors[event.anchor]
        if anchored is None:
            raise self._refused(event, f"*{event.anchor} stands inside of what it repeats")
        value, size = anchored
        self._grow(event, size)
        return copy.deepcopy(value)

    def _grow(self, event: Any, size: int) -> None:
        self._size += size
        if self._size > 2 * LARGEST:  # without aliases a text never gets there
            raise self._refused(event, "its aliases make it too large")

    def _sequence(self) -> list[Any]:
        found: list[Any] = []
        while not isinstance(event := next(self._events), SequenceEndEvent):
            found.append(self._below(str(len(found)), event))
        return found

    def _mapping(self) -> dict[str, Any]:
        found: dict[str, Any] = {}
        lines: dict[str, int] = {}
        while not isinstance(event := next(self._events), MappingEndEvent):
            line = event.start_mark.line + 1
            if isinstance(event, ScalarEvent) and event.value == "<<" and event.implicit[0]:
                found |= self._merged(event)
                continue
            key = self._key(event)
            if key in lines:
                raise self._refused(event, f"'{_short(key)}' is given twice, in lines {lines[key]} and {line}")
            lines[key] = line
            found[key] = self._below(key, next(self._events))
        return found

    def _merged(self, event: Any) -> dict[str, Any]:
        """The map that `<<` names, or several of which the first wins; as in kubectl it goes over what is above it."""
        value = self._below("<<", next(self._events))
        found: dict[str, Any] = {}
        for item in reversed(value if isinstance(value, list) else [value]):
            if not isinstance(item, dict):
                raise self._refused(event, "<< needs a map, or a list of maps")
            found |= item
        return found

    def _key(self, event: Any) -> str:
        """A key as text: of numbers and truths what JSON has for them."""
        if not isinstance(event, (ScalarEvent, AliasEvent)):
            raise self._refused(event, "a key must be a text, and this is a list or map")
        key = self._value(event)
        if not isinstance(key, (str, int, float)):
            raise self._refused(event, "a key must be a text, and this is null: put it in quotes")
        return str(key).lower() if isinstance(key, bool) else str(key)

    def _below(self, name: str, event: Any) -> Any:
        self._path.append(name)
        value = self._value(event)
        self._path.pop()
        return value

    def _scalar(self, event: ScalarEvent) -> Any:
        tag = event.tag.removeprefix(_STANDARD) if event.tag else ""
        if tag == "binary":
            try:
                return base64.b64decode(event.value.translate({10: "", 13: ""}), validate=True).decode(errors="replace")
            except (binascii.Error, ValueError):
                raise self._refused(event, "the value of !!binary is not base64") from None
        if tag not in _TYPES and (tag or not event.implicit[0]):  # of another tag, or in quotes
            return event.value
        value = _resolved(event.value)
        if tag in _TYPES and (type(value) not in _TYPES[tag]):
            raise self._refused(event, f"'{_short(event.value)}' is no !!{tag}")
        if isinstance(value, float) and not math.isfinite(value):
            raise self._refused(event, f"{event.value} is no number here: give a finite one")
        return value

    def _refused(self, event: Any, problem: str) -> Malformed:
        shown = ".".join(_short(name) for name in self._path[:8]) + ("..." if len(self._path) > 8 else "")
        return Malformed(f"line {event.start_mark.line + 1}{shown and f', {shown}'}: {problem}")


def _resolved(text: str) -> Any:
    """The value of a plain scalar."""
    if text in _WORDS:
        return _WORDS[text]
    if text[0] == ".":
        return _number(text) if _POINT_FIRST.fullmatch(text) else text
    if text[0] not in "+-0123456789":
        return text
    plain = text.replace("_", "")
    if found := _INTEGER.fullmatch(plain):
        sign, *digits = found.groups()
        base, number = next((base, number) for base, number in zip((16, 2, 8, 10), digits, strict=True) if number)
        if base != 10 or len(number) < 20:
            value = int(sign + number, base)
            if -(2**63) <= value < 2**63:
                return value
            if base == 10 or (not sign and value < 2**64):
                return float(value)  # as the API server keeps it
            return text
    return _number(text) if _FLOAT.fullmatch(plain) else text


def _number(text: str) -> int | float | str:
    value = float(text.replace("_", ""))
    if math.isinf(value):
        return text
    return int(value) if value.is_integer() and -(2.0**63) <= value < 2.0**63 else value


def _short(text: str) -> str:
    return text if len(text) <= 40 else f"{text[:40]}..."
