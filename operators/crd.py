"""The CustomResourceDefinition of ChatPipelines, generated from `nanochat/spec` and `status_schema.py`: `python -m
operators.crd` writes it.

The API server refuses what `nanochat run` refuses: types and bounds by the structural schema, what concerns several
fields by CEL rules (`operators.crd_rules`). A test fails when the file is stale.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel
from pydantic.fields import FieldInfo

import tasks
from nanochat.spec.chatpipeline import GROUP, KIND, PLURAL, VERSION
from nanochat.spec.fields import LABEL_VALUE, Section
from nanochat.spec.pipeline import Pipeline
from nanochat.spec.pods import PodSettings
from nanochat.spec.stages import ComputeStage, Stage, TaskSelection
from nanochat.spec.training import MixturePart, TrainingStage
from operators.crd_rules import NODES, PROCESSES, RULES, Schema, rule
from operators.status_schema import PipelineStatus

FILE = Path(__file__).parents[1] / "helm" / "nanochat" / "files" / "chatpipelines.nanochat.dev.yaml"


NAME = r"^[a-z]([-a-z0-9]*[a-z0-9])?$"
KEPT = (
    "type", "enum", "pattern", "x-form", "format", "minLength", "maxLength", "minItems", "maxItems", "maxProperties",
)  # fmt: skip


def section(model: type[Section], *, brief: bool = False) -> Schema:
    """The structural schema of one section, with defaults in place; `brief` only names who describes its fields."""
    known = model.model_json_schema(by_alias=True)
    properties = {}
    for name, info in model.model_fields.items():
        alias = info.alias or name
        properties[alias] = _field(model, info, known["properties"][alias], known.get("$defs", {}), brief)
    schema: Schema = {"type": "object", "properties": properties}
    if model.__doc__ and not brief:
        schema["description"] = " ".join(model.__doc__.split())
    if known.get("required"):
        schema["required"] = known["required"]
    rules = list(RULES.get(model, ()))
    if issubclass(model, ComputeStage):
        rules += [PROCESSES, *([NODES] if issubclass(model, TrainingStage) else ())]
    if rules:
        schema["x-kubernetes-validations"] = rules
    return schema


def _field(model: type[Section], info: FieldInfo, source: Schema, defs: Schema, brief: bool) -> Schema:
    # The settings of pods are there for each stage again, and the file must not be larger than kubectl can apply.
    of_stage = issubclass(model, Stage) and info.annotation is PodSettings
    alias = info.alias or ""
    description = f"{alias} is described in spec.pods, which has its default." if brief else source["description"]
    schema = _value(source, defs, brief or of_stage) | {"description": description}
    if model in (MixturePart, TaskSelection) and alias == "task":
        schema["enum"] = sorted(tasks.names())
    if model.is_input and source.get("x-key") and not _is_section(info.annotation):
        schema["description"] += " A change runs the affected stages again."
    if info.is_required():
        return schema
    if _is_section(info.annotation):
        return schema | {"default": {}}
    value = info.get_default(call_default_factory=True, validated_data={})
    if value is not None and "x-modern" not in source:  # which default it is depends on model.recipe
        schema["default"] = _plain(value)
        if any(item.get("type") == "null" for item in source.get("anyOf", ())):
            schema["nullable"] = True  # null says something else than the default
    return schema


def _value(source: Schema, defs: Schema, brief: bool) -> Schema:
    """A value's schema without references and unions."""
    if "$ref" in source:
        name = source["$ref"].rsplit("/", 1)[1]
        models = {model.__name__: model for model in _models(Pipeline) | _models(PipelineStatus)}
        return section(models[name], brief=brief) if name in models else _value(defs[name], defs, brief)  # else an enum
    if "anyOf" in source:
        options = [item for item in source["anyOf"] if item.get("type") != "null"]
        if len(options) == 1:
            return _value(options[0], defs, brief)
        schema = {"x-kubernetes-int-or-string": True, "anyOf": [{"type": "integer"}, {"type": "string"}]}
        for item in options:
            schema |= {
                name: value for name, value in _value(item, defs, brief).items() if name not in ("type", "format")
            }
        return schema
    schema = {name: source[name] for name in KEPT if name in source}
    for bound, strict in (("minimum", "exclusiveMinimum"), ("maximum", "exclusiveMaximum")):
        if bound in source:
            schema[bound] = source[bound]
        if strict in source:
            schema |= {bound: source[strict], strict: True}
    if source.get("type") == "integer":
        schema["format"] = "int64"
    if "items" in source:
        schema["items"] = _value(source["items"], defs, brief)
    if isinstance(source.get("additionalProperties"), dict):
        schema["additionalProperties"] = _value(source["additionalProperties"], defs, brief)
    for pattern, values in source.get("patternProperties", {}).items():  # a map, by the pattern of its keys
        value = schema["additionalProperties"] = _value(values, defs, brief)
        test, message = f"key.matches('{pattern}')", "a key must be a qualified name"
        if value.get("pattern") == LABEL_VALUE:
            del value["x-form"]
            test += f" && self[key].matches('{value.pop('pattern')}')"
            message += ", and a value of letters, digits, inner '-', '_' and '.'"
        schema["x-kubernetes-validations"] = [rule(f"self.all(key, {test})", message)]
    if "const" in source:
        schema |= {"type": "string", "enum": [source["const"]]}
    return schema


def _worded(schema: Any, *, rules: bool) -> Any:
    """A schema in which texts that a pattern refuses are refused in words, by a rule; where there are to be `rules`."""
    if isinstance(schema, list):
        return [_worded(item, rules=rules) for item in schema]
    if not isinstance(schema, dict):
        return schema
    schema = {name: _worded(value, rules=rules) for name, value in schema.items()}
    words, pattern = schema.pop("x-form", None), schema.get("pattern")
    if rules and isinstance(words, str) and isinstance(pattern, str):
        del schema["pattern"]
        value = "string(self)" if schema.get("x-kubernetes-int-or-string") else "self"
        quoted = pattern.replace("\\", "\\\\").replace("'", "\\'")
        added = rule(f"{value}.matches('{quoted}')", f"must {words}")
        schema["x-kubernetes-validations"] = [*schema.get("x-kubernetes-validations", ()), added]
    return schema


def _models(root: type[Section]) -> set[type[Section]]:
    """A section and all sections below it."""
    found, left = {root}, [root]
    while left:
        for info in left.pop().model_fields.values():
            for model in _sections_in(info.annotation) - found:
                found.add(model)
                left.append(model)
    return found


def _sections_in(kind: Any) -> set[type[Section]]:
    if _is_section(kind):
        return {kind}
    return {model for argument in getattr(kind, "__args__", ()) for model in _sections_in(argument)}


def _is_section(kind: Any) -> bool:
    return isinstance(kind, type) and issubclass(kind, Section)


def _plain(value: Any) -> Any:
    if isinstance(value, BaseModel):
        # Fields without a value are left out: null is not one of them.
        return value.model_dump(mode="json", by_alias=True, exclude_none=True)
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    return value


def crd() -> Schema:
    """The whole definition."""
    top = section(Pipeline)["properties"]
    spec, status = _worded(top["spec"], rules=True), _worded(section(PipelineStatus), rules=False)
    by_type = {"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["type"]}
    status["properties"]["conditions"] |= by_type
    return {
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {"name": f"{PLURAL}.{GROUP}"},
        "spec": {
            "group": GROUP,
            "scope": "Namespaced",
            "names": {
                "kind": KIND,
                "plural": PLURAL,
                "singular": "chatpipeline",
                "shortNames": ["cp"],
                "categories": ["nanochat", "ml"],
            },
            "versions": [
                {
                    "name": VERSION,
                    "served": True,
                    "storage": True,
                    "subresources": {"status": {}},
                    "additionalPrinterColumns": [
                        _column("Phase", ".status.phase"),
                        _column("Stage", ".status.stage"),
                        _column("Progress", ".status.progress"),
                        _column("ETA", ".status.eta"),
                        _column("Loss", ".status.loss"),
                        {"name": "Cost", "type": "number", "jsonPath": ".status.cost"},
                        {"name": "Age", "type": "date", "jsonPath": ".metadata.creationTimestamp"},
                        _column("Message", ".status.message"),
                    ],
                    "schema": {
                        "openAPIV3Schema": {
                            "type": "object",
                            "description": "ChatPipeline makes a whole ChatGPT, from text to a released model: it runs "
                            "the stages that are missing in the store, and says in its status where they stand.",
                            "properties": {
                                "apiVersion": {"type": "string", "description": top["apiVersion"]["description"]},
                                "kind": {"type": "string", "description": top["kind"]["description"]},
                                "metadata": {"type": "object"},  # the API server refuses more, and describes it itself
                                "spec": spec,
                                "status": status,
                            },
                            "required": ["spec"],
                            "x-kubernetes-validations": [
                                rule(
                                    f"self.metadata.name.size() <= 32 && self.metadata.name.matches('{NAME}')",
                                    "the name must be lower-case letters, digits and '-', begin with a letter, and "
                                    "have at most 32 characters",
                                )
                            ],
                        }
                    },
                }
            ],
        },
    }


def _column(name: str, path: str) -> Schema:
    return {"name": name, "type": "string", "jsonPath": path}


def text() -> str:
    """The definition as YAML."""
    head = "# Generated from nanochat/spec by `python -m operators.crd`; do not edit.\n"
    return head + yaml.dump(crd(), Dumper=_NoAliases, sort_keys=False, width=120)


class _NoAliases(yaml.SafeDumper):
    def ignore_aliases(self, data: Any) -> bool:
        return True


if __name__ == "__main__":
    FILE.parent.mkdir(parents=True, exist_ok=True)
    FILE.write_text(text())
