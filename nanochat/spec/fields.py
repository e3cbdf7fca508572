"""The parts that sections of the declaration are made of: strict models with camelCase names and described fields."""

from __future__ import annotations

import difflib
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field, StringConstraints
from pydantic.alias_generators import to_camel
from pydantic_core import PydanticCustomError, PydanticUndefined, core_schema

from nanochat.parse import Malformed, address
from nanochat.spec.comments import Form, comment


@dataclass(frozen=True, slots=True)
class AddressOf:
    """A text that is an address of a kind: checked by `resolve` here, by the kind's pattern in the API server."""

    kind: address.Kind

    def check(self, text: str) -> str:
        """The address as it is used."""
        try:
            return address.resolve(text, self.kind).text
        except Malformed as error:
            raise PydanticCustomError("address", "{problem}", {"problem": str(error)}) from None

    def __get_pydantic_core_schema__(self, source: Any, handler: Any) -> Any:
        return core_schema.no_info_after_validator_function(self.check, handler(source))

    def __get_pydantic_json_schema__(self, schema: Any, handler: Any) -> dict[str, Any]:
        return handler(schema) | {"pattern": self.kind.pattern, "x-form": f"be {self.kind.words}"}


MOST = 10**12  # of what is counted: tokens, steps, rows
YEAR = 365 * 86_400  # seconds

# Every string, list and map is bounded: the cost limits of CEL rules in the API server need it.
Name = Annotated[
    str,
    StringConstraints(min_length=1, max_length=63, pattern=r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?$"),
    Form("consist of lower-case letters, digits and inner '-'"),
]
LabelKey = Annotated[
    str,
    StringConstraints(
        min_length=1,
        max_length=317,
        pattern=r"^([a-z0-9]([-.a-z0-9]{0,251}[a-z0-9])?/)?[A-Za-z0-9]([-_.A-Za-z0-9]{0,61}[A-Za-z0-9])?$",
    ),
    Form("be a qualified name such as example.com/zone"),
]
ArtifactKey = Annotated[
    str,
    StringConstraints(pattern=r"^[0-9a-f]{32}$"),
    Field(json_schema_extra={"minLength": 32, "maxLength": 32}),  # which the pattern says too, and in words
    Form("be 32 hexadecimal digits"),
]
LABEL_VALUE = r"^([A-Za-z0-9]([-_.A-Za-z0-9]{0,61}[A-Za-z0-9])?)?$"
LabelValue = Annotated[
    str,
    StringConstraints(max_length=63, pattern=LABEL_VALUE),
    Form("consist of letters, digits, inner '-', '_' and '.'"),
]
Text = Annotated[str, StringConstraints(max_length=1024)]
_Address = Annotated[str, StringConstraints(min_length=1, max_length=address.LONGEST)]
FileAddress = Annotated[_Address, AddressOf(address.FILE)]
BaseAddress = Annotated[_Address, AddressOf(address.BASE)]
IdentityAddress = Annotated[_Address, AddressOf(address.IDENTITY)]
StoreAddress = Annotated[_Address, AddressOf(address.STORE)]
ServerAddress = Annotated[_Address, AddressOf(address.SERVER)]
TrackingAddress = Annotated[_Address, AddressOf(address.TRACKING)]


def setting(
    default: Any = PydanticUndefined,
    help: str = "",
    *,
    modern: Any = None,
    key: bool | Literal["changed"] = True,
    unit: str = "",
    **bounds: Any,
) -> Any:
    """Declare one setting.

    `help` is a sentence or two with the field as subject, to which its limits and default are added (`comments.py`);
    `modern` is the default where model.recipe is modern, if that is another; `unit` is what a number counts; `key`
    says whether the value changes a stage's output and so belongs to its artifact key: "changed" where only one that is
    not the default does, for a setting that is younger than its stage's keys; `bounds` are pydantic's (ge, le,
    max_length, ...). A number without `le` gets a largest value; of those that programs write `le` is None.
    """
    if bounds.keys() & {"ge", "gt"} and "le" not in bounds:
        bounds["le"] = YEAR if unit == "seconds" else MOST
    extra: dict[str, Any] = {"x-key": key}
    if modern is not None:
        extra["x-modern"] = modern
    if unit:
        extra["x-unit"] = unit
    if callable(default):
        return Field(default_factory=default, description=help, json_schema_extra=extra, **bounds)
    return Field(default=default, description=help, json_schema_extra=extra, **bounds)


class Section(BaseModel):
    """A group of settings: unknown fields are errors, values are frozen, YAML names are lowerCamelCase."""

    is_input: ClassVar[bool] = True  # people write it, so that comments ask for the limits

    model_config = ConfigDict(
        extra="forbid", frozen=True, alias_generator=to_camel, populate_by_name=True, allow_inf_nan=False
    )

    @classmethod
    def __get_pydantic_json_schema__(cls, core_schema: Any, handler: Any) -> dict[str, Any]:
        """The JSON schema, with whole comments as descriptions."""
        schema = handler(core_schema)
        properties = handler.resolve_ref_schema(schema)["properties"]
        for name, info in cls.model_fields.items():
            field = properties[info.alias or name]
            field["description"] = comment(info, field, must=cls.is_input)
        return schema

    @classmethod
    def prepare(cls, data: Any) -> Any:
        """Plain data as it is checked: with defaults that depend on other settings."""
        return data

    def to_yaml_dict(self) -> dict[str, Any]:
        """The section as plain data with YAML's names."""
        return self.model_dump(mode="json", by_alias=True)

    def recipe(self) -> dict[str, Any]:
        """The settings that change what a stage makes, with YAML's names: the part of a key that is this section."""
        out: dict[str, Any] = {}
        for name, info in type(self).model_fields.items():
            value, extra = getattr(self, name), info.json_schema_extra
            key = extra.get("x-key") if isinstance(extra, dict) else True
            if key is False or (key == "changed" and value == info.default):
                continue
            out[info.alias or name] = _plain(value)
        return out


def _plain(value: Any) -> Any:
    if isinstance(value, Section):
        return value.recipe()
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if isinstance(value, dict):
        return {str(k): _plain(v) for k, v in value.items()}
    return value


def with_modern_defaults(data: dict[str, Any], kind: type[BaseModel]) -> dict[str, Any]:
    """The plain data of a section, in which what is not given has the modern recipe's default."""
    filled = dict(data)
    for name, info in kind.model_fields.items():
        alias, extra = info.alias or name, info.json_schema_extra
        if isinstance(info.annotation, type) and issubclass(info.annotation, Section):
            given = data.get(alias, {})
            if isinstance(given, dict) and (inner := with_modern_defaults(given, info.annotation)):
                filled[alias] = inner
        elif isinstance(extra, dict) and "x-modern" in extra:
            filled.setdefault(alias, extra["x-modern"])
    return filled


def nearest(name: str, known: list[str]) -> str:
    """' Did you mean X?' where a known name is near, else the list of the known ones."""
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.6)
    if not close:  # camelCase typed as snake_case, or another case
        squeezed = {item.replace("_", "").replace("-", "").lower(): item for item in known}
        found = squeezed.get(name.replace("_", "").replace("-", "").lower())
        close = [found] if found else []
    return f" Did you mean '{close[0]}'?" if close else f" Known here: {', '.join(sorted(known))}."
