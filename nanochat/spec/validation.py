"""Plain data from a file or an API server, checked against its declaration; every mistake becomes one sentence.

validate(read_document(path), Pipeline, where=str(path))
"""

from __future__ import annotations

import json
import typing
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo

from nanochat.parse import Malformed
from nanochat.parse.yaml_text import LARGEST, read_yaml
from nanochat.spec.errors import UserError
from nanochat.spec.fields import Section, nearest

S = TypeVar("S", bound=Section)

MISTAKES = 20  # are said at once
SHOWN = 80  # characters of a value that is wrong
HALVES = ("constrained-int", "function-wrap[check()]")  # pydantic's words for a number and a text with a `Form`
LIST, MAP = "a list: each item in a line that begins with '-'", "a map of names and values"
KINDS = {"tuple_type": LIST, "list_type": LIST, "dict_type": MAP}


def read_document(path: Path) -> Any:
    """The value of a YAML file; UserError where it cannot be read."""
    try:
        with path.open("rb") as file:
            return read_yaml(file.read(LARGEST + 1))
    except FileNotFoundError:
        raise UserError(f"no such file: {path}") from None
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from None
    except Malformed as error:
        raise UserError(f"{path}: {error}") from None


def validate(data: Any, kind: type[S], where: str, *, within: str = "") -> S:
    """The section that plain data declares; UserError with one line for each mistake.

    `where` begins the message, `within` is the path of the data, where it is a part of more.
    """
    try:
        # JSON mode: strict as the API server is ("5" is no number), and YAML's names only.
        text = json.dumps(kind.prepare(_as_stored(data, kind, within, where)))
        return kind.model_validate_json(text, strict=True, by_alias=True, by_name=False)
    except ValidationError as error:
        items = [item for item in error.errors(include_url=False) if not _is_other_half(item)]
        places = [item["loc"] for item in items]
        # A list whose items were refused also counts as too short: only the cause is worth a line.
        items = [i for i in items if not any(p != i["loc"] and p[: len(i["loc"])] == i["loc"] for p in places)]
        lines = list(dict.fromkeys(_sentence(item, kind, within) for item in items[: MISTAKES + 1]))
        if len(lines) > MISTAKES:
            lines[MISTAKES:] = ["and more"]
        raise UserError(f"{where}: " + "\n".join(lines)) from None


def split_unknown(data: Any, kind: type[BaseModel], within: str) -> tuple[Any, list[str]]:
    """Plain data without the fields that its declaration does not know, and a sentence for each of those."""
    if isinstance(data, list):
        parts = [split_unknown(item, kind, f"{within}[{number}]") for number, item in enumerate(data)]
        return [part for part, _ in parts], [sentence for _, said in parts for sentence in said]
    if not isinstance(data, dict):
        return data, []
    fields = {info.alias or name: info for name, info in kind.model_fields.items()}
    kept: dict[str, Any] = {}
    sentences: list[str] = []
    for name, value in data.items():
        if name not in fields:
            sentences.append(f"unknown field '{_short(f'{within}.{name}')}'.{nearest(_short(name), list(fields))}")
        elif (inner := _inner(fields[name].annotation)) is None:
            kept[name] = value
        else:
            kept[name], said = split_unknown(value, inner, f"{within}.{name}")
            sentences += said
    return kept, sentences


def _as_stored(data: Any, kind: Any, path: str, where: str) -> Any:
    """The data as an API server takes it in: without nulls where null is no value of the field."""
    if isinstance(data, str):
        if not data.isprintable() and any(char == "\0" or "\ud800" <= char <= "\udfff" for char in data):
            raise UserError(f"{where}: '{path}' holds a character that is none: NUL or half a surrogate pair")
        return data
    if isinstance(data, list):
        return [_as_stored(item, _inner(kind), f"{path}.{number}", where) for number, item in enumerate(data)]
    if not isinstance(data, dict):
        return data
    section = _inner(kind)
    fields = {info.alias or name: info for name, info in section.model_fields.items()} if section else {}
    return {
        _as_stored(name, str, path, where): _as_stored(
            value, fields[name].annotation if name in fields else None, f"{path}.{name}".lstrip("."), where
        )
        for name, value in data.items()
        if value is not None or (section is not None and (name not in fields or _takes_null(fields[name])))
    }


def _takes_null(info: FieldInfo) -> bool:
    return type(None) in typing.get_args(info.annotation)


def _is_other_half(item: Any) -> bool:
    """Whether a fault is about the kind of value that was not given, where a field takes numbers and texts."""
    return item["loc"][-1:] == (HALVES[0] if isinstance(item["input"], str) else HALVES[1],)


def _sentence(item: Any, kind: type[BaseModel], within: str) -> str:
    place = [str(part) for part in item["loc"] if part not in HALVES]
    path = _short(".".join(filter(None, [within, *place])))
    if item["type"] == "extra_forbidden":
        section = _section(place[:-1], kind)
        known = [info.alias or name for name, info in section.model_fields.items()] if section else []
        return f"unknown field '{path}'.{nearest(_short(place[-1]), known)}"
    if item["type"] == "missing":
        section = _section(place, kind)
        if section is None or any(info.is_required() for info in section.model_fields.values()):
            return f"'{path}' is missing"
        return f"'{path}' is missing or empty: write its fields, or '{path}: {{}}' where all have their defaults"
    if item["type"] == "model_type":
        return f"'{path}': must be a map of fields" if path else "must be a map of fields"
    if item["type"] in KINDS:
        return f"'{path}': must be {KINDS[item['type']]}"
    if item["type"] == "too_long":
        return f"'{path}': must have at most {item['ctx']['max_length']} items"
    if item["type"] == "too_short":
        return f"'{path}': must have at least {item['ctx']['min_length']} item{'s' * (item['ctx']['min_length'] > 1)}"
    message = str(item["msg"]).removeprefix("Value error, ")
    if item["type"] == "value_error":
        return message
    given = item.get("input")
    told = isinstance(given, (str, int, float)) or given is None
    told = told and item["type"] != "address" and "env" not in place  # which may hold a password
    advice = ""
    if item["type"] == "string_type" and isinstance(given, (int, float)):
        advice = "put it in quotes"
    elif item["type"] == "bool_type" and isinstance(given, str):
        advice = "leave out the quotes"
    remarks = "; ".join(filter(None, [f"given: {_short(repr(given))}" if told else "", advice]))
    shown = f" ({remarks})" if remarks else ""
    begins = message[0].lower() if message[1:2].islower() else message[0]
    return f"'{path}': {begins}{message[1:]}{shown}"


def _short(text: str) -> str:
    return text if len(text) <= SHOWN else f"{text[:SHOWN]}..."


def _section(place: list[str], kind: type[BaseModel]) -> type[BaseModel] | None:
    """The section class at a path of YAML names."""
    section: Any = kind
    for part in place:
        if part.isdigit():
            continue
        fields = {info.alias or name: info for name, info in section.model_fields.items()}
        if part not in fields:
            return None
        section = _inner(fields[part].annotation)
        if section is None:
            return None
    return section


def _inner(annotation: Any) -> type[BaseModel] | None:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    for argument in typing.get_args(annotation):
        found = _inner(argument)
        if found is not None:
            return found
    return None
