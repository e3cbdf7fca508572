"""The status that the controller writes is what the API's schema declares, whatever it is told."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest
from fake_cluster import FakeKube
from pydantic import ValidationError

from nanochat.pipeline.graph import build_graph
from nanochat.pipeline.outcomes import Outcome, Reason
from nanochat.pipeline.planner import Phase, StageStatus, Status
from nanochat.spec.chatpipeline import RETRY
from nanochat.spec.load import check_pipeline
from nanochat.tracking.progress import State
from operators import status
from operators.admission import Accepted
from operators.attempts import JobAttempt
from operators.cluster import Cluster
from operators.config import StoreProfile

NOW = 1_800_000_000.0
LONG = "long " * 20_000
DOCUMENT = {
    "apiVersion": "nanochat.dev/v1alpha1",
    "kind": "ChatPipeline",
    "metadata": {"name": "demo"},
    "spec": {},
}


def written(told: Any) -> dict[str, Any]:
    """The status after a patch, which the cluster checks as the API server does."""
    kube = FakeKube(NOW)
    kube.declare({"metadata": {"name": "demo", "namespace": "team"}}, uid="12ab34cd")
    Cluster(kube).patch_status("team", "demo", told, uid="12ab34cd")  # type: ignore[arg-type]
    return json.loads(json.dumps(kube.status))


def found(**annotations: str) -> dict[str, Any]:
    return {"metadata": {"uid": "12ab34cd", "generation": 2, "annotations": annotations}}


def inputs(phase: Phase, text: str, **more: Any) -> status.StatusInputs:
    pipeline = check_pipeline(DOCUMENT)
    graph = build_graph(pipeline.spec)
    stages = tuple(StageStatus(stage, phase, text, attempts=2) for stage in graph.stages)
    values: dict[str, Any] = {
        "accepted": Accepted(pipeline, graph, StoreProfile(root="s3://bucket")),
        "planned": Status(phase, stages, text),
        "attempts": [],
        "progress": {},
        "explanations": {},
        "scores": {},
        "refused": "",
        "trouble": "",
        "current": True,
        "queue": None,
        "run": "runs/team.demo/12ab34cd",
    }
    return status.StatusInputs(**values | more)


@pytest.mark.parametrize("phase", Phase)
@pytest.mark.parametrize("text", ["", LONG], ids=["silent", "long"])
def test_every_phase(phase: Phase, text: str) -> None:
    told = written(status.build(found(), inputs(phase, text), status.no_access, NOW))
    assert told["phase"] == phase
    assert {stage["phase"] for stage in told["stages"]} == {phase}
    assert all(item["reason"] and item["lastTransitionTime"] == "2027-01-15T08:00:00Z" for item in told["conditions"])


def test_a_failure_says_how_it_is_tried_again() -> None:
    again = "; once that is mended: nanochat retry demo -n default"
    for text in ("sft: a Secret is missing", LONG):
        told = written(status.build(found(), inputs(Phase.FAILED, text), status.no_access, NOW))
        assert told["message"].startswith(text[:900]) and told["message"].endswith(again)
    refused = status.build(found(), inputs(Phase.FAILED, "bad", refused="no such store"), status.no_access, NOW)
    assert refused["message"] == "no such store"


def test_a_remark_on_the_declaration_stands_where_nothing_else_does() -> None:
    accepted = replace(inputs(Phase.RUNNING, "").accepted, remark="a field was left out")
    told = written(status.build(found(), inputs(Phase.RUNNING, "", accepted=accepted), status.no_access, NOW))
    assert told["message"] == "a field was left out"
    assert [c["message"] for c in told["conditions"] if c["type"] == "Accepted"] == ["a field was left out"]


def test_the_largest_status() -> None:
    hosts = tuple(f"node-{i:04d}" for i in range(5000))
    ended = Outcome(Reason.ERROR, LONG)
    records = [
        JobAttempt(
            stage="base",
            number=n,
            job=f"demo-12ab-base-{n}",
            device_batch_size=8,
            started=NOW + n,
            hosts=hosts,
            ended=NOW + n,
            outcome=ended,
        )
        for n in range(1, 40)
    ]
    rates = {f"{LONG}/s": 1e300, "tokens/s": 9800.0}
    state = State("base", "01-x", step=2**62, total=2**62, rates=rates, losses={"loss": 1e300}, eta=1e9, pause=LONG)
    more = {
        "attempts": records,
        "progress": {"base": state},
        "explanations": {"base": LONG},
        "scores": {"base": {"core": 0.25}},
        "trouble": LONG,
        "current": False,
        "queue": {"name": "team", "workload": "job-1", "state": "Pending", "message": LONG},
        "serving": ("False", "RolloutFailed", LONG),
    }
    access = {"service": "nanochat/nanochat-controller:8080", "token": "0" * 64, "expiresAt": "2026-01-01T00:00:00Z"}
    told = written(status.build(found(**{RETRY: LONG}), inputs(Phase.RUNNING, LONG, **more), lambda *_: access, NOW))
    assert [attempt["number"] for attempt in told["attempts"]] == list(range(20, 40))
    assert len(json.dumps(told)) < 500_000  # of the 1.5 MiB that etcd takes


def test_before_and_without_the_run() -> None:
    for told in (status.refused(found(), LONG, NOW), status.unreachable(found(), LONG, NOW)):
        assert written(told)["conditions"][0]["status"] == "False"
    one = found()
    one["status"] = {"conditions": status.slow(one, 20.0, NOW)["conditions"]}
    assert [item["type"] for item in status.refused(one, LONG, NOW)["conditions"]] == ["Accepted"]


@pytest.mark.parametrize(
    ("phase", "step", "progress"),
    [(Phase.RUNNING, 60, "60/400"), (Phase.STOPPING, 60, "60/400"), (Phase.PENDING, None, None)],
)
def test_what_waits_tells_no_progress_of_before(phase: Phase, step: int | None, progress: str | None) -> None:
    known = State("base", "01-x", step=60, total=400, losses={"loss": 2.5}, eta=9.0)
    one = inputs(phase, "").planned.of("base")
    planned = Status(phase, (replace(one, message="waits for admission"),))
    told = status.build(found(), inputs(phase, "", planned=planned, progress={"base": known}), status.no_access, NOW)
    assert (told["stages"][0]["step"], told["progress"]) == (step, progress)
    assert (told["stage"], told["loss"]) == ("base", progress and "2.500")
    assert told["message"] == ("base: waits for admission" if phase is Phase.PENDING else None)


def test_a_pause_is_told_and_is_progress() -> None:
    def built(pause: str) -> Any:
        known = State("base", "01-x", step=60, total=400, pause=pause)
        planned = Status(Phase.RUNNING, (StageStatus("base", Phase.RUNNING, ""),))
        one = inputs(Phase.RUNNING, "", planned=planned, progress={"base": known})
        return status.build(found(), one, status.no_access, NOW)

    first, second, trains = built("measuring CORE, task 1 of 22"), built("measuring CORE, task 2 of 22"), built("")
    assert first["stages"][0]["pause"] == "measuring CORE, task 1 of 22" and trains["stages"][0]["pause"] is None
    assert not status.same(first, second) and status.is_progress(first, second) and status.is_progress(second, trains)


def test_who_waits_for_another_pipeline_says_so() -> None:
    stages = (StageStatus("base", Phase.WAITING, "waits for pipeline other, which makes it", outside=True),)
    told = status.build(
        found(), inputs(Phase.RUNNING, "", planned=Status(Phase.RUNNING, stages)), status.no_access, NOW
    )
    assert (told["stage"], told["message"]) == ("base", "base: waits for pipeline other, which makes it")


@pytest.mark.parametrize(
    "wrong",
    [
        {"phase": "Rnning"},
        {"message": LONG},
        {"colour": "red"},
        {"conditions": [{"type": "Accepted", "status": "True", "reason": "", "message": ""}]},
        {"stages": [{"name": "base"}]},
    ],
)
def test_another_status_is_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        written(wrong)
