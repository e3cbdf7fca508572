"""Every number, text, list and map of the declaration and of the controller's configuration has a bound."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from nanochat.pipeline.profiles import DeclaredProfile
from nanochat.pipeline.resolve import horizon
from nanochat.spec.environment import integer
from nanochat.spec.errors import UserError
from nanochat.spec.fields import Section
from nanochat.spec.load import check_pipeline
from nanochat.spec.pipeline import Pipeline
from operators import values_schema
from operators.config import Config

BOUNDS = {
    "integer": [{"minimum", "exclusiveMinimum"}, {"maximum", "exclusiveMaximum"}],
    "number": [{"minimum", "exclusiveMinimum"}, {"maximum", "exclusiveMaximum"}],
    "string": [{"maxLength", "enum", "const"}],
    "array": [{"maxItems"}],
    "object": [{"maxProperties", "properties"}],
    "boolean": [],
}


def unbounded(schema: Any, path: str, known: dict[str, Any]) -> Iterator[str]:
    """The paths of values without bounds; `known` has the sections that the schema refers to."""
    if "$ref" in schema:
        schema = known[schema["$ref"].rpartition("/")[2]]
    for option in schema.get("anyOf", ()):
        yield from unbounded(option, path, known)
    kind = schema.get("type", "null")
    if kind != "null" and not all(bound & schema.keys() for bound in BOUNDS[kind]):
        yield path
    for name, inner in schema.get("properties", {}).items():
        yield from unbounded(inner, f"{path}.{name}", known)
    maps = [schema.get("additionalProperties"), *schema.get("patternProperties", {}).values(), schema.get("items")]
    for inner in maps:
        if isinstance(inner, dict):
            yield from unbounded(inner, f"{path}[]", known)


@pytest.mark.parametrize("section", [Pipeline, Config, DeclaredProfile])
def test_everything_has_a_bound(section: type[Section]) -> None:
    schema = section.model_json_schema(by_alias=True)
    assert sorted(set(unbounded(schema, section.__name__, schema.get("$defs", {})))) == []


def test_every_value_of_the_chart_has_a_bound() -> None:
    """But what is Kubernetes' own and passed on as it is: affinities, network rules, a scaler's behaviour."""
    schema = json.loads(values_schema.FILE.read_text())
    found = set(unbounded(schema, "", schema["definitions"]))
    own = re.compile(r"\.(global|affinity|behavior|valueFrom|parentRefs\[\]|\w+(From|To)\[\]|(ingress|egress)\[\])$")
    assert sorted(path for path in found if not own.search(path)) == []


def document(**spec: Any) -> dict[str, Any]:
    head = {"apiVersion": "nanochat.dev/v1alpha1", "kind": "ChatPipeline", "metadata": {"name": "x"}}
    return {**head, "spec": spec}


@pytest.mark.parametrize("number", [float("inf"), float("-inf"), float("nan"), 1e300, -1, 2**63, 10**400])
@pytest.mark.parametrize("field", ["matrixLr", "gradClip", "checkpointEverySeconds", "steps", "tokensPerParameter"])
def test_numbers_out_of_bounds_are_refused(field: str, number: float) -> None:
    with pytest.raises(UserError) as caught:
        check_pipeline(document(stages={"base": {field: number}}))
    assert f"'spec.stages.base.{field}'" in caught.value.message
    assert len(caught.value.message) < 300 and len(caught.value.message.splitlines()) == 1


def test_the_shards_of_a_horizon_are_bounded() -> None:
    text = {"kind": "world", "charactersPerShard": 1000}
    spec = check_pipeline(document(sources={"text": text}, stages={"base": {"steps": 10**9}})).spec
    with pytest.raises(UserError, match="at most 100,000 are read"):
        horizon(spec)


@pytest.mark.parametrize(
    "path", ["{revision.__class__}", "{index:099999999d}", "{index!r}", "{}", "a{", "{{index}}", "{name}"]
)
def test_templates_of_paths_hold_nothing_else(path: str) -> None:
    with pytest.raises(UserError, match=r"'spec\.sources\.text\.path'"):
        check_pipeline(document(sources={"text": {"path": path}}))


@pytest.mark.parametrize("text", ["abc", "-1", "1.5", "1e3", " 1", "²", "9" * 5000, "1048577", "0x1"])
def test_numbers_of_the_environment_are_bounded(monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    monkeypatch.setenv("RANK", text)
    with pytest.raises(UserError, match=r"RANK is .*: set it to a whole number from 0 to 1,048,576") as caught:
        integer("RANK", 0)
    assert len(caught.value.message) < 200


def test_numbers_of_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "07")
    assert integer("RANK", 0) == 7
    monkeypatch.setenv("RANK", "")
    assert integer("RANK", 3) == 3


def test_a_configuration_is_read_as_kubectl_reads_it(tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    path.write_text("image: a\nprofiles: {default: {root: s3://b, anonymous: yes}}\nstorePatienceSeconds: 0100\n")
    found = Config.load(path)
    assert found.profiles["default"].anonymous is True and found.store_patience_seconds == 64
    path.write_text("image: a\nprofiles: {default: {root: s3a://b}}\nimage: b\n")
    with pytest.raises(UserError, match="'image' is given twice, in lines 1 and 3"):
        Config.load(path)
    path.write_text("image: a\nprofiles: {default: {root: s3a://b, endpoint: s3:9000}}\n")
    with pytest.raises(UserError) as caught:
        Config.load(path)
    assert "'profiles.default.root': s3a:// is not known here: write s3://" in caught.value.message
    assert "'profiles.default.endpoint': it has no scheme: write http://s3:9000" in caught.value.message
