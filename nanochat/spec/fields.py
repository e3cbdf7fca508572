"""What every section of the declaration is made of: strict models with camelCase names and described fields."""

from __future__ import annotations

import difflib
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, StringConstraints
from pydantic.alias_generators import to_camel
from pydantic_core import PydanticUndefined

# Every string, list and map is bounded: the cost limits of CEL rules in the API server need it.
Name = Annotated[str, StringConstraints(min_length=1, max_length=63, pattern=r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?$")]
LabelKey = Annotated[
    str,
    StringConstraints(
        min_length=1,
        max_length=317,
        pattern=r"^([a-z0-9]([-.a-z0-9]{0,251}[a-z0-9])?/)?[A-Za-z0-9]([-_.A-Za-z0-9]{0,61}[A-Za-z0-9])?$",
    ),
]
LabelValue = Annotated[
    str, StringConstraints(max_length=63, pattern=r"^([A-Za-z0-9]([-_.A-Za-z0-9]{0,61}[A-Za-z0-9])?)?$")
]
Text = Annotated[str, StringConstraints(max_length=1024)]
Uri = Annotated[str, StringConstraints(min_length=1, max_length=1024)]


def setting(
    default: Any = PydanticUndefined, help: str = "", *, key: bool = True, unit: str = "", **bounds: Any
) -> Any:
    """Declare one setting.

    `help` is one sentence; `unit` what a number counts; `key` says whether the value changes a stage's output and
    so belongs to its artifact key; `bounds` are pydantic's (ge, le, max_length, ...).
    """
    extra: dict[str, Any] = {"x-key": key}
    if unit:
        extra["x-unit"] = unit
    if callable(default):
        return Field(default_factory=default, description=help, json_schema_extra=extra, **bounds)
    return Field(default=default, description=help, json_schema_extra=extra, **bounds)


class Section(BaseModel):
    """A group of settings: unknown fields are errors, values are frozen, YAML names are lowerCamelCase."""

    model_config = ConfigDict(extra="forbid", frozen=True, alias_generator=to_camel, populate_by_name=True)

    def to_yaml_dict(self) -> dict[str, Any]:
        """The section as plain data with YAML's names."""
        return self.model_dump(mode="json", by_alias=True)

    def recipe(self) -> dict[str, Any]:
        """The settings that change what a stage makes, with YAML's names: the part of a key that is this section."""
        out: dict[str, Any] = {}
        for name, info in type(self).model_fields.items():
            extra = info.json_schema_extra
            if isinstance(extra, dict) and extra.get("x-key") is False:
                continue
            out[info.alias or name] = _plain(getattr(self, name))
        return out


def _plain(value: Any) -> Any:
    if isinstance(value, Section):
        return value.recipe()
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if isinstance(value, dict):
        return {str(k): _plain(v) for k, v in value.items()}
    return value


def nearest(name: str, known: list[str]) -> str:
    """' Did you mean X?' where a known name is near, else the list of the known ones."""
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.6)
    if not close:  # camelCase typed as snake_case, or another case
        squeezed = {item.replace("_", "").replace("-", "").lower(): item for item in known}
        found = squeezed.get(name.replace("_", "").replace("-", "").lower())
        close = [found] if found else []
    return f" Did you mean '{close[0]}'?" if close else f" Known here: {', '.join(sorted(known))}."
