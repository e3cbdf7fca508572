"""The stages report and release, run as a launch runs them, with a real MLflow."""

from __future__ import annotations

import json
import socket
from dataclasses import replace
from typing import Any

import pytest
from fake_run import RUN, FakeRun

from nanochat.pipeline.graph import Output, build_graph
from nanochat.pipeline.outputs import Outputs
from nanochat.pipeline.plan import StagePlan
from nanochat.pipeline.planner import Phase, StageStatus, Status
from nanochat.pipeline.ref import ArtifactRef
from nanochat.report.tracked import RunTracker
from nanochat.spec.errors import StorageError, UserError
from nanochat.spec.pipeline import PipelineSpec
from nanochat.stages import release, report
from nanochat.stages.context import StageContext
from nanochat.tracking.client import connect
from nanochat.tracking.registry import Registry
from nanochat.tracking.rest import light_registry

pytestmark = pytest.mark.filterwarnings(
    "ignore::Warning:mlflow", "ignore::DeprecationWarning", "ignore::ResourceWarning"
)


def context(run: FakeRun, stage: str, *, tracking: str | None = None, key: str = "k1", **release: Any) -> StageContext:
    spec = PipelineSpec.model_validate({"stages": {"release": release}})
    output = Output(kind=stage, name=stage, key=f"{stage}-{key}", recipe={}, inputs={})
    made = {ref: key for item in run.stages for ref, key in item["keys"].items() if ref.startswith("evaluation/")}
    inputs = {ArtifactRef.parse(ref): key for ref, key in ({"model/mid": "key-model-mid"} | made).items()}
    plan = StagePlan(
        stage=stage, name="demo", namespace="default", run=RUN, attempt=1, launch="01-aa", outputs=(output,),
        inputs=inputs, spec=spec.model_dump(mode="json", by_alias=True), horizon={},
        profile={"root": run.store.root}, cache=f"{run.store.root}-cache", work="", tracking=tracking,
    )  # fmt: skip
    return StageContext(plan)


def released(run: FakeRun, work: StageContext) -> dict[str, Any]:
    release.run(work)
    work.close()
    manifest = work.artifacts.find("release", work.outputs[0].key)
    assert manifest is not None
    stored = json.loads((work.artifacts.fetch(manifest) / "release.json").read_text())
    assert stored == run.store.read_json(f"{RUN}/release.json", 1 << 20)
    return stored


def test_the_report_is_an_artifact_and_in_the_run_folder(run: FakeRun) -> None:
    work = context(run, "report")
    report.run(work)
    work.close()
    manifest = work.artifacts.find("report", "report-k1")
    assert manifest is not None
    names = {record.path for record in manifest.files}
    assert {"report.md", "report.html", "model-card.md", "loss-base.svg"} <= names
    assert {entry.path for entry in run.store.list(f"{RUN}/report")} == {f"{RUN}/report/{name}" for name in names}


def test_the_first_version_becomes_champion(run: FakeRun, uri: str) -> None:
    gates = ["arc_easy >= 0.3 and arc_easy >= champion.arc_easy"]
    found = released(run, context(run, "release", tracking=uri, model="first", gates=gates))
    assert found["registered"] and found["version"] == "1"
    assert found["alias"] == {"name": "champion", "moved": True, "reason": "all gates hold", "previous": None}
    assert found["gates"][0]["values"] == {"arc_easy": 0.3876, "champion.arc_easy": None}
    assert "no champion yet" in found["gates"][0]["notes"][0]
    champion = Registry(uri).champion("first")
    assert champion is not None and champion.version == "1"
    assert champion.source.endswith("artifacts/model/key-model-mid/01-aa")
    assert champion.metrics["mid.arc-easy"] == 0.3876 and champion.metrics["base.val_bpb"] == 0.8123


def test_a_gate_that_does_not_hold_keeps_the_champion(run: FakeRun, uri: str) -> None:
    released(run, context(run, "release", tracking=uri, model="second"))
    gates = ["val_bpb < 0.9", "arc_easy > champion.arc_easy"]
    found = released(run, context(run, "release", tracking=uri, key="k2", model="second", gates=gates))
    assert found["version"] == "2"
    assert [gate["holds"] for gate in found["gates"]] == [True, False]
    assert found["alias"]["moved"] is False and found["alias"]["previous"] == "1"
    assert found["alias"]["reason"] == "these gates do not hold: arc_easy > champion.arc_easy"
    outputs = outputs_of(run, "k2")
    status = outputs.remarked(Status(Phase.SUCCEEDED, (StageStatus("release", Phase.SUCCEEDED),)))
    assert status.of("release").message == (
        "version 2 of second is registered and does not become champion: "
        "these gates do not hold: arc_easy > champion.arc_easy"
    )
    assert outputs.release is not None and outputs.release.refused
    champion = Registry(uri).champion("second")
    assert champion is not None and champion.version == "1"


def test_a_second_attempt_finds_what_the_first_did(run: FakeRun, uri: str) -> None:
    options: dict[str, Any] = {"tracking": uri, "model": "third", "gates": ["arc_easy > champion.arc_easy"]}
    first = released(run, context(run, "release", **options))
    run.artifacts.remove("release", "release-k1")  # as if the first had died before it committed
    assert released(run, context(run, "release", **options))["version"] == first["version"] == "1"
    found = run.store.read_json(f"{RUN}/release.json", 1 << 20)
    assert found["alias"]["moved"] and found["gates"] == first["gates"]


def test_an_unreachable_server_is_said_and_tried_again(run: FakeRun) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        away = f"http://127.0.0.1:{free.getsockname()[1]}"
    work = context(run, "release", tracking=away)
    with pytest.raises(StorageError, match="cannot be reached"):
        release.run(work)
    work.close()
    found = run.store.read_json(f"{RUN}/release.json", 1 << 20)
    assert found["registered"] is False and found["reason"].startswith("not registered: the tracking server")
    assert work.artifacts.find("release", "release-k1") is None


def test_without_a_tracking_server_nothing_is_registered(run: FakeRun) -> None:
    found = released(run, context(run, "release"))
    assert found["registered"] is False and "no tracking server" in found["reason"]


@pytest.mark.parametrize("gate", ["arc_easi >= 0.3", "arc_easy >="])
def test_a_mistyped_gate_is_a_user_error(run: FakeRun, uri: str, gate: str) -> None:
    work = context(run, "release", tracking=uri, model="typo", gates=[gate])
    with pytest.raises(UserError, match="release gate"):
        release.run(work)
    work.close()
    assert Registry(uri).champion("typo") is None


def test_what_was_not_run_fails_its_gate(run: FakeRun, uri: str) -> None:
    work = context(run, "release", tracking=uri, model="fourth", gates=["humaneval >= 0.1"])
    found = released(run, work)
    assert found["gates"][0]["notes"] == ["humaneval was not run: no sandbox here"]
    assert not found["alias"]["moved"]


def outputs_of(run: FakeRun, key: str) -> Outputs:
    graph = build_graph(PipelineSpec())
    node = replace(graph.node("release"), outputs=(Output("release", "release", f"release-{key}", {}, {}),))
    outputs = Outputs(run.artifacts, replace(graph, nodes=(node,)))
    outputs.refresh()
    return outputs


def test_a_release_whose_version_was_deleted_is_made_anew(
    run: FakeRun, uri: str, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    released(run, context(run, "release", tracking=uri, model="deleted"))
    outputs = outputs_of(run, "k1")
    outputs.check_release(Registry(uri))
    assert outputs.present == {"release-k1"}, "its version is there"
    with monkeypatch.context() as patch:  # and can be seen without MLflow
        patch.setattr("nanochat.tracking.registry.Registry.holds", lambda *_: 1 / 0)
        outputs.check_release(light_registry(uri))
    assert outputs.present == {"release-k1"}
    outputs.check_release(Registry("http://127.0.0.1:9"))
    assert outputs.present == {"release-k1"} and "it is not known whether version 1 is still there" in caplog.text
    connect(uri).delete_model_version("deleted", "1")
    outputs.check_release(light_registry(uri))
    assert not outputs.present and outputs.release is None
    assert "version 1 of deleted is gone from the registry: it is released anew" in caplog.text
    again = released(run, context(run, "release", tracking=uri, model="deleted"))
    assert again["version"] == "2" and again["alias"]["moved"]
    connect(uri).delete_registered_model("deleted")
    outputs = outputs_of(run, "k1")
    outputs.check_release(Registry(uri))
    assert not outputs.present, "the whole model is gone"


def test_a_version_has_the_run_that_made_it_however_short_that_was(run: FakeRun, uri: str) -> None:
    """Nobody has told MLflow of the run yet."""
    released(run, context(run, "release", tracking=uri, model="lineage"))
    client = connect(uri)
    version = client.get_model_version("lineage", "1")
    assert version.run_id
    assert client.get_run(version.run_id).data.tags["nanochat.run"] == RUN.rsplit("/", 1)[-1]
    assert RunTracker(run.store, run.artifacts, run=RUN, uri=uri).sync()
    experiment = client.get_experiment_by_name("nanochat")
    assert experiment is not None
    query = f"tags.`nanochat.run` = '{RUN.rsplit('/', 1)[-1]}' and tags.`nanochat.stage` = ''"
    assert [found.info.run_id for found in client.search_runs([experiment.experiment_id], query)] == [version.run_id]
