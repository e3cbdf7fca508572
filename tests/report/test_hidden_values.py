"""The values of a declaration's variables reach neither the store's copy of it, nor MLflow, nor the report."""

from __future__ import annotations

import json

import pytest
from fake_run import RUN, FakeRun

from nanochat.report.record import gather
from nanochat.report.tracked import tracked_run
from nanochat.spec.errors import UserError
from nanochat.spec.load import check_pipeline
from nanochat.spec.pods import HIDDEN, hide_values

SECRET = "hunter2"
ENV = [
    {"name": "TOKEN", "value": SECRET},
    {"name": "OTHER", "valueFrom": {"secretKeyRef": {"name": "tokens", "key": "other"}}},
]
DOCUMENT = {
    "apiVersion": "nanochat.dev/v1alpha1",
    "kind": "ChatPipeline",
    "metadata": {"name": "x"},
    "spec": {"pods": {"env": ENV}, "stages": {"base": {"pod": {"env": ENV}}}},
}


def test_a_declaration_without_values_is_still_one() -> None:
    pipeline = check_pipeline(DOCUMENT)
    told = hide_values(pipeline.to_yaml_dict())
    assert SECRET not in json.dumps(told) and json.dumps(told).count(HIDDEN) == 2
    again = check_pipeline(told)
    assert [item.name for item in again.spec.stages.base.pod.env] == ["TOKEN", "OTHER"]
    assert again.spec.pods.env[1] == pipeline.spec.pods.env[1]


def test_reports_and_mlflow_have_no_values(run: FakeRun) -> None:
    spec = check_pipeline(DOCUMENT).spec.to_yaml_dict()  # as earlier versions stored it
    run.spec["pods"] = spec["pods"]
    run.spec["stages"]["base"]["pod"] = spec["stages"]["base"]["pod"]
    run.close()
    record = gather(run.store, run.artifacts, run=RUN)
    tracked = tracked_run(record)
    assert SECRET not in repr(record) and SECRET not in repr(tracked)
    assert HIDDEN in repr(tracked.params) and "TOKEN" in repr(tracked.params)


@pytest.mark.parametrize(
    "variable",
    [
        {"name": "TOKEN", "value": 17_03_1991},
        {"name": "TOKEN", "value": "17031991" * 200},
        {"name": "1", "value": "17031991"},
    ],
)
def test_mistakes_in_variables_do_not_tell_them(variable: dict[str, object]) -> None:
    with pytest.raises(UserError) as caught:
        check_pipeline({**DOCUMENT, "spec": {"pods": {"env": [variable]}}})
    assert "spec.pods.env.0" in caught.value.message and "17031991" not in caught.value.message
