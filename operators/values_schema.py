"""The parts of the chart's values.schema.json that `nanochat/spec` and the controller's configuration declare.

`python -m operators.values_schema` writes them into the definitions `server`, `registry`, `labels`, `annotations`,
`Pool`, `StoreProfile` and what those two refer to; all else in the file is written by hand. A test fails when it is
stale.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, TypeAdapter

from nanochat.parse.address import LONGEST, SERVER
from nanochat.spec.fields import LabelKey
from nanochat.spec.pipeline import Annotation
from nanochat.spec.pods import REGISTRY, Labels
from nanochat.spec.quantity import NATIVE
from operators.config import Pool, StoreProfile

FILE = Path(__file__).parents[1] / "helm" / "nanochat" / "values.schema.json"
Schema = dict[str, Any]


def definitions() -> dict[str, Schema]:
    """The generated definitions by name."""
    found: dict[str, Schema] = {}
    for model in (Pool, StoreProfile):
        schema = model.model_json_schema(by_alias=True, ref_template="#/definitions/{model}")
        found |= schema.pop("$defs", {}) | {model.__name__: schema}
    properties = found["StoreProfile"]["properties"]
    # In the values a Secret's name; the chart mounts it and tells the controller the folder.
    what = (
        "controllerSecret is the name of a Secret in the release's namespace with the same keys, for the controller "
        "and MLflow. By default there is none."
    )
    properties["controllerSecret"] = properties["secret"] | {"description": what}
    what = (
        "readerSecret is the name of one in the release's namespace with keys that may only read, for the server. "
        "Defaults to controllerSecret."
    )
    properties["readerSecret"] = properties["secret"] | {"description": what}
    what = "readerEndpoint is the address where these keys hold. Defaults to endpoint."
    properties["readerEndpoint"] = properties["endpoint"] | {"description": what}
    del properties["credentials"]
    _only_possible(found)
    # What is written by hand refers to these; in values the empty text stands for none.
    found["labels"] = TypeAdapter(Labels).json_schema()
    found["annotations"] = TypeAdapter(Annotated[dict[LabelKey, Annotation], Field(max_length=100)]).json_schema()
    found["registry"] = {"type": "string", "maxLength": 512, "pattern": REGISTRY}
    found["server"] = {"type": "string", "maxLength": LONGEST, "pattern": f"^$|{SERVER.pattern}"}
    return {name: _plain(schema) for name, schema in sorted(found.items())}


def _only_possible(found: dict[str, Schema]) -> None:
    """Say of amounts and tolerations what their sections check, as far as a schema can; templates compare the rest."""
    for amounts in found["Resources"]["properties"].values():
        (quantity,) = amounts["patternProperties"].values()
        devices = {
            "anyOf": [
                {"type": "integer", "minimum": 0, "maximum": 10**18},
                {"type": "string", "pattern": "^[0-9]+$", "maxLength": 18},
            ]
        }
        amounts["patternProperties"] = {f"^({'|'.join(NATIVE)}|hugepages-.+)$": quantity, "^[^/]+/[^/]+$": devices}
    exists = {"required": ["operator"], "properties": {"operator": {"const": "Exists"}}}
    no_execute = {"required": ["effect"], "properties": {"effect": {"const": "NoExecute"}}}
    found["Toleration"]["allOf"] = [
        {"if": exists, "then": {"properties": {"value": {"maxLength": 0}}}, "else": {"required": ["key"]}},
        {"if": {"required": ["tolerationSeconds"]}, "then": no_execute},
    ]


def _plain(schema: Any) -> Any:
    """A schema as draft-07, without what only the declaration uses: no null, which in values removes a default."""
    if isinstance(schema, list):
        return [_plain(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    options = [item for item in schema.get("anyOf", ()) if item.get("type") != "null"]
    if len(options) == 1:
        schema = {name: value for name, value in schema.items() if name != "anyOf"} | options[0]
    elif options:
        schema = schema | {"anyOf": options}
    kept = {name: value for name, value in schema.items() if name[:2] != "x-" and name not in ("title", "default")}
    if "properties" in kept:
        kept["properties"] = {name: _plain(value) for name, value in kept["properties"].items()}
    if "patternProperties" in kept:
        kept["additionalProperties"] = False
    if "description" in kept:
        kept["description"] = " ".join(kept["description"].split())
    if "$ref" in kept:
        return {"$ref": kept["$ref"]}  # draft-07 ignores what stands beside a reference
    return {name: value if name == "properties" else _plain(value) for name, value in kept.items()}


def text() -> str:
    """The file with its generated definitions made anew."""
    schema = json.loads(FILE.read_text(encoding="utf-8"))
    schema["definitions"] |= definitions()
    return _written(schema) + "\n"


def _written(value: Any, indent: int = 0) -> str:
    """JSON that people can edit: what fits a line is on one."""
    short = json.dumps(value)
    if not isinstance(value, (dict, list)) or (indent and indent + len(short) <= 110):
        return short
    pad, opening, closing = " " * (indent + 2), *("{}" if isinstance(value, dict) else "[]")
    items = value.items() if isinstance(value, dict) else (("", item) for item in value)
    lines = [f"{pad}{json.dumps(name) + ': ' if name else ''}{_written(item, indent + 2)}" for name, item in items]
    return f"{opening}\n" + ",\n".join(lines) + f"\n{' ' * indent}{closing}"


if __name__ == "__main__":
    FILE.write_text(text(), encoding="utf-8")
