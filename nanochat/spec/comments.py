"""The comment of a field: the declared sentences, then the limits and the default that follow from the declaration.

    comment(info, schema)   # "depth is the number of transformer blocks. Must be between 1 and 256. Defaults to 20."

`info` is the field as pydantic has it, `schema` its JSON schema. `kubectl explain`, docs/settings.md and the chart's
values.schema.json are made of these.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo
from pydantic_core import PydanticCustomError, core_schema

SIZES = (("minLength", "maxLength", "characters"), ("minItems", "maxItems", "items"), ("", "maxProperties", "entries"))


@dataclass(frozen=True, slots=True)
class Form:
    """Words for the pattern of a text, which follow "must" in its comment and where a text is refused."""

    words: str

    def check(self, value: Any, handler: Any) -> Any:
        """The value, where it has the form."""
        try:
            return handler(value)
        except ValidationError as error:
            if any(item["type"] == "string_pattern_mismatch" for item in error.errors(include_url=False)):
                raise PydanticCustomError("form", "must {words}", {"words": self.words}) from None
            raise

    def __get_pydantic_core_schema__(self, source: Any, handler: Any) -> Any:
        return core_schema.no_info_wrap_validator_function(self.check, handler(source))

    def __get_pydantic_json_schema__(self, schema: Any, handler: Any) -> dict[str, Any]:
        return handler(schema) | {"x-form": self.words}


def comment(info: FieldInfo, schema: dict[str, Any], *, must: bool = True) -> str:
    """All sentences about a field; `must` is False where the controller writes the value and nobody else."""
    default = "; ".join(defaults(info))
    said = {"": "", "empty": "Empty by default."}.get(default, f"Defaults to {default}{_modern(info)}.")
    return " ".join(filter(None, [info.description, limits(schema, must=must), said]))


def limits(schema: dict[str, Any], *, must: bool = True) -> str:
    """The sentence about a value's limits; '' where there are none."""
    options = [item for item in schema.get("anyOf", (schema,)) if item.get("type") != "null"]
    phrases = list(_phrases(options[-1]))
    if not must:
        phrases = [re.sub("^be ", "is ", re.sub("^have ", "has ", phrase)) for phrase in phrases]
    sentence = ", and ".join(phrases) + "." if phrases else ""
    return f"Must {sentence}" if sentence and must else sentence[:1].upper() + sentence[1:]


def _phrases(schema: dict[str, Any]) -> Iterator[str]:
    low, above, high = (schema.get(name) for name in ("minimum", "exclusiveMinimum", "maximum"))
    if above is not None:
        yield f"be greater than {above}" + (f" and at most {high}" if high is not None else "")
    elif low is not None or high is not None:
        yield f"be {_range(low, high)}"
    if "x-form" in schema:
        yield schema["x-form"]
    for least, most, noun in SIZES:
        if most in schema:
            longest = schema.get("items", {}).get("maxLength")
            each = f" of at most {longest} characters" if longest else ""
            yield f"have {_range(schema.get(least), schema[most])} {noun}{each}"


def _range(low: Any, high: Any) -> str:
    if high is None:
        return f"at least {low}"
    return f"at most {high}" if low is None else f"between {low} and {high}"


def defaults(info: FieldInfo) -> list[str]:
    """The default value, item by item: none of a field that is required, has no value or is a section."""
    value: Any = None if info.is_required() else info.get_default(call_default_factory=True, validated_data={})
    if value is None or isinstance(value, BaseModel):
        return []
    if isinstance(value, tuple):
        return [_item(item) for item in value] or ["empty"]
    if value == {}:
        return ["empty"]
    return [_shown(value)]


def _shown(value: Any) -> str:
    return (
        str(value).lower() if isinstance(value, bool) else f"{value:.12g}" if isinstance(value, float) else str(value)
    )


def modern_default(info: FieldInfo) -> str:
    """The default where model.recipe is modern; '' where that makes no difference."""
    extra = info.json_schema_extra
    return _shown(extra["x-modern"]) if isinstance(extra, dict) and "x-modern" in extra else ""


def _modern(info: FieldInfo) -> str:
    value = modern_default(info)
    return f", modern to {value}" if value else ""


def _item(value: Any) -> str:
    if isinstance(value, BaseModel):
        data = value.model_dump(by_alias=True, exclude_defaults=True)
        return " ".join(str(item) if name == "task" else f"{name}={item}" for name, item in data.items())
    return str(value)
