"""Reading a pipeline file, with `--set` overrides, into a checked Pipeline; every mistake becomes one sentence."""

from __future__ import annotations

import json
import typing
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo

from nanochat.spec.errors import UserError
from nanochat.spec.fields import nearest
from nanochat.spec.pipeline import Pipeline


def load_pipeline(path: Path, overrides: list[str] | None = None) -> Pipeline:
    """Read and check a pipeline file.

    `overrides` are `path=value` with paths under `spec` (for example `model.depth=6`) and values in YAML.
    Raises UserError with everything that is wrong, a line each.
    """
    try:
        data = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"no such file: {path}") from None
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"cannot read {path}: {error}") from None
    except yaml.YAMLError as error:
        raise UserError(f"{path} is not valid YAML: {' '.join(str(error).split())}") from None
    if not isinstance(data, dict):
        raise UserError(f"{path} must hold one mapping with apiVersion, kind, metadata and spec")
    for override in overrides or []:
        apply_override(data, override)
    return check_pipeline(data, where=str(path))


def apply_override(data: dict[str, Any], override: str) -> None:
    """Set one `path=value` in the data of a pipeline; list items are named by their index."""
    name, sign, text = override.partition("=")
    if not sign or not name.strip():
        raise UserError(f"--set needs path=value, for example model.depth=6; got '{override}'")
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError:
        raise UserError(f"--set {name}: the value '{text}' is not valid YAML") from None
    parts = name.strip().split(".")
    node: Any = data.setdefault("spec", {})
    for depth, part in enumerate(parts):
        last = depth == len(parts) - 1
        if isinstance(node, list):
            if not part.isdigit() or int(part) >= len(node):
                raise UserError(f"--set {name}: '{part}' must be an index below {len(node)}")
            if last:
                node[int(part)] = value
            else:
                node = node[int(part)]
        elif isinstance(node, dict):
            if last:
                node[part] = value
            else:
                if node.get(part) is None:
                    node[part] = {}
                node = node[part]
        else:
            raise UserError(f"--set {name}: '{'.'.join(parts[:depth])}' is a value and has no fields")


def check_pipeline(data: dict[str, Any], where: str = "pipeline") -> Pipeline:
    """Check plain data; raises UserError with one line for every mistake."""
    data = _as_stored(data, Pipeline, where)
    try:
        # JSON mode: strict as the API server is ("5" is no number), and YAML's names only.
        return Pipeline.model_validate_json(json.dumps(data, default=str), strict=True, by_alias=True, by_name=False)
    except ValidationError as error:
        items = error.errors(include_url=False)
        places = [item["loc"] for item in items]
        # A list whose items were refused also counts as too short: only the cause is worth a line.
        items = [i for i in items if not any(p != i["loc"] and p[: len(i["loc"])] == i["loc"] for p in places)]
        lines = [_sentence(item) for item in items]
        raise UserError(f"{where}: " + "\n".join(dict.fromkeys(lines))) from None


def _as_stored(data: Any, kind: Any, where: str) -> Any:
    """The data as an API server takes it in: without nulls where null is no value of the field, integers of 64 bits."""
    if isinstance(data, int) and not -(2**63) <= data < 2**63:
        raise UserError(f"{where}: {data} is beyond 64-bit integers")
    if isinstance(data, list):
        return [_as_stored(item, _inner(kind), where) for item in data]
    if not isinstance(data, dict):
        return data
    section = _inner(kind)
    fields = {info.alias or name: info for name, info in section.model_fields.items()} if section else {}
    return {
        name: _as_stored(value, fields[name].annotation if name in fields else None, where)
        for name, value in data.items()
        if value is not None or (section is not None and (name not in fields or _takes_null(fields[name])))
    }


def _takes_null(info: FieldInfo) -> bool:
    return type(None) in typing.get_args(info.annotation)


def _sentence(item: Any) -> str:
    place = [str(part) for part in item["loc"]]
    path = ".".join(place)
    if item["type"] == "extra_forbidden":
        section = _section(place[:-1])
        known = [info.alias or name for name, info in section.model_fields.items()] if section else []
        return f"unknown field '{path}'.{nearest(place[-1], known)}"
    if item["type"] == "missing":
        return f"'{path}' is missing"
    message = str(item["msg"]).removeprefix("Value error, ")
    if item["type"] == "value_error":
        return message
    given = item.get("input")
    shown = f" (given: {given!r})" if isinstance(given, (str, int, float, bool)) or given is None else ""
    return f"'{path}': {message[0].lower()}{message[1:]}{shown}"


def _section(place: list[str]) -> type[BaseModel] | None:
    """The section class at a path of YAML names."""
    section: Any = Pipeline
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
