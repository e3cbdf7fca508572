"""Reading a pipeline file, with `--set` overrides, into a checked Pipeline."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from nanochat.parse import Malformed
from nanochat.parse.yaml_text import read_yaml
from nanochat.spec.errors import UserError
from nanochat.spec.pipeline import Pipeline
from nanochat.spec.validation import read_document, validate

DEEPEST_PATH = 16  # names in the path of an override


def load_pipeline(path: Path, overrides: list[str] | None = None) -> Pipeline:
    """Read and check a pipeline file.

    `overrides` are `path=value` with paths under `spec` (for example `model.depth=6`) and values in YAML.
    Raises UserError with everything that is wrong, a line each.
    """
    data = read_document(path)
    if not isinstance(data, dict):
        raise UserError(f"{path} must hold one mapping with apiVersion, kind, metadata and spec")
    if data.get("spec") is not None:  # else it is refused below, whatever is set
        for override in overrides or []:
            apply_override(data, override)
    return check_pipeline(data, where=str(path))


def apply_override(data: dict[str, Any], override: str) -> None:
    """Set one `path=value` in the data of a pipeline; list items are named by their index."""
    name, sign, text = override.partition("=")
    if not sign or not name.strip():
        raise UserError(f"--set needs path=value, for example model.depth=6; got '{override[:80]}'")
    parts = name.strip().split(".")
    if len(parts) > DEEPEST_PATH:
        raise UserError(f"--set {name[:80]}...: a path has at most {DEEPEST_PATH} names")
    try:
        value = read_yaml(text)
    except Malformed as error:
        raise UserError(f"--set {name}: {str(error).removeprefix('line 1: ')}") from None
    node: Any = data["spec"]
    for depth, part in enumerate(parts):
        last = depth == len(parts) - 1
        if isinstance(node, list):
            if not (part.isascii() and part.isdigit() and len(part) < 10 and int(part) < len(node)):
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
    return validate(data, Pipeline, where)
