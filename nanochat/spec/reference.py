"""The reference page of all settings, generated from the declaration: `python -m nanochat.spec.reference`.

It writes docs/settings.md; a test fails when the page is stale.
"""

from __future__ import annotations

import types
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from nanochat.spec.comments import defaults, limits, modern_default
from nanochat.spec.pipeline import PipelineSpec
from nanochat.spec.pods import PodSettings

PAGE = Path(__file__).parents[2] / "docs" / "settings.md"
HEAD = """# Settings

Generated from `nanochat/spec/` by `python -m nanochat.spec.reference`; do not edit. Paths are those of the YAML
file under `spec`, and of `--set`. Every stage also has `pod`, with the fields of `pods`. A setting
marked *key* changes what its stage makes: with another value the stage, and what depends on it, runs again. The others
can be changed at any time.

Files and the values of `--set` are read as kubectl reads them: `010` is 8, `yes` and `on` are true, `1e-3` and
`1_000` are numbers, `1:30` and dates are text. A key that is given twice is an error, and so are `.inf` and `.nan`. A
file holds one document of at most 1 MiB, nested at most 100 deep.

An address is a path (`~` is the home folder, other characters mean themselves), `file:///PATH`, in which `%20` is a
blank, `https://`, `http://`, or `s3://`, `gs://` or `abfs://` with a bucket. One that holds a user name or password
is refused.
"""


def page() -> str:
    """The page as Markdown."""
    lines = [HEAD]
    for path, section in sections(PipelineSpec, ""):
        lines.append(f"## {path or 'spec'}\n\n{(section.__doc__ or '').strip()}\n")
        lines.append("| setting | type | default | |\n|---|---|---|---|")
        known = section.model_json_schema(by_alias=True)["properties"]
        for name, info in section.model_fields.items():
            if _section(info) is None:
                alias = info.alias or name
                lines.append(_row(alias, info, known[alias]))
        lines.append("")
    return "\n".join(lines)


def sections(section: type[BaseModel], path: str) -> Iterator[tuple[str, type[BaseModel]]]:
    """All sections below one, each with its path."""
    if any(_section(info) is None for info in section.model_fields.values()):
        yield path, section
    for name, info in section.model_fields.items():
        inner = _section(info)
        if inner is not None and not (inner is PodSettings and path):  # those of stages have the same fields
            yield from sections(inner, f"{path}.{info.alias or name}".lstrip("."))


def _section(info: FieldInfo) -> type[BaseModel] | None:
    kind = info.annotation
    return kind if isinstance(kind, type) and issubclass(kind, BaseModel) else None


def _row(name: str, info: FieldInfo, schema: dict[str, Any]) -> str:
    extra = info.json_schema_extra if isinstance(info.json_schema_extra, dict) else {}
    default = "required" if info.is_required() else "; ".join(f"`{item}`" for item in defaults(info))
    if modern := modern_default(info):
        default += f" (modern: `{modern}`)"
    unit = f" ({extra['x-unit']})" if extra.get("x-unit") else ""
    key = " *key*" if extra.get("x-key", True) else ""
    about = " ".join(filter(None, [info.description, limits(schema)]))
    return f"| `{name}` | {_type(info.annotation)}{unit} | {default} | {about}{key} |"


def _type(kind: Any) -> str:
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin is typing.Annotated:
        return _type(arguments[0])
    if origin is typing.Literal:
        return " or ".join(f"`{item}`" for item in arguments)
    if origin in (typing.Union, types.UnionType):
        return " or ".join(_type(item) for item in arguments if item is not type(None))
    if origin is dict:
        return "map"
    if origin is tuple:
        return f"list of {_type(arguments[0])}"
    if isinstance(kind, type) and issubclass(kind, BaseModel):
        return "{" + ", ".join(info.alias or name for name, info in kind.model_fields.items()) + "}"
    return {"int": "integer", "float": "number", "str": "text", "bool": "true or false"}.get(
        kind.__name__, kind.__name__
    )


if __name__ == "__main__":
    PAGE.write_text(page())
