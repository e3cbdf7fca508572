"""The CustomResourceDefinition of ChatPipelines, generated from `nanochat/spec`: `python -m operators.crd` writes it.

The API server refuses what `nanochat run` refuses: types and bounds by the structural schema, what concerns several
fields by CEL rules. A test fails when the file is stale.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel
from pydantic.fields import FieldInfo

import tasks
from nanochat.spec.chatpipeline import GROUP, KIND, PLURAL, VERSION
from nanochat.spec.pipeline import PipelineSpec
from nanochat.spec.pods import EnvFrom, EnvSource, EnvVar
from nanochat.spec.stages import MixturePart, Stages, TaskSelection

FILE = Path(__file__).parents[1] / "helm" / "nanochat" / "files" / "chatpipelines.nanochat.dev.yaml"
Schema = dict[str, Any]


def rule(expression: str, message: str) -> Schema:
    return {"rule": expression, "message": message}


RULES: dict[type[BaseModel], list[Schema]] = {
    PipelineSpec: [
        *(
            rule(
                "!has(self.stages) || !has(self.model) || "  # `{}`, before its fields get their defaults
                f"self.stages.{stage}.totalBatchTokens % self.model.sequenceLength == 0",
                f"stages.{stage}.totalBatchTokens must be a multiple of model.sequenceLength",
            )
            for stage in ("base", "mid")
        ),
        rule(
            "!has(self.store) || !has(oldSelf.store) || self.store == oldSelf.store",
            "store cannot change: make a pipeline of another name, which finds nothing of this one's artifacts there",
        ),
    ],
    Stages: [
        rule(
            f"!has(self.{stage}) || self.{stage}.enabled",
            f"stages.{stage} cannot be disabled: later stages read what it makes",
        )
        for stage in ("dataset", "tokenizer", "tokens", "base")
    ],
    EnvVar: [rule("has(self.value) != has(self.valueFrom)", "exactly one of value and valueFrom is needed")],
    EnvSource: [
        rule(
            "has(self.secretKeyRef) != has(self.configMapKeyRef)",
            "valueFrom needs exactly one of secretKeyRef and configMapKeyRef",
        )
    ],
    EnvFrom: [
        rule(
            "has(self.secretRef) != has(self.configMapRef)",
            "envFrom needs exactly one of secretRef and configMapRef",
        )
    ],
}
NAME = r"^[a-z]([-a-z0-9]*[a-z0-9])?$"
KEPT = (
    "type", "enum", "pattern", "format", "minLength", "maxLength", "minItems", "maxItems", "maxProperties",
)  # fmt: skip


def section(model: type[BaseModel]) -> Schema:
    """The structural schema of one section, with defaults in place."""
    known = model.model_json_schema(by_alias=True)
    properties = {}
    for name, info in model.model_fields.items():
        alias = info.alias or name
        properties[alias] = _field(model, info, known["properties"][alias], known.get("$defs", {}))
    schema: Schema = {"type": "object", "properties": properties}
    if model.__doc__:
        schema["description"] = " ".join(model.__doc__.split())
    if known.get("required"):
        schema["required"] = known["required"]
    if model in RULES:
        schema["x-kubernetes-validations"] = RULES[model]
    return schema


def _field(model: type[BaseModel], info: FieldInfo, source: Schema, defs: Schema) -> Schema:
    schema = _value(info.annotation, source, defs)
    schema["description"] = info.description
    if model in (MixturePart, TaskSelection) and info.alias == "task":
        schema["enum"] = sorted(tasks.names())
    if info.is_required():
        return schema
    if _is_section(info.annotation):
        return schema | {"default": {}}
    value = info.get_default(call_default_factory=True, validated_data={})
    if value is not None:
        schema["default"] = _plain(value)
        if any(item.get("type") == "null" for item in source.get("anyOf", ())):
            schema["nullable"] = True  # null says something else than the default
    return schema


def _value(kind: Any, source: Schema, defs: Schema) -> Schema:
    """A value's schema without references and unions."""
    if "$ref" in source:
        model = next(m for m in _models(PipelineSpec) if m.__name__ == source["$ref"].rsplit("/", 1)[1])
        return section(model)
    if "anyOf" in source:
        options = [item for item in source["anyOf"] if item.get("type") != "null"]
        if len(options) == 1:
            return _value(kind, options[0], defs)
        schema = {"x-kubernetes-int-or-string": True, "anyOf": [{"type": "integer"}, {"type": "string"}]}
        for item in options:
            schema |= {
                name: value for name, value in _value(kind, item, defs).items() if name not in ("type", "format")
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
        schema["items"] = _value(kind, source["items"], defs)
    for pattern, values in source.get("patternProperties", {}).items():  # a map, by the pattern of its keys
        schema["additionalProperties"] = _value(kind, values, defs)
        message = "a key must be a qualified name"
        schema["x-kubernetes-validations"] = [rule(f"self.all(key, key.matches('{pattern}'))", message)]
    if "const" in source:
        schema |= {"type": "string", "enum": [source["const"]]}
    return schema


def _models(root: type[BaseModel]) -> set[type[BaseModel]]:
    """All sections below one, and it."""
    found, left = {root}, [root]
    while left:
        for info in left.pop().model_fields.values():
            for model in _sections_in(info.annotation) - found:
                found.add(model)
                left.append(model)
    return found


def _sections_in(kind: Any) -> set[type[BaseModel]]:
    if _is_section(kind):
        return {kind}
    return {model for argument in getattr(kind, "__args__", ()) for model in _sections_in(argument)}


def _is_section(kind: Any) -> bool:
    return isinstance(kind, type) and issubclass(kind, BaseModel)


def _plain(value: Any) -> Any:
    if isinstance(value, BaseModel):
        # Fields without a value are left out: null is not one of them.
        return value.model_dump(mode="json", by_alias=True, exclude_none=True)
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    return value


# ---- status -----------------------------------------------------------------------------------------------------

TEXT: Schema = {"type": "string"}
COUNT: Schema = {"type": "integer", "format": "int64"}
NUMBER: Schema = {"type": "number"}
TIME: Schema = {"type": "string", "format": "date-time"}
MAP: Schema = {"type": "object", "additionalProperties": TEXT}


def _object(description: str, **properties: Schema) -> Schema:
    return {"type": "object", "description": description, "properties": properties}


def _list(items: Schema) -> Schema:
    return {"type": "array", "items": items}


def _said(schema: Schema, description: str) -> Schema:
    return schema | {"description": description}


def status() -> Schema:
    """The schema of what the controller says."""
    stage = _object(
        "Where a stage stands.",
        name=TEXT, phase=TEXT, message=TEXT, why=_said(TEXT, "Why its output had to be made."), attempts=COUNT,
        step=COUNT, total=COUNT, rate=TEXT, loss=NUMBER, eta=_said(NUMBER, "Seconds to its end."), started=TIME,
        ended=TIME, keys=_said(MAP, "Keys of its artifacts."),
    )  # fmt: skip
    attempt = _object(
        "One attempt of a stage.",
        stage=TEXT, number=COUNT, job=_said(TEXT, "Its PyTorchJob."), reason=_said(TEXT, "Its outcome."), message=TEXT,
        started=TIME, ended=TIME, nodes=_said(_list(TEXT), "Nodes that its pods ran on."),
        batch=_said(COUNT, "Device batch size."),
    )  # fmt: skip
    profile = _object(
        "The store, as it was when the pipeline began.",
        root=TEXT, endpoint=TEXT, region=TEXT, anonymous={"type": "boolean"}, tracking=TEXT, secret=TEXT,
        serviceAccount=TEXT,
    )  # fmt: skip
    condition = _object(
        "A condition.", type=TEXT, status=TEXT, reason=TEXT, message=TEXT, lastTransitionTime=TIME,
        observedGeneration=COUNT,
    )  # fmt: skip
    return _object(
        "Where the pipeline stands.",
        observedGeneration=_said(COUNT, "Generation of the spec that is carried out."),
        phase=_said(TEXT, "One word for all."),
        message=_said(TEXT, "Why."),
        stage=_said(TEXT, "The stage to look at."),
        progress=_said(TEXT, "Its step of all its steps."),
        eta=_said(TEXT, "Time to its end."),
        loss=_said(TEXT, "Its loss."),
        core=_said(TEXT, "CORE of the base model."),
        started=TIME,
        finished=TIME,
        run=_said(TEXT, "The run's folder below the store's root."),
        retriedAt=_said(TEXT, "The retry that was carried out last."),
        gpuHours=NUMBER,
        cost=_said(NUMBER, "Price of the GPU hours."),
        horizon=_said(MAP, "What the pipeline trains, and for how long."),
        stages=_list(stage),
        attempts=_said(_list(attempt), "The last attempts; all are in the run's folder."),
        profile=profile,
        access=_said(MAP, "Where the logs and the report are read, with the token for it."),
        queue=_said(MAP, "What Kueue says of the job that waits."),
        conditions=_list(condition) | {"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["type"]},
    )


def crd() -> Schema:
    """The whole definition."""
    condition = status()["properties"]["conditions"]
    condition["items"]["required"] = ["type", "status"]
    told = status()
    told["properties"]["conditions"] = condition
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
                        {"name": "Age", "type": "date", "jsonPath": ".metadata.creationTimestamp"},
                        _column("Message", ".status.message", wide=True),
                    ],
                    "schema": {
                        "openAPIV3Schema": {
                            "type": "object",
                            "description": "A whole ChatGPT, from text to a released model.",
                            "properties": {
                                "apiVersion": TEXT,
                                "kind": TEXT,
                                "metadata": {"type": "object"},
                                "spec": section(PipelineSpec) | {"default": {}},
                                "status": told,
                            },
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


def _column(name: str, path: str, *, wide: bool = False) -> Schema:
    return {"name": name, "type": "string", "jsonPath": path} | ({"priority": 1} if wide else {})


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
