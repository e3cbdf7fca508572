"""The projection into a real MLflow (SQLite): complete, idempotent, and harmless where there is none."""

from __future__ import annotations

import math
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from nanochat.parse.address import shown
from nanochat.storage import Profile, Store, open_store
from nanochat.tracking.client import connect, is_deleted, unreachable
from nanochat.tracking.journal import SYSTEM, Journal
from nanochat.tracking.links import page_of, runs_page
from nanochat.tracking.mlflow import (
    EXPERIMENT,
    Projection,
    TrackedData,
    TrackedRun,
    TrackedStage,
    find_run,
    flatten,
    marker,
)

pytestmark = pytest.mark.filterwarnings(
    "ignore::Warning:mlflow", "ignore::DeprecationWarning", "ignore::ResourceWarning"
)


@pytest.fixture(scope="module")
def client(uri: str) -> Iterator[Any]:
    yield connect(uri)


def tracked(uid: str, **changes: Any) -> TrackedRun:
    stage = TrackedStage(
        name="base", status="running", started=1000.0, params={"steps": 3, "mixture": [{"task": "a"}]},
        tags={"nanochat.attempts": "1"},
    )  # fmt: skip
    run = TrackedRun(
        name="default.demo", uid=uid, status="running", started=1000.0, params={"spec": {"model": {"depth": 4}}},
        stages=(stage,),
    )  # fmt: skip
    return replace(run, **changes)


def folder(uid: str) -> str:
    return f"runs/default.demo/{uid}"


def record(store: Store, uid: str, launch: str, values: dict[int, float], clock: Any = time.time) -> None:
    with Journal(store, folder(uid), stage="base", launch=launch, interval=1e9, clock=clock) as journal:
        for step, value in values.items():
            journal.metrics(step, {"train/loss": value})


def run_of(client: Any, uid: str, stage: str = "") -> Any:
    experiment = client.get_experiment_by_name(EXPERIMENT)
    return find_run(client, experiment.experiment_id, uid, stage)


def sent(client: Any, uid: str, stage: str, name: str) -> list[tuple[int, float]]:
    run = run_of(client, uid, stage)
    return sorted((point.step, point.value) for point in client.get_metric_history(run.info.run_id, name))


def test_a_run_is_a_parent_with_a_nested_run_a_stage(store: Store, uri: str, client: Any) -> None:
    record(store, "parent", "01-a", {1: 3.0, 2: 2.0})
    assert Projection(store, uri).sync(folder("parent"), tracked("parent", results={"sft.gsm8k": 0.25}))
    parent, nested = run_of(client, "parent"), run_of(client, "parent", "base")
    assert nested.data.tags["mlflow.parentRunId"] == parent.info.run_id
    assert parent.info.run_name == "default.demo" and nested.info.run_name == "base of default.demo"
    assert parent.data.params == {"spec.model.depth": "4"}
    assert nested.data.params == {"steps": "3", "mixture": '[{"task": "a"}]'}
    assert nested.data.tags["nanochat.attempts"] == "1"
    assert parent.data.metrics == {"sft.gsm8k": 0.25}
    assert sent(client, "parent", "base", "train/loss") == [(1, 3.0), (2, 2.0)]
    assert parent.info.status == nested.info.status == "RUNNING"


def test_sending_again_adds_nothing(store: Store, uri: str, client: Any) -> None:
    record(store, "again", "01-a", {1: 3.0, 2: math.nan, 3: math.inf})
    run = tracked("again", results={"core": 0.2})
    for projection in (Projection(store, uri), Projection(store, uri)):
        for _ in range(2):
            store.delete(f"{folder('again')}/mlflow.json")  # as if nobody knew that it was sent
            assert projection.sync(folder("again"), run)
    experiment = client.get_experiment_by_name(EXPERIMENT)
    runs = client.search_runs([experiment.experiment_id], "tags.`nanochat.run` = 'again'")
    assert len(runs) == 2
    assert [step for step, _ in sent(client, "again", "base", "train/loss")] == [1, 2, 3]
    assert sent(client, "again", "", "core") == [(0, 0.2)]


def test_what_is_new_is_added(store: Store, uri: str, client: Any) -> None:
    projection = Projection(store, uri)
    record(store, "new", "01-a", {1: 3.0, 2: 2.0, 3: 1.5})
    assert projection.sync(folder("new"), tracked("new"))
    record(store, "new", "02-b", {3: 1.5, 4: 1.0})  # resumed at 2, with equal losses as it must be
    run = tracked("new", status="succeeded", ended=2000.0, params={"spec": {"model": {"depth": 5}}})
    stage = replace(run.stages[0], status="succeeded", ended=1900.0, tags={"nanochat.attempts": "2"})
    assert projection.sync(folder("new"), replace(run, stages=(stage,)))
    assert sent(client, "new", "base", "train/loss") == [(1, 3.0), (2, 2.0), (3, 1.5), (4, 1.0)]
    parent, nested = run_of(client, "new"), run_of(client, "new", "base")
    assert nested.info.status == parent.info.status == "FINISHED"
    assert nested.info.end_time == 1_900_000
    assert nested.data.tags["nanochat.attempts"] == "2"
    assert parent.data.params["spec.model.depth"] == "4"  # MLflow's params never change
    assert parent.data.tags["changed.spec.model.depth"] == "5"


def test_a_run_that_goes_on_is_running_again(store: Store, uri: str, client: Any) -> None:
    projection = Projection(store, uri)
    assert projection.sync(folder("on"), tracked("on", status="failed", ended=1500.0))
    assert run_of(client, "on").info.status == "FAILED"
    assert projection.sync(folder("on"), tracked("on"))
    assert run_of(client, "on").info.status == "RUNNING"


def test_files_are_artifacts(store: Store, uri: str, client: Any) -> None:
    path = f"{folder('files')}/report/report.html"
    for content in (b"<p>one</p>", b"<p>two</p>"):
        store.write(path, content)
        run = tracked("files", files=(path,), tags={"version": content.decode()})
        assert Projection(store, uri).sync(folder("files"), run)
        parent = run_of(client, "files")
        assert [item.path for item in client.list_artifacts(parent.info.run_id, "report")] == ["report/report.html"]
        local = client.download_artifacts(parent.info.run_id, "report/report.html")
        assert Path(local).read_bytes() == content


def test_files_leave_no_tag_that_people_see(store: Store, uri: str, client: Any) -> None:
    path = f"{folder('unseen')}/report/report.html"
    store.write(path, b"<p>")
    assert Projection(store, uri).sync(folder("unseen"), tracked("unseen", files=(path,)))
    tags = run_of(client, "unseen").data.tags
    assert {name for name in tags if not name.startswith("mlflow.")} == {"nanochat.run", "nanochat.stage"}


def test_data_sets_are_inputs_once(store: Store, uri: str, client: Any) -> None:
    text = TrackedData("a/text", "d" * 40, "training", "hugging_face", {"path": "a/text"}, {"shards": 2})
    others = TrackedData("sums-test", "e" * 32, "validation", "nanochat", {"task": "sums"})
    run = tracked("data")
    for data in ((text,), (text, others)):
        told = replace(run, stages=(replace(run.stages[0], data=data),))
        assert Projection(store, uri).sync(folder("data"), told)
    found = run_of(client, "data", "base").inputs.dataset_inputs
    seen = {each.dataset.name: (each.dataset.digest, {tag.key: tag.value for tag in each.tags}) for each in found}
    assert len(found) == 2
    assert seen["a/text"] == ("d" * 36, {"mlflow.data.context": "training"})
    assert seen["sums-test"] == ("e" * 32, {"mlflow.data.context": "validation"})


def test_machines_have_curves_over_the_stages_time(store: Store, uri: str, client: Any) -> None:
    with Journal(
        store, folder("machines"), stage="base", launch="01-a", kind=SYSTEM, interval=1e9, clock=lambda: 1010.0
    ) as journal:
        journal.metrics(1, {"system/cpu_utilization_percentage": 50.0})
    assert Projection(store, uri).sync(folder("machines"), tracked("machines"))
    assert sent(client, "machines", "base", "system/cpu_utilization_percentage") == [(10, 50.0)]


def test_links_open_on_runs(store: Store, uri: str, client: Any) -> None:
    experiment = client.get_experiment_by_name(EXPERIMENT)
    assert experiment.tags["mlflow.experimentKind"] == "custom_model_development"
    assert page_of(store, folder("link"), "http://mlflow:5000") == "", "MLflow does not know it yet"
    assert Projection(store, uri).sync(folder("link"), tracked("link"))
    assert page_of(store, folder("link"), uri) == "", "a file has no pages"
    run = run_of(client, "link").info.run_id
    runs = runs_page("http://mlflow:5000/", experiment.experiment_id)
    assert runs == f"http://mlflow:5000/#/experiments/{experiment.experiment_id}/runs?workflowType=machine_learning"
    expected = runs.replace("/runs?", f"/runs/{run}?")
    assert page_of(store, folder("link"), "http://user:secret@mlflow:5000") == expected
    store.write_json(marker(folder("link")), {"experiment": "1/../..", "run": run})
    assert page_of(store, folder("link"), "http://mlflow:5000") == "", "what others wrote makes no link"


def test_many_values_are_sent_in_batches(store: Store, uri: str, client: Any) -> None:
    record(store, "many", "01-a", {step: float(step) for step in range(2300)})
    run = tracked("many", params={f"p{i}": i for i in range(250)}, tags={f"t{i}": str(i) for i in range(150)})
    assert Projection(store, uri).sync(folder("many"), run)
    assert len(sent(client, "many", "base", "train/loss")) == 2300
    assert len(run_of(client, "many").data.params) == 250


def test_nothing_new_does_not_even_connect(store: Store, uri: str, monkeypatch: pytest.MonkeyPatch) -> None:
    record(store, "idle", "01-a", {1: 1.0})
    assert Projection(store, uri).sync(folder("idle"), tracked("idle"))
    monkeypatch.setattr("nanochat.tracking.mlflow.connect", lambda uri: pytest.fail("it connected"))
    assert Projection(store, uri).sync(folder("idle"), tracked("idle"))


def test_an_unreachable_server_costs_one_warning_and_is_made_up_for(
    store: Store, uri: str, client: Any, caplog: pytest.LogCaptureFixture
) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        away = f"http://user:secret@127.0.0.1:{free.getsockname()[1]}"
    record(store, "away", "01-a", {1: 1.0})
    projection = Projection(store, away)
    assert not projection.sync(folder("away"), tracked("away"))
    assert not projection.sync(folder("away"), tracked("away"))
    assert len(caplog.records) == 1 and "secret" not in caplog.text
    assert Projection(store, uri).sync(folder("away"), tracked("away"))
    assert sent(client, "away", "base", "train/loss") == [(1, 1.0)]


def test_a_failure_in_the_middle_is_made_up_for(
    store: Store, uri: str, client: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    record(store, "half", "01-a", {step: 1.0 for step in range(1500)})
    projection = Projection(store, uri)
    assert projection.sync(folder("half"), tracked("half", stages=()))
    real, calls = type(client).log_batch, []

    def failing(self: Any, *arguments: Any, **options: Any) -> Any:
        calls.append(options)
        if sum("metrics" in call for call in calls) == 2:
            raise ConnectionError("gone")
        return real(self, *arguments, **options)

    monkeypatch.setattr(type(client), "log_batch", failing)
    assert not projection.sync(folder("half"), tracked("half"))
    assert len(sent(client, "half", "base", "train/loss")) == 1000
    monkeypatch.undo()
    assert projection.sync(folder("half"), tracked("half"))
    assert len(sent(client, "half", "base", "train/loss")) == 1500


def test_addresses_are_judged(tmp_path: Path) -> None:
    assert unreachable(f"sqlite:///{tmp_path}/deep/er/mlflow.db") is None
    blocked = tmp_path / "file"
    blocked.write_text("")
    assert "cannot be made" in (unreachable(f"sqlite:///{blocked}/mlflow.db") or "")
    blocked.write_text("no database" * 100)
    assert "cannot be opened (file is not a database): put a backup" in (unreachable(f"sqlite:///{blocked}") or "")
    assert "cannot be opened" in (unreachable(f"sqlite:///{tmp_path}") or "")
    assert "neither" in (unreachable("ftp://user:secret@host/x") or "")
    assert shown("https://user:secret@host:5000/x") == "https://host:5000/x"
    assert shown("https://host:5000/x") == "https://host:5000/x"


def test_settings_become_flat_names() -> None:
    nested = {"a": {"b": 1, "c": None, "d": {"e": "text"}}, "f": [1, 2], "g": True}
    assert flatten(nested) == {"a.b": "1", "a.d.e": "text", "f": "[1, 2]", "g": "true"}


def test_importing_costs_no_mlflow() -> None:
    import subprocess
    import sys

    code = "import sys, nanochat.tracking.mlflow, nanochat.tracking.registry; sys.exit('mlflow' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_the_store_may_be_anywhere(tmp_path: Path, uri: str) -> None:
    other = open_store(Profile(root=f"file://{tmp_path}"))
    assert Projection(other, uri).sync(folder("other"), tracked("other"))
    assert other.exists(f"{folder('other')}/mlflow.json")


def test_two_processes_may_make_the_database_at_once(tmp_path: Path) -> None:
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    code = "import sys; from nanochat.tracking.client import connect, experiment_id; "
    code += "print(experiment_id(connect(sys.argv[1]), sys.argv[1], 'nanochat'))"
    command = [sys.executable, "-W", "ignore", "-c", code, uri]
    both = [subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) for _ in range(2)]
    said = [process.communicate(timeout=300) for process in both]
    assert [process.returncode for process in both] == [0, 0], said
    assert said[0] == said[1] and not said[0][1], said  # nor is there a word of tables that were made


def test_a_process_that_is_killed_leaves_no_half_made_database(tmp_path: Path) -> None:
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    program = (
        "import os, sqlalchemy, sys\n"
        "from alembic.runtime.migration import HeadMaintainer\n"
        "from nanochat.tracking.client import connect\n"
        "def update(self, step):\n"
        "    if sqlalchemy.inspect(self.context.connection).has_table('trace_info'):\n"
        "        os._exit(9)  # its tables are made, and that it was done is not yet said\n"
        "    original(self, step)\n"
        "original, HeadMaintainer.update_to_step = HeadMaintainer.update_to_step, update\n"
        "connect(sys.argv[1])\n"
    )
    assert subprocess.run([sys.executable, "-c", program, uri], timeout=120, check=False).returncode == 9
    assert [experiment.name for experiment in connect(uri).search_experiments()] == ["Default"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["mlflow.db", "mlflow.db.lock"]


def test_a_deleted_experiment_is_restored_and_that_is_said(
    store: Store, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    client = connect(uri)
    assert Projection(store, uri).sync(folder("before"), tracked("before"))
    experiment = client.get_experiment_by_name(EXPERIMENT)
    assert experiment is not None
    client.delete_experiment(experiment.experiment_id)
    assert is_deleted(client, EXPERIMENT)
    assert Projection(store, uri).sync(folder("after"), tracked("after"))
    assert "MLflow's experiment 'nanochat' was deleted: it is restored" in caplog.text
    assert not is_deleted(client, EXPERIMENT)
    assert run_of(client, "before") and run_of(client, "after"), "the runs of before are back"


def test_a_deleted_run_is_made_anew(store: Store, uri: str, client: Any) -> None:
    projection = Projection(store, uri)
    record(store, "deleted", "01-a", {1: 2.0})
    assert projection.sync(folder("deleted"), tracked("deleted"))
    first = run_of(client, "deleted").info.run_id
    client.delete_run(first)
    record(store, "deleted", "02-a", {2: 1.0})
    assert projection.sync(folder("deleted"), tracked("deleted")) or projection.sync(
        folder("deleted"), tracked("deleted")
    )
    parent = run_of(client, "deleted").info.run_id
    assert parent != first
    assert run_of(client, "deleted", "base").data.tags["mlflow.parentRunId"] == parent


def test_a_run_that_was_found_is_not_taken_where_another_was_agreed_on(store: Store, uri: str, client: Any) -> None:
    """Whoever lost the race deletes its run a moment later: who found that one by a search must not mean it."""
    winner = Projection(store, uri).ensure(folder("found"), tracked("found"))
    tags = client.get_run(winner).data.tags
    experiment = client.get_experiment_by_name(EXPERIMENT).experiment_id
    loser = client.create_run(experiment, start_time=1, tags=tags).info.run_id
    assert run_of(client, "found").info.run_id == loser  # the older of the two, so that a search gives it
    assert Projection(store, uri).ensure(folder("found"), tracked("found")) == winner
    [agreement] = store.children(f"{folder('found')}/mlflow")
    store.delete(f"{folder('found')}/mlflow/{agreement}")
    client.delete_run(winner)
    assert Projection(store, uri).ensure(folder("found"), tracked("found")) == loser  # the first who asks says so
    assert store.children(f"{folder('found')}/mlflow") == [agreement]


def test_whoever_is_first_makes_the_run_and_all_mean_that_one(store: Store, uri: str, client: Any) -> None:
    connect(uri)
    with ThreadPoolExecutor(4) as pool:
        made = list(pool.map(lambda _: Projection(store, uri).ensure(folder("raced"), tracked("raced")), range(4)))
    experiment = client.get_experiment_by_name(EXPERIMENT)
    found = client.search_runs([experiment.experiment_id], "tags.`nanochat.run` = 'raced'")
    assert set(made) == {found[0].info.run_id} and len(found) == 1
    store.write(store.children(f"{folder('raced')}/mlflow")[0].join((f"{folder('raced')}/mlflow/", "")), b"senseless")
    client.delete_run(made[0])
    again = Projection(store, uri).ensure(folder("raced"), tracked("raced"))
    assert again != made[0] and run_of(client, "raced").info.run_id == again
