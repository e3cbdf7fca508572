"""The JSON of `nanochat bench` as programs may rely on it."""

from __future__ import annotations

from typing import Any

SPREAD = {
    "type": "object",
    "properties": {name: {"type": "number"} for name in ("median", "low", "high")} | {"rounds": {"type": "integer"}},
    "required": ["median", "low", "high", "rounds"],
    "additionalProperties": False,
}
MACHINE = {
    "type": "object",
    "properties": {
        "device": {"type": "string"},
        "torch": {"type": "string"},
        "precision": {"enum": ["bfloat16", "float32"]},
        "threads": {"type": "integer"},
        "products": {"type": "object", "additionalProperties": {"type": "number", "exclusiveMinimum": 0}},
        **{name: {"type": "number", "exclusiveMinimum": 0} for name in ("bound", "memory", "disk", "store")},
    },
    "required": ["device", "torch", "precision", "threads", "products", "bound", "memory", "disk", "store"],
    "additionalProperties": False,
}
COST = {
    "type": "object",
    "properties": {
        "kind": {"type": "string"},
        "largest": {"type": "string", "maxLength": 100},
        "seconds": {"type": "number", "minimum": 0},
        "share": {"type": "number", "minimum": 0, "maximum": 1},
    },
    "required": ["kind", "largest", "seconds", "share"],
    "additionalProperties": False,
}
MEASURED: dict[str, Any] = {
    "type": "object",
    "properties": {
        "name": {"type": "string"},
        "figures": {"type": "object", "additionalProperties": SPREAD},
        "parts": {"type": "object", "additionalProperties": {"type": "number", "minimum": 0}},
        "costs": {"type": "array", "items": COST},
    },
    "required": ["name", "figures", "parts", "costs"],
    "additionalProperties": SPREAD,
}
RATIO = {
    "type": "object",
    "properties": {
        "first": {"type": "string"},
        "second": {"type": "string"},
        "seconds": SPREAD,
        "cpu_seconds": SPREAD,
    },
    "required": ["first", "second", "seconds", "cpu_seconds"],
    "additionalProperties": False,
}
DOCUMENT = {
    "type": "object",
    "properties": {
        "bench": {"enum": ["train", "data", "checkpoint", "startup"]},
        "stage": {"enum": ["base", "sft", "rl"]},
        "shape": {"type": "object"},
        "processes": {"type": "integer", "minimum": 1},
        "machine": MACHINE,
        "measured": {"type": "array", "items": MEASURED, "minItems": 1},
        "times_faster": {"type": "array", "items": RATIO},
    },
    "required": ["bench", "shape", "machine", "measured", "times_faster"],
    "additionalProperties": False,
}
