"""Pipelines at rest: what is kept of them, and what wakes them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from fake_cluster import FakeKube

from nanochat.storage.folder import FolderStore
from operators import reconciler, status
from operators.config import Config
from operators.pytorchjob import PYTORCHJOBS
from operators.reconciler import Run
from operators.rest import Rest, read_rest
from operators.services import Services
from operators.stores import Stores

UID = "12ab34cd-0000-0000-0000-000000000000"


class Silent:
    """Events that nobody hears."""

    def emit(self, *_: Any) -> None:
        return


class Rig:
    """One pipeline, by as many controllers as a test starts."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.folder, self.kube = folder, FakeKube(1_800_000_000.0)
        self.spec: dict[str, Any] = {"model": {"depth": 2}, "sources": {"text": {"kind": "world", "shards": 1}}}
        self.opened = 0
        self.serving: tuple[str, str, str] | None = None
        open_run = reconciler.Ready.open

        def opened(*arguments: Any) -> Any:
            self.opened += 1
            return open_run(*arguments)

        monkeypatch.setattr(reconciler.Ready, "open", opened)
        self.restart()

    def restart(self) -> None:
        config = {"image": "trainer", "profiles": {"default": {"root": str(self.folder / "store")}}}
        self.services = Services(
            **self.kube.services(),
            config=Config.model_validate(config, by_alias=True),
            events=Silent(),  # type: ignore[arg-type]
            stores=Stores(self.folder / "cache"),
            serving=lambda run, *, told_before: self.serving,
        )
        self.run = Run("team", "demo", UID, self.services)

    def found(self) -> dict[str, Any]:
        head = {"apiVersion": "nanochat.dev/v1alpha1", "kind": "ChatPipeline"}
        body = {**head, "metadata": {"name": "demo", "namespace": "team"}, "spec": self.spec}
        return self.kube.declare(body, uid=UID)

    def reconcile(self) -> float | None:
        self.kube.now += 5
        self.services.index.resync("")
        return self.run.reconcile(self.found(), self.kube.now, self.kube.now)

    def edit(self, **changes: Any) -> None:
        self.spec = {**self.spec, **changes}


@pytest.fixture
def rig(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Rig:
    return Rig(tmp_path, monkeypatch)


def test_a_suspended_pipeline_is_put_away_until_it_is_edited(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    rig.edit(suspend=True)
    assert rig.reconcile() is None and rig.kube.status["phase"] == "Suspended"
    assert isinstance(rig.run._state, Rest) and rig.opened == 1
    with monkeypatch.context() as patch:
        patch.setattr(FolderStore, "read", lambda *_: pytest.fail("nothing is asked of the store"))
        patch.setattr(FolderStore, "children", lambda *_: pytest.fail("nothing is asked of the store"))
        rig.kube.asked.clear()
        assert rig.reconcile() is None and rig.kube.asked == [f"list {kind}" for kind in LISTED]
    rig.edit(suspend=False)
    assert rig.reconcile() is not None
    assert rig.opened == 2 and rig.kube.created == ["demo-12ab-dataset-1"]


LISTED = ("chatpipelines", "pytorchjobs", "pods", "workloads")  # by the index, at each resync


def test_another_controller_takes_its_status_for_it(rig: Rig) -> None:
    rig.edit(suspend=True)
    rig.reconcile()
    rig.restart()
    assert rig.reconcile() is None and rig.opened == 1
    run = rig.run.snapshot
    assert run is not None and run.phase == "Suspended" and not run.began
    assert rig.services.leases.since(run.store, run.paths.root) is not None, "what it needs is not removed"
    rig.run.end()
    assert rig.services.leases.since(run.store, run.paths.root) is None


@pytest.mark.parametrize(
    "change",
    [
        {"observedGeneration": 99},
        {"run": "runs/team.demo/another"},
        {"retriedAt": "2027-01-01T00:00:00Z"},
        {"phase": "Running"},
        {"attempts": [{"job": "demo-12ab-base-1", "reason": "Running"}]},
        {"attempts": [{"job": "demo-12ab-base-1", "reason": "Stalled", "ended": "2027-01-15T08:00:00Z"}]},
        {"conditions": []},
    ],
)
def test_a_status_that_may_leave_something_to_do_is_not_taken(rig: Rig, change: dict[str, Any]) -> None:
    rig.edit(suspend=True)
    rig.reconcile()
    found, services = rig.found(), rig.services
    owned = services.index.owned("team", UID)
    assert read_rest(found, owned, services.config, services.stores) is not None
    found["status"] |= change
    assert read_rest(found, owned, services.config, services.stores) is None


def test_news_of_the_served_version_is_told_without_opening_the_run(rig: Rig) -> None:
    rig.edit(cancel=True)
    assert rig.reconcile() is None and rig.kube.status["phase"] == "Cancelled"
    rig.serving = ("False", "Superseded", "version 2 of another run is served")
    assert rig.reconcile() is None and rig.opened == 1
    assert status.condition(rig.kube.status, status.SERVING) == rig.serving
    assert rig.kube.status["phase"] == "Cancelled" and status.condition(rig.kube.status, "Accepted") is not None


def test_a_job_that_is_left_is_deleted_when_its_time_has_passed(rig: Rig) -> None:
    rig.spec["jobTtlSeconds"] = 100
    rig.reconcile()
    (job,) = rig.kube[PYTORCHJOBS].values()
    job["status"]["conditions"] = [{"type": "Failed", "status": "True", "message": "x"}]
    job["metadata"]["resourceVersion"] = str(next(rig.kube._numbers))
    rig.kube.objects = {kind: {} if kind.plural == "pods" else kept for kind, kept in rig.kube.objects.items()}
    rig.edit(cancel=True)
    for _ in range(4):
        delay = rig.reconcile()
    assert delay is not None and 10 < delay <= 100 and isinstance(rig.run._state, Rest)
    opened = rig.opened
    assert rig.reconcile() is not None and rig.opened == opened
    rig.kube.now += 100
    rig.reconcile()
    assert not rig.kube[PYTORCHJOBS]
    assert rig.reconcile() is None
