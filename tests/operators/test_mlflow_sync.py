"""A run on a cluster in MLflow: from its stored folder, whenever MLflow is there, and only once."""

from __future__ import annotations

import io
import json
import sys
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
from mlflow_server import free_port, serving

from nanochat.pipeline.outcomes import Outcome, Reason
from nanochat.pipeline.planner import Attempt, Observed, Phase, plan
from nanochat.pipeline.run_status import RunStatus, StatusFile
from nanochat.pipeline.runs import RunPaths
from nanochat.report.tracked import RunTracker
from nanochat.storage import Profile, open_store
from nanochat.tracking.client import connect
from nanochat.tracking.journal import Journal
from nanochat.tracking.mlflow import EXPERIMENT, find_run
from operators import mlflow_sync
from operators.admission import admit_object
from operators.attempts import Attempts, JobAttempt
from operators.config import Config
from operators.mlflow_sync import MlflowSync
from operators.mlflow_worker import Order, Worker, serve
from operators.run_state import RunSnapshot
from operators.stores import Stores

pytestmark = pytest.mark.filterwarnings(
    "ignore::Warning:mlflow", "ignore::DeprecationWarning", "ignore::ResourceWarning"
)
OUTCOMES = {
    "one failed": (Outcome(Reason.INFRASTRUCTURE, "a peer was lost"), None),
    "all is well": (Outcome(Reason.INFRASTRUCTURE, "a peer was lost"), Outcome(Reason.SUCCEEDED)),
}


class Run:
    """A pipeline's run as the controller and the pods leave it in storage; `tell` writes a state of it."""

    def __init__(self, folder: Path, uid: str, tracking: str) -> None:
        config = {
            "image": "trainer:1",
            "profiles": {"default": {"root": str(folder / "store"), "tracking": tracking or None}},
        }
        found = {
            "apiVersion": "nanochat.dev/v1alpha1",
            "kind": "ChatPipeline",
            "metadata": {"name": "demo", "namespace": "team"},
            "spec": {"model": {"depth": 2}, "sources": {"text": {"kind": "world"}}},
        }
        self.accepted = admit_object(found, Config.model_validate(config, by_alias=True), None)  # type: ignore[arg-type]
        self.store = open_store(Profile(root=str(folder / "store")))
        self.paths = RunPaths.of(namespace="team", name="demo", uid=uid)
        artifacts = Stores(folder / "cache").artifacts(self.accepted.profile)
        self.view = RunSnapshot("team", "demo", uid, artifacts, tracking, Phase.RUNNING, "", False, "begun")
        with Journal(self.store, self.paths.root, stage="base", launch="01-aa", interval=1e9) as journal:
            for step in range(1, 6):
                journal.metrics(step, {"train/loss": 3.0 / step})

    def tell(self, state: str) -> None:
        """Two attempts of base: the first failed, and the second runs or is done, and with it the pipeline."""
        outcomes = OUTCOMES[state]
        done = outcomes[-1] is not None
        attempts = Attempts(self.store, self.paths, pipeline="demo", uid="uid-1")
        for number, outcome in enumerate(outcomes, 1):
            ended = 1000.0 * number + 500 if outcome else None
            attempts.put(
                JobAttempt(
                    stage="base", number=number, job=f"demo-base-{number}", keys=("k",), device_batch_size=8,
                    started=1000.0 * number, launch=f"0{number}-aa", ended=ended, outcome=outcome,
                )
            )  # fmt: skip
        attempts.save()
        records = attempts.all()
        seen = [Attempt(r.number, 8, ended=r.ended, outcome=r.outcome) for r in records]
        graph = self.accepted.graph
        present = frozenset(out.key for node in graph.nodes for out in node.outputs if done or node.stage == "tokens")
        _, planned = plan(graph, self.accepted.spec, Observed(present, attempts={"base": seen}), 2100.0)
        self.store.write_json(self.paths.pipeline, self.accepted.pipeline.to_yaml_dict())
        document = RunStatus.of(self.accepted.pipeline, graph, planned, {}, {}, records)
        StatusFile(self.store, self.paths).write(document)
        if done:
            self.store.write(f"{self.paths.root}/report/report.html", b"<p>")
            self.store.write(f"{self.paths.root}/report/loss-base.svg", b"<svg/>")
        self.view = replace(self.view, mark=state, phase=planned.phase, began=True)

    @property
    def marked(self) -> bool:
        return self.store.exists(f"{self.paths.root}/tracked.json")


def told(url: str, uid: str, stage: str = "") -> Any:
    client = connect(url)
    experiment = client.get_experiment_by_name(EXPERIMENT)
    return None if experiment is None else find_run(client, experiment.experiment_id, uid, stage)


@pytest.fixture(autouse=True)
def ended(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """No worker outlives its test."""
    made: list[mlflow_sync.Worker] = []

    class Ended(mlflow_sync.Worker):
        def __init__(self) -> None:
            super().__init__()
            made.append(self)

    monkeypatch.setattr(mlflow_sync, "Worker", Ended)
    yield
    for worker in made:
        worker.close()


@pytest.fixture(scope="module")
def tracking(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with serving(tmp_path_factory.mktemp("mlflow")) as url:
        yield url


def test_a_run_is_told_while_it_runs_and_after_its_end(tracking: str, tmp_path: Path) -> None:
    run = Run(tmp_path, "uid-live", tracking)
    sync = MlflowSync(lambda: [run.view])
    sync.round()
    assert told(tracking, "uid-live") is None, "there is nothing to tell"
    run.tell("one failed")
    sync.round()
    parent, base = told(tracking, "uid-live"), told(tracking, "uid-live", "base")
    assert parent.info.run_name == "team.demo-uid-live" and parent.info.status == base.info.status == "RUNNING"
    assert base.data.tags["nanochat.outcomes"] == "Infrastructure Running"
    assert (
        base.data.params["totalBatchTokens"]
        and len(connect(tracking).get_metric_history(base.info.run_id, "train/loss")) == 5
    )
    assert not run.marked
    run.tell("all is well")
    sync.round()
    parent, base = told(tracking, "uid-live"), told(tracking, "uid-live", "base")
    assert parent.info.status == base.info.status == "FINISHED"
    assert base.data.tags["nanochat.outcomes"] == "Infrastructure Succeeded"
    files = {item.path for item in connect(tracking).list_artifacts(parent.info.run_id, "report")}
    assert files == {"report/report.html", "report/loss-base.svg"}
    assert run.marked


def test_what_was_missed_is_made_up_for_and_not_done_again(
    tracking: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    away = f"http://127.0.0.1:{free_port()}"
    run = Run(tmp_path, "uid-late", away)
    run.tell("all is well")
    sync = MlflowSync(lambda: [run.view])
    sync.round()
    assert not run.marked
    with serving(tmp_path, port=int(away.rpartition(":")[2])):
        MlflowSync(lambda: [run.view]).round()  # by another controller, after the pipeline's end
        assert run.marked and told(away, "uid-late").info.status == "FINISHED"
        asked: list[Order] = []
        ask = mlflow_sync.Worker.ask
        monkeypatch.setattr(mlflow_sync.Worker, "ask", lambda *given: asked.append(given[1]) or ask(*given))
        sync = mlflow_sync.MlflowSync(lambda: [run.view])
        sync.round()
        sync.round()
        (order,) = asked
        with monkeypatch.context() as patch:
            patch.setattr(RunTracker, "sync", lambda _: pytest.fail("it is complete"))
            assert Worker().carry_out(order).told
        run.view = replace(run.view, mark="tried again")
        sync.round()
        assert len(asked) == 2, "a retry is told as well"


def test_one_run_that_cannot_be_told_does_not_hold_up_the_others(tracking: str, tmp_path: Path) -> None:
    away = Run(tmp_path / "a", "uid-away", f"http://127.0.0.1:{free_port()}")
    broken = Run(tmp_path / "b", "uid-broken", tracking)
    well = Run(tmp_path / "c", "uid-well", tracking)
    for run in (away, broken, well):
        run.tell("all is well")
    broken.store.write(broken.paths.pipeline, b"no json")
    MlflowSync(lambda: [away.view, broken.view, well.view]).round()
    assert [run.marked for run in (away, broken, well)] == [False, False, True]


def test_without_a_tracking_server_nothing_is_told(tmp_path: Path) -> None:
    run = Run(tmp_path, "uid-none", "")
    run.tell("all is well")
    MlflowSync(lambda: [run.view]).round()
    assert not run.marked


STUB = """
import json, sys, time
for line in sys.stdin:
    name = json.loads(line)["folder"].rsplit("/", 1)[-1]
    if name == "uid-slow":
        time.sleep(1e6)
    if name == "uid-large":
        sys.exit(1)
    print(json.dumps({"told": True}), flush=True)
"""


def test_a_run_that_takes_too_long_or_too_much_is_set_aside(
    tracking: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(mlflow_sync, "COMMAND", (sys.executable, "-c", STUB))
    monkeypatch.setattr(mlflow_sync, "RUN_SECONDS", 15.0)
    monkeypatch.setattr(mlflow_sync, "ASIDE", (1e6,))
    slow, beside = (Run(tmp_path / "a", uid, tracking).view for uid in ("uid-slow", "uid-beside"))
    large, well = (Run(tmp_path / "b", uid, tracking).view for uid in ("uid-large", "uid-well"))
    runs = [replace(run, began=True) for run in (slow, beside, large, well)]
    sync = MlflowSync(lambda: runs)

    def told() -> list[str]:
        return [run.uid for run in runs if sync._known[run.uid].told == run.mark]

    sync.round()
    assert told() == ["uid-well"], "the others of a slow store wait for the next round"
    assert "longer than 15 s" in caplog.text and "wrote too much" in caplog.text
    sync.round()
    assert told() == ["uid-beside", "uid-well"], "and what is set aside delays it no more"


def test_an_order_that_fails_ends_no_other(tracking: str, tmp_path: Path) -> None:
    broken, well = Run(tmp_path / "b", "uid-odd", tracking), Run(tmp_path / "c", "uid-fine", tracking)
    for run in (broken, well):
        run.tell("all is well")
    broken.store.write(f"{broken.paths.root}/status.json", b'{"stages": [{"stage": "base", "phase": 7}]}')
    broken.store.write(f"{broken.paths.root}/metrics/base/01-aa/000001.jsonl", b'{"step": 1, "metrics": []}\n[]\nno\n')
    answers = io.StringIO()
    serve([json.dumps(asdict(mlflow_sync._order(run.view))) for run in (broken, well)], answers)
    first, second = (json.loads(line) for line in answers.getvalue().splitlines())
    assert not first["told"] and first["why"] and second["told"] and not second["why"]
    assert first["memory"] > 0 and second["memory"] > 0
