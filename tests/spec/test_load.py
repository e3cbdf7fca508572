"""Every mistake in a pipeline file is one clear sentence."""

from __future__ import annotations

from pathlib import Path

import pytest

from nanochat.spec.errors import UserError
from nanochat.spec.load import load_pipeline

HEAD = "apiVersion: nanochat.dev/v1alpha1\nkind: ChatPipeline\nmetadata: {name: x}\n"
PIPELINES = sorted((Path(__file__).parents[2] / "k8s" / "pipelines").glob("*.yaml"))


def load(tmp_path: Path, text: str, *overrides: str) -> None:
    path = tmp_path / "pipeline.yaml"
    path.write_text(text)
    load_pipeline(path, list(overrides))


KEY = "0a" * 16
MEMORY = "spec.pods.resources.requests.memory"


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("{modle: {}}", "unknown field 'spec.modle'. Did you mean 'model'?"),
        ("{model: {depht: 4}}", "Did you mean 'depth'?"),
        ("{model: {sequence_length: 64}}", "Did you mean 'sequenceLength'?"),
        (
            "{stages: {mid: {mixture: [{task: gsm8k, rwos: 3}]}}}",
            "'spec.stages.mid.mixture.0.rwos'. Did you mean 'rows'?",
        ),
        ("{seed: '5'}", "'spec.seed': input should be a valid integer (given: '5')"),
        ("{model: {depth: 0}}", "greater than or equal to 1 (given: 0)"),
        (
            "{stages: {base: {totalBatchTokens: 1000}}}",
            "must be a multiple of model.sequenceLength (2048): set it to 2048",
        ),
        ("{stages: {mid: {totalBatchTokens: 5000}}}", "set it to 4096 or 6144"),
        ("{stages: {base: {enabled: false}}}", "stages.base cannot be disabled"),
        ("{stages: {mid: {initialModel: champion}}}", "stages.mid.initialModel': must be 32 hexadecimal digits"),
        (f"{{stages: {{mid: {{initialModel: {KEY}}}, sft: {{initialModel: {KEY}}}}}}}", "one stage starts from it"),
        (f"{{stages: {{sft: {{initialModel: {KEY}, enabled: false}}}}}}", "stages.sft is not enabled"),
        ("{stages: {sft: {mixture: []}}}", "at least 1 item"),
        (
            "{store: Not_A_Name}",
            "'spec.store': must consist of lower-case letters, digits and inner '-' (given: 'Not_A",
        ),
        ("{queue: My_Queue}", "'spec.queue': must consist of lower-case letters, digits, inner '-' and inner '.'"),
        *(
            (f"{{pods: {{resources: {{requests: {{memory: {given}}}}}}}}}", f"'{MEMORY}': {said}")
            for given, said in (
                ("4GB", "must be a number or a quantity such as 16Gi (given: '4GB')"),
                ("-1Gi", "must be a number or a quantity such as 16Gi (given: '-1Gi')"),
                ("-1", "input should be greater than or equal to 0 (given: -1)"),
                ("1e37", "input should be a valid integer (given: 1e+37)"),
            )
        ),
        (
            "{pods: {image: 'https://a/b'}}",
            "must be an image such as registry.example.org/team/trainer:1, without a sch",
        ),
        ("{pods: {nodeSelector: {'a b': c}}}", "must be a qualified name such as example.com/zone (given: 'a b')"),
        (
            "{pods: {nodeSelector: {a: 'b c'}}}",
            "must consist of letters, digits, inner '-', '_' and '.' (given: 'b c')",
        ),
        (
            "{pods: {env: [{name: A, value: 5}]}}",
            "'spec.pods.env.0.value': input should be a valid string (put it in q",
        ),
        ("{pods: {env: {A: b}}}", "'spec.pods.env': must be a list: each item in a line that begins with '-'"),
        ("{stages: [{name: base}]}", "'spec.stages': must be a map of fields"),
        ("{pods: {nodeSelector: [a]}}", "'spec.pods.nodeSelector': must be a map of names and values"),
        ("{pods: {resources: {limits: {nvidia.com/gpu: 1}}}}", "GPUs are asked for by gpusPerNode"),
        (
            f"{{stages: {{release: {{gates: {['core > 0'] * 17}}}}}}}",
            "'spec.stages.release.gates': must have at most 16 i",
        ),
    ],
)
def test_mistakes(tmp_path: Path, spec: str, message: str) -> None:
    with pytest.raises(UserError) as caught:
        load(tmp_path, f"{HEAD}spec: {spec}\n")
    assert message in caught.value.message
    assert len(caught.value.message.splitlines()) == 1


def test_all_mistakes_are_said_at_once(tmp_path: Path) -> None:
    with pytest.raises(UserError) as caught:
        load(tmp_path, f"{HEAD}spec: {{modle: {{}}, seed: -1}}\n")
    assert len(caught.value.message.splitlines()) == 2


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[1, 2]", "one mapping"),
        ("a: [", "line 2 is not YAML"),
        *(
            (
                HEAD.replace("x", name),
                "'metadata.name': must consist of lower-case letters, digits and inner '-', and begin",
            )
            for name in ("9x", "Demo", "my.demo", "my_demo", "größe")
        ),
    ],
)
def test_files_that_are_no_pipeline(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        load(tmp_path, text)


def test_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such file"):
        load_pipeline(tmp_path / "absent.yaml")


@pytest.mark.parametrize("spec", ["", "spec:\n", "spec: null\n", "spec: ~\n"])
@pytest.mark.parametrize("overrides", [[], ["model.depth=6"]])
def test_a_spec_is_written_out(tmp_path: Path, spec: str, overrides: list[str]) -> None:
    with pytest.raises(UserError) as caught:
        load(tmp_path, HEAD + spec, *overrides)
    sentence = "'spec' is missing or empty: write its fields, or 'spec: {}' where all have their defaults"
    assert caught.value.message == f"{tmp_path / 'pipeline.yaml'}: {sentence}"
    load(tmp_path, f"{HEAD}spec: {{}}\n", *overrides)


def test_overrides(tmp_path: Path) -> None:
    path = tmp_path / "p.yaml"
    path.write_text(f"{HEAD}spec: {{}}\n")
    overrides = [
        "model.depth=6",
        "stages.base.gradClip=null",
        "stages.sft.mixture=[{task: gsm8k}]",
        "stages.sft.mixture.0.rows=7",
    ]
    spec = load_pipeline(path, overrides).spec
    assert spec.model.depth == 6
    assert spec.stages.base.grad_clip is None
    assert spec.stages.sft.mixture[0].rows == 7
    for wrong in ("model.depth", "model.depth.x=1", "stages.sft.mixture.9.rows=1"):
        with pytest.raises(UserError):
            load_pipeline(path, [*overrides, wrong])


@pytest.mark.parametrize("path", PIPELINES, ids=lambda p: p.stem)
def test_the_pipelines_that_come_with_the_project_are_valid(path: Path) -> None:
    pipeline = load_pipeline(path)
    assert pipeline.metadata.name == path.stem
    again = type(pipeline).model_validate(pipeline.to_yaml_dict())
    assert again == pipeline
